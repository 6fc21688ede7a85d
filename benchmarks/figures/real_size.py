"""The table of `benchmarks/real_size.py`."""

from __future__ import annotations

from benchmarks.figures.results import load, markdown, source


def table() -> str:
    """Two models of published size on a CPU: bytes and seconds of a step beside the plan."""
    rows: list[list[str]] = []
    for name, one in load("real_size_cpu")["sizes"].items():
        measured, planned = one["measured"], one["planned"]
        peak, plan = max(measured["live_bytes"].values()), planned["total"]
        process = measured["process_peak_bytes"]
        row = [name, f"{peak / 1e9:.2f} GB", f"{plan / 1e9:.2f} GB ({plan / peak - 1:+.0%})", f"{process / 1e9:.1f} GB"]
        took = {k: sum(b.get(k, 0.0) for b in measured["batches_core_s"]) for k in ("rollout", "reference", "policy")}
        said = planned["seconds"] | {"rollout": planned["seconds"]["vision"] + planned["seconds"]["rollout"]}
        row += [f"{took[k]:.0f}, {said[k]:.0f}" for k in took]
        whole, expected = sum(took.values()), sum(planned["seconds"].values())
        rows.append([*row, f"{whole:.0f}, {expected:.0f} ({expected / whole:.2f})"])
    head = ["", "tensors at most", "planned", "process", "rollout, s", "reference, s", "policy, s", "a step, s"]
    return f"{markdown(head, rows)}\n\n{source('real_size_cpu')}"
