"""The table of `benchmarks/real_size.py`."""

from __future__ import annotations

from typing import Any

from benchmarks.figures.results import load, markdown, source

STAGES = ("rollout", "reference", "policy")
Times = dict[str, float]


def seconds(one: dict[str, Any]) -> tuple[Times, Times]:
    """Of one size by stage: measured, of one core, and planned."""
    planned = one["planned"]["seconds"]
    took = {k: sum(b.get(k, 0.0) for b in one["measured"]["batches_core_s"]) for k in STAGES}
    return took, planned | {"rollout": planned["vision"] + planned["rollout"]}


def percent_off() -> list[float]:
    """Percent by which planned seconds are above (+) or below (-) measured ones: by size, of a step and each stage."""
    off = []
    for one in load("real_size_cpu")["sizes"].values():
        took, said = seconds(one)
        off.append(100 * (sum(one["planned"]["seconds"].values()) / sum(took.values()) - 1))
        off += [100 * (said[k] / took[k] - 1) for k in STAGES]
    return off


def table() -> str:
    """Two models of published size on a CPU: bytes and seconds of a step beside the plan."""
    rows: list[list[str]] = []
    for name, one in load("real_size_cpu")["sizes"].items():
        measured, planned = one["measured"], one["planned"]
        peak, plan = max(measured["live_bytes"].values()), planned["total"]
        process = measured["process_peak_bytes"]
        row = [name, f"{peak / 1e9:.2f} GB", f"{plan / 1e9:.2f} GB ({plan / peak - 1:+.0%})", f"{process / 1e9:.1f} GB"]
        took, said = seconds(one)
        row += [f"{took[k]:.0f}, {said[k]:.0f}" for k in took]
        whole, expected = sum(took.values()), sum(planned["seconds"].values())
        rows.append([*row, f"{whole:.0f}, {expected:.0f} ({expected / whole:.2f})"])
    head = ["", "tensors at most", "planned", "process", "rollout, s", "reference, s", "policy, s", "a step, s"]
    return f"{markdown(head, rows)}\n\n{source('real_size_cpu')}"
