"""From the results of a GPU to the pages: the benchmark page's section and README's lines, between markers.

``python tools/gpu_day.py --render``, or ``make figures``, after the JSON files of a run were put into
``benchmarks/results/gpu``. Nothing else writes between the markers, and a test holds the pages against the files.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.gpu.tables import NOT, PARTS, Found, left_out, speed_up

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- gpu: written by tools/gpu_day.py --render -->", "<!-- /gpu -->"


#: What a part's file has.
KEYS = {"about", "entries", "not_measured", "failed", "finished"}


def read_results(folder: Path) -> dict[str, Found]:
    """What there is, by part.

    Args:
        folder: of JSON files, one a part; it may be missing.

    Raises:
        ValueError: a file that was cut off, or is not what a part writes; of a rehearsal or of a machine without a
            GPU, whose figures say nothing about one.
    """
    return {part: read_part(path) for part in PARTS if (path := folder / f"{part}.json").is_file()}


def read_part(path: Path) -> Found:
    """What a part has written; raises ValueError as :func:`read_results`."""
    try:
        found: Found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); copy it from the run once more") from None
    if not isinstance(found, dict) or KEYS - found.keys():
        raise ValueError(f"{path} is not what a part of make gpu writes; it must have {', '.join(sorted(KEYS))}")
    if found["about"]["rehearsal"]:
        raise ValueError(f"{path} is of a rehearsal; only results of a GPU become pages")
    if "gpu_memory_bytes" not in found["about"]:
        raise ValueError(f"{path} is of {found['about']['machine']}; only results of a GPU become pages")
    return found


def where(found: Found) -> str:
    """Machine, versions and commit of a part."""
    about = found["about"]
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items() if k in ("torch", "triton", "transformers"))
    return f"{about['machine']}, {versions}, commit {about['commit']}, {about['date']}"


def section(results: dict[str, Found]) -> str:
    """The part of the benchmark page that is about a GPU, without the markers."""
    lines = [
        "## On a GPU",
        "",
        "`make gpu` (`tools/gpu_day.py`) measures what follows; JSON in `benchmarks/results/gpu`.",
    ]
    for part, (heading, tables) in PARTS.items():
        lines += ["", f"### {heading}", ""]
        if part not in results:
            lines.append(f"{NOT.capitalize()}.")
            continue
        found = results[part]
        lines += [where(found) + ".", *(tables(found["entries"]) if found["entries"] else [])]
        lines += [*([] if measured(found) else ["", f"{NOT.capitalize()}."]), *left_out(found)]
    return "\n".join(_single(lines)) + "\n"


def _single(lines: list[str]) -> list[str]:
    """Without an empty line behind another, or at the end."""
    kept = [line for i, line in enumerate(lines) if line or (i and lines[i - 1])]
    while kept and not kept[-1]:
        kept.pop()
    return kept


def kernels_in_brief(results: dict[str, Found]) -> str | None:
    """The fused head beside the fastest other way from hidden states."""
    for name, entry in results.get("kernels_speed", {}).get("entries", {}).items():
        times = {
            who: row["forward+backward"]["median_ms"]
            for who, row in entry["results"].items()
            if row.get("entry") == "hidden" and "forward+backward" in row
        }
        ours = [ms for who, ms in times.items() if "orlaif" in who]
        others = {who: ms for who, ms in times.items() if "orlaif" not in who}
        if ours and others:
            best = min(others, key=lambda who: others[who])
            return f"the fused head takes {min(ours) / others[best]:.2f} x the time of {best} ({name})"
    return None


def prefix_in_brief(results: dict[str, Found]) -> str | None:
    """Duplicated over shared, by model."""
    best: dict[str, float] = {}
    for name, entry in results.get("prefix", {}).get("entries", {}).items():
        if (times := speed_up(entry)) is not None:
            best.setdefault(name.split(",")[0], times)
    said = ", ".join(f"{times:.1f} x less for {model}" for model, times in best.items())
    return f"a step with the prompt shared takes {said}" if best else None


def steps_in_brief(results: dict[str, Found]) -> str | None:
    """Seconds and peak of a step."""
    row = results.get("rlaif_steps", {}).get("entries", {}).get("ten steps")
    if row is None:
        return None
    sizes = f"{row['peak_bytes'] / 1e9:.1f} GB (planned {row['planned_bytes'] / 1e9:.1f})"
    return f"a step of 3B LoRA with 32 frames takes {row['step_s']:.1f} s and {sizes}"


def measured(found: Found | None) -> bool:
    """Whether a part has more than what its model is."""
    return found is not None and any(name != "model" for name in found["entries"])


def in_brief(results: dict[str, Found]) -> str:
    """README's lines, without the markers."""
    if not results:
        return (
            "**Shown on CPUs only so far**; on a GPU **not measured**: the kernels, a step with the prompt shared,\n"
            "rollouts, training steps, shards, offload, QLoRA, NVDEC, NCCL, vLLM. They are written and, as far as a\n"
            "CPU goes, tested; `make gpu` measures what one GPU can show.\n"
        )
    briefs = {
        "kernels_speed": kernels_in_brief(results),
        "prefix": prefix_in_brief(results),
        "rlaif_steps": steps_in_brief(results),
    }
    said = "; ".join(brief for brief in briefs.values() if brief is not None)
    machine = next(iter(results.values()))["about"]["machine"]
    some = "some of it ran" if any(map(measured, results.values())) else "nothing was measured"
    lines = [f"**On one {machine}**: {said}." if said else f"**On one {machine}** {some}."]
    missing = [part for part in PARTS if (briefs.get(part, "") is None or not measured(results.get(part)))]
    wrong = {part: found["failed"] or not found["finished"] for part, found in results.items()}
    for what, parts in (("Not measured", missing), ("Failed or stopped", [part for part in PARTS if wrong.get(part)])):
        if parts:
            lines.append(f"{what} on a GPU: {'; '.join(PARTS[part][0] for part in parts)}.")
    lines.append("[All of it](docs/benchmarks/index.md#on-a-gpu); several GPUs (NCCL) and vLLM on one: not measured.")
    return "\n".join(lines) + "\n"


def between(text: str, made: str, page: str) -> str:
    """``text`` with ``made`` between its markers.

    Raises:
        ValueError: the page has not one pair of them.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{page} needs one line {BEGIN!r} and one {END!r} behind it")
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n" + made + END + rest.split(END)[1]


def pages(results: dict[str, Found]) -> dict[Path, str]:
    """Every page as it should read."""
    made = {ROOT / "README.md": in_brief(results), ROOT / "docs" / "benchmarks" / "index.md": section(results)}
    return {path: between(path.read_text(encoding="utf-8"), text, path.name) for path, text in made.items()}


def write_pages(folder: Path) -> None:
    """Bring README and the benchmark page up to what lies in ``folder``."""
    for path, text in pages(read_results(folder)).items():
        if path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"{path.relative_to(ROOT)}: written")
