"""The table of `benchmarks/plan_families.py`."""

from __future__ import annotations

from typing import Any

from benchmarks.figures.results import load, markdown, source
from benchmarks.plan_families import STAGES, off


def _cells(one: dict[str, Any]) -> list[str]:
    """Bytes of the largest stage, and by how much the plan says more of each."""
    most = f"{max(one['measured']['bytes'].values()) / 1e6:.0f}"
    if "planned" not in one:
        return [most, "refused"]
    return [most, " ".join(f"{100 * difference:+.0f}" for difference in off(**one).values())]


def table() -> str:
    """Every family, all weights trained and an adapter: what the plan says beside a real step."""
    found = load("plan_families")["families"]
    rows = [
        [name, one["full"]["measured"]["layout"], *_cells(one["full"]), *_cells(one["lora"])]
        for name, one in found.items()
    ]
    stages = ", ".join(STAGES)
    head = ["family", "layout", "full: MB", f"plan, %: {stages}", "LoRA: MB", f"plan, %: {stages}"]
    return f"{markdown(head, rows)}\n\n{source('plan_families')}"
