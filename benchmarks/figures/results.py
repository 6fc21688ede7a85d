"""Reading the results, and the line that says where a table comes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.significance import interval

RESULTS = Path(__file__).parents[1] / "results"


def load(name: str) -> dict[str, Any]:
    """The JSON ``benchmarks/results/<name>.json``."""
    report: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return report


def source(*names: str) -> str:
    """File, commit, versions and machine of each result, as a line under a table."""
    told = []
    for name in names:
        report = load(name)
        parts = [f"commit {report.get('commit', 'not recorded')}"]
        parts += [report["commit_note"]] if "commit_note" in report else []
        if report.get("planned_at", report.get("commit")) != report.get("commit"):
            parts.append(f"planned at {report['planned_at']}")
        versions = [f"{package} {version}" for package, version in report.get("versions", {}).items()]
        parts += versions or ["versions not recorded"]
        parts += [report["machine"].split(", no GPU")[0] if "machine" in report else "machine not recorded"]
        told.append(f"`benchmarks/results/{name}.json` ({', '.join(parts)})")
    return f"*From {'; '.join(told)}.*"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def plus_minus(values: list[float], sign: str = "", digits: int = 1) -> str:
    """Mean and half the 95 % interval over seeds (Student's t)."""
    mean, half = interval(values)
    return f"{mean:{sign}.{digits}f} ± {half:.{digits}f}"
