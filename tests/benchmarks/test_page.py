"""The pages that a GPU's results become: of made-up results, of parts of them, of none; and the pages as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import day, page, tables

ABOUT = {
    "machine": "NVIDIA H200",
    "commit": "abc1234",
    "versions": {"torch": "2.11.0", "triton": "3.6.0", "transformers": "5.17.0", "pytest": "9.2.0"},
    "date": "2026-12-01",
    "rehearsal": False,
    "gpu_memory_bytes": 150_000_000_000,
}


def found(**changes: Any) -> dict[str, Any]:
    return {"about": ABOUT, "entries": {}, "not_measured": {}, "failed": {}, "finished": True, "seconds": 1.0} | changes


def ms(median: float) -> dict[str, float]:
    return {"median_ms": median, "p20_ms": median - 1, "p80_ms": median + 1}


def run(step_s: float, peak: float, planned: float) -> dict[str, Any]:
    medians = {"rollout": 2.0, "policy": 1.5}
    return {"step_s": step_s, "medians": medians, "peak_bytes": peak, "planned_bytes": planned}


MADE_UP: dict[str, dict[str, Any]] = {
    "kernels_correct": found(
        entries={
            "tests": {"passed": 21, "wrong": {}, "skipped": {"a": "no torchcodec"}},
            "error: bfloat16, 152064": {"orlaif (triton)": 3e-3, "orlaif fused head (triton)": 5e-3},
            "same bits": {"orlaif (triton)": 0},
            "sanitizer: memcheck": {"errors": 0, "first": ""},
        },
        not_measured={"sanitizer: racecheck": "no compute-sanitizer"},
    ),
    "kernels_speed": found(
        entries={
            "8192 tokens": {
                "ceilings": {"three bare GEMMs": ms(40.0), "copy of the logits": ms(2.0)},
                "results": {
                    "orlaif fused head (triton)": {"entry": "hidden", "forward+backward": ms(50.0), "peak_bytes": 1e9},
                    "torch.compile, through the head": {
                        "entry": "hidden",
                        "forward+backward": ms(100.0),
                        "peak_bytes": 9e9,
                    },
                    "eager fp32": {"entry": "logits", "failed": "out of memory, forward"},
                },
            }
        }
    ),
    "prefix": found(
        entries={
            "qwen2.5-vl-3b, long, 8 answers of 128": {
                "prompt": 4032,
                "predicted": 6.5,
                "results": {
                    "duplicate": {**ms(6000.0), "peak_bytes": 60e9},
                    "mask": {**ms(1500.0), "peak_bytes": 20e9},
                    "split": {**ms(1000.0), "peak_bytes": 18e9},
                    "flex": {"note": "out of memory"},
                },
            }
        }
    ),
    "rollout": found(
        entries={
            "model": {"parameters": 3},
            "eager": {**ms(2000.0), "tokens_per_s": 512.0, "first_call_s": 3.0, "tokens_alike": 1.0},
        }
    ),
    "rlaif_steps": found(entries={"ten steps": run(4.2, 14.1e9, 13.6e9)}),
    "sharding": found(
        entries={"same weights": {"trained": 4, "sharded": 1e-7}, "FSDP2": run(5.0, 10e9, 11e9)},
        not_measured={"QLoRA": "no bitsandbytes"},
        failed={"FSDP2, offloaded": "RuntimeError: no\nroom"},
    ),
    "decode": found(not_measured={"clips": "no torchcodec"}),
    "pipeline": found(entries={"in the step": run(6.0, 14e9, 14e9)}, finished=False),
}


def test_every_part_that_runs_becomes_a_section_and_at_most_eight_files() -> None:
    assert list(day.PARTS) == list(tables.PARTS) == list(MADE_UP)
    assert len(day.PARTS) <= 8


def test_made_up_results_become_tables() -> None:
    text = page.section(MADE_UP)
    assert "NVIDIA H200, torch 2.11.0, triton 3.6.0, transformers 5.17.0, commit abc1234, 2026-12-01." in text
    for row in (
        "| tests that need a GPU | 21 passed, 0 failed, 1 skipped |",
        "| largest error of a gradient against float64, bfloat16 | 5.0e-03 |",
        "- sanitizer: racecheck: not measured: no compute-sanitizer",
        "| orlaif fused head (triton) | 50.0 ms [49.0, 51.0] | 1.25 x three bare GEMMs | 1.0 GB |",
        "| eager fp32 | not measured: out of memory, forward |  |  |",
        "| qwen2.5-vl-3b, long, 8 answers of 128 (prompt of 4032) | 6000.0 ms [5999.0, 6001.0], 60.0 GB | "
        "1500.0 ms [1499.0, 1501.0], 20.0 GB | 1000.0 ms [999.0, 1001.0], 18.0 GB | out of memory | 6.00 x | 6.50 x |",
        "| eager | 2000.0 ms [1999.0, 2001.0] | 512 | 3.0 s | 100% |",
        "| ten steps | 4.20 s | 2.00 | 1.50 | 14.1 GB | 13.6 GB (-4%) |",
        "- QLoRA: not measured: no bitsandbytes",
        "- FSDP2, offloaded: **failed**: RuntimeError: no room",
        "- clips: not measured: no torchcodec",
        "- the part was stopped at its limit; what it had is above",
    ):
        assert row in text.splitlines(), row


def test_results_in_brief_name_what_is_missing() -> None:
    text = page.in_brief({part: MADE_UP[part] for part in ("kernels_speed", "prefix", "sharding")})
    assert text.startswith("**On one NVIDIA H200**: ")
    assert "the fused head takes 0.50 x the time of torch.compile, through the head (8192 tokens)" in text
    assert "a step with the prompt shared takes 6.0 x less for qwen2.5-vl-3b" in text
    assert (
        "Not measured on a GPU: The kernels are right; A rollout; Steps of Oracle-RLAIF: 3B, LoRA, 32 frames; " in text
    )
    assert "Failed or stopped on a GPU: FSDP2 on one GPU, offload, QLoRA.\n" in text
    whole = page.in_brief(MADE_UP)
    assert "a step of 3B LoRA with 32 frames takes 4.2 s and 14.1 GB (planned 13.6)" in whole


def test_a_part_without_figures_is_not_measured_and_one_that_failed_has_failed() -> None:
    rollout = found(entries={"model": {"parameters": 3}}, failed={"eager": "RuntimeError: no"})
    results = {"rollout": rollout, "decode": MADE_UP["decode"]}
    text = page.in_brief(results)
    assert text.startswith(
        "**On one NVIDIA H200** nothing was measured.\nNot measured on a GPU: The kernels are right; "
    )
    assert text.splitlines()[1].split(": ", 1)[1] == "; ".join(heading for heading, _ in tables.PARTS.values()) + "."
    assert text.splitlines()[2] == "Failed or stopped on a GPU: A rollout."
    assert page.section(results).splitlines().count("Not measured.") == len(tables.PARTS)


def test_without_results_everything_is_not_measured() -> None:
    assert page.section({}).splitlines().count("Not measured.") == len(tables.PARTS)
    assert "on a GPU **not measured**" in page.in_brief({})


def test_a_rehearsal_becomes_no_page(tmp_path: Path) -> None:
    (tmp_path / "prefix.json").write_text(json.dumps(found(about=ABOUT | {"rehearsal": True})))
    with pytest.raises(ValueError, match="is of a rehearsal"):
        page.read_results(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (json.dumps(found())[:40], r"prefix.json is no JSON \(.*\); copy it from the run once more"),
        (json.dumps([1]), "prefix.json is not what a part of make gpu writes; it must have about, entries"),
        (
            json.dumps(found(about={"machine": "x86_64, 2 cores, no GPU", "rehearsal": False})),
            "prefix.json is of x86_64, 2 cores, no GPU; only results of a GPU become pages",
        ),
    ],
)
def test_a_file_that_is_no_gpus_result_is_named(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prefix.json").write_text(text)
    with pytest.raises(ValueError, match=said):
        page.read_results(tmp_path)
    monkeypatch.setattr(day, "RESULTS", tmp_path)
    with pytest.raises(SystemExit, match=said):
        day.main(["--render"])


def test_text_goes_between_the_markers_and_nowhere_else() -> None:
    text = f"before\n{page.BEGIN}\nold\n{page.END}\nbehind\n"
    assert page.between(text, "new\n", "a page") == f"before\n{page.BEGIN}\nnew\n{page.END}\nbehind\n"
    with pytest.raises(ValueError, match="a page needs one line"):
        page.between("nothing", "new", "a page")


def test_the_pages_say_what_lies_in_the_results() -> None:
    """Otherwise: ``python tools/gpu_day.py --render``."""
    for path, text in page.pages(page.read_results(day.RESULTS)).items():
        assert path.read_text(encoding="utf-8") == text, path.name
