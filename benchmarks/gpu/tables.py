"""From a part's file to Markdown: what was measured as tables, what was not as the words "not measured", and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Found = dict[str, Any]
NOT = "not measured"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return ["", *("| " + " | ".join(cells) + " |" for cells in lines), ""]


def milliseconds(row: Found | None) -> str:
    """A median with its spread."""
    if row is None or "median_ms" not in row:
        return NOT
    return f"{row['median_ms']:.1f} ms [{row['p20_ms']:.1f}, {row['p80_ms']:.1f}]"


def gigabytes(row: Found) -> str:
    """Of a peak; nothing where none was taken."""
    return f"{row['peak_bytes'] / 1e9:.1f} GB" if row.get("peak_bytes") else NOT


def left_out(found: Found) -> list[str]:
    """What a part did not measure or what was wrong, a line each."""
    lines = [f"- {name}: {NOT}: {why}" for name, why in found["not_measured"].items()]
    lines += [f"- {name}: **failed**: {' '.join(why.split())[:300]}" for name, why in found["failed"].items()]
    if not found["finished"]:
        lines.append("- the part was stopped at its limit; what it had is above")
    return ["", *lines, ""] if lines else []


def kernels_correct(entries: Found) -> list[str]:
    """Counts, errors, bits."""
    rows = []
    if tests := entries.get("tests"):
        rows.append(
            [
                "tests that need a GPU",
                f"{tests['passed']} passed, {len(tests['wrong'])} failed, {len(tests['skipped'])} skipped",
            ]
        )
    worst: dict[str, float] = {}
    for name, errors in entries.items():
        if name.startswith("error: "):
            dtype = name.removeprefix("error: ").split(",")[0]
            worst[dtype] = max(worst.get(dtype, 0.0), *errors.values())
    rows += [[f"largest error of a gradient against float64, {dtype}", f"{e:.1e}"] for dtype, e in worst.items()]
    for who, different in entries.get("same bits", {}).items():
        rows.append([f"calls with other bits than the first, {who}", str(different)])
    for name, seen in entries.items():
        if name.startswith("sanitizer: "):
            rows.append([f"compute-sanitizer, {name.removeprefix('sanitizer: ')}", f"{seen['errors']} errors"])
    return table(["", ""], rows)


def kernels_speed(entries: Found) -> list[str]:
    """A table for each point."""
    lines: list[str] = []
    for name, entry in entries.items():
        lines += ["", f"{name}; ceilings: " + ", ".join(f"{k} {milliseconds(v)}" for k, v in entry["ceilings"].items())]
        rows = []
        for who, row in entry["results"].items():
            if "failed" in row:
                rows.append([who, NOT + f": {row['failed'][:80]}", "", ""])
                continue
            against = "three bare GEMMs" if row["entry"] == "hidden" else "copy of the logits"
            full = row["forward+backward"]
            ratio = full["median_ms"] / entry["ceilings"][against]["median_ms"]
            rows.append([who, milliseconds(full), f"{ratio:.2f} x {against}", gigabytes(row)])
        lines += table(["", "forward and backward", "beside its ceiling", "peak above the inputs"], rows)
    return lines


def prefix(entries: Found) -> list[str]:
    """How many times as long the duplicated batch takes."""
    rows = []
    for name, entry in entries.items():
        cells = []
        for way in ("duplicate", "mask", "split", "flex"):
            row = entry["results"].get(way, {})
            cells.append(f"{milliseconds(row)}, {gigabytes(row)}" if "median_ms" in row else row.get("note", NOT))
        times = speed_up(entry)
        cells += [NOT if times is None else f"{times:.2f} x", f"{entry['predicted']:.2f} x"]
        rows.append([f"{name} (prompt of {entry['prompt']})", *cells])
    return table(["", "duplicated", "`mask`", "`split`", "`flex`", "duplicated / best shared", "predicted"], rows)


def speed_up(entry: Found) -> float | None:
    """Duplicated over the fastest shared way; None where either was not measured."""
    times = {way: row["median_ms"] for way, row in entry["results"].items() if "median_ms" in row}
    shared = [ms for way, ms in times.items() if way != "duplicate"]
    return times["duplicate"] / min(shared) if shared and "duplicate" in times else None


def rollout(entries: Found) -> list[str]:
    """Tokens per second."""
    rows = [
        [
            name,
            milliseconds(row),
            f"{row['tokens_per_s']:.0f}",
            f"{row['first_call_s']:.1f} s",
            f"{row['tokens_alike']:.0%}",
        ]
        for name, row in entries.items()
        if "tokens_per_s" in row
    ]
    return table(["", "rollout", "tokens a second", "first call", "tokens as in the first row"], rows)


def training(entries: Found) -> list[str]:
    """Seconds per stage, and the peak beside the plan's."""
    runs = {name: row for name, row in entries.items() if "step_s" in row}
    stages = list(dict.fromkeys(stage for row in runs.values() for stage in row["medians"]))
    rows = []
    for name, row in runs.items():
        off = f" ({row['planned_bytes'] / row['peak_bytes'] - 1:+.0%})" if row["peak_bytes"] else ""
        cells = [name, f"{row['step_s']:.2f} s", *(f"{row['medians'].get(stage, 0.0):.2f}" for stage in stages)]
        rows.append([*cells, gigabytes(row), f"{row['planned_bytes'] / 1e9:.1f} GB{off}"])
    lines = table(["", "step", *stages, "peak", "planned"], rows)
    if same := entries.get("same weights"):
        distances = ", ".join(f"{k} {v:.1e}" for k, v in same.items() if k != "trained")
        lines += [f"Largest distance of a small model's weights from one process without shards: {distances}.", ""]
    return lines


def decode(entries: Found) -> list[str]:
    """Differences of pixels, and times."""
    rows = [
        [
            name,
            " x ".join(map(str, row["shape"])),
            f"{row['mean_difference']:.2f}",
            f"{row['largest_difference']:.0f}",
            milliseconds(row["cpu"]),
            milliseconds(row["cuda"]),
        ]
        for name, row in entries.items()
    ]
    return table(["", "frames", "grey values off, mean", "largest", "CPU", "NVDEC"], rows)


#: By part: heading, and what makes its tables.
PARTS: dict[str, tuple[str, Callable[[Found], list[str]]]] = {
    "kernels_correct": ("The kernels are right", kernels_correct),
    "kernels_speed": ("The kernels' times", kernels_speed),
    "prefix": ("A step with the prompt shared", prefix),
    "rollout": ("A rollout", rollout),
    "rlaif_steps": ("Steps of Oracle-RLAIF: 3B, LoRA, 32 frames", training),
    "sharding": ("FSDP2 on one GPU, offload, QLoRA", training),
    "decode": ("Decoding by NVDEC", decode),
    "pipeline": ("Rollout and judge beside training", training),
}
