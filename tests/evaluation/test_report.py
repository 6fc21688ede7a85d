"""Pages, plots, and two runs side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from orlaif.evaluation.compare import main
from orlaif.evaluation.report import compare, paired_difference, write_results
from orlaif.evaluation.suite import ExactMatch


def records(right: list[bool], start: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "id": str(start + i),
            "question": f"q{start + i}",
            "prediction": "dog" if mark else "cat",
            "answer": "dog",
            "category": "even" if i % 2 == 0 else "odd",
            "tags": {"duration": "short" if i < 4 else "long"},
        }
        for i, mark in enumerate(right)
    ]


def run(folder: Path, right: list[bool], start: int = 0) -> str:
    suite = ExactMatch()
    write_results(str(folder), suite, suite.grade(records(right, start)), {"model": folder.name})
    return str(folder)


def test_a_page_with_tables_and_a_plot(tmp_path: Path) -> None:
    folder = Path(run(tmp_path / "a", [True, False, True, True]))
    page = (folder / "results.md").read_text()
    assert "| even | 2 | 100.0 | 100.0 | 0 |\n| odd | 2 | 50.0 | 50.0 | 0 |\n| all | 4 | 75.0 | 75.0 | 0 |" in page
    assert "![Exact match and token F1](results.png)" in page
    assert Image.open(folder / "results.png").size[0] > 300
    results = json.loads((folder / "results.json").read_text())
    assert results["metrics"]["accuracy"] == 0.75
    assert results["about"] == {"model": "a"}
    assert len((folder / "graded.jsonl").read_text().splitlines()) == 4


def test_a_paired_difference_by_hand() -> None:
    """Three of eight answers turned right: 0.375; resampling (0, 1) with that share has a known spread."""
    a = np.array([1.0, 0, 0, 0, 0, 1, 0, 0])
    b = np.array([1.0, 1, 1, 1, 0, 1, 0, 0])
    difference, low, high = paired_difference(a, b, 20_000, seed=0)
    assert difference == pytest.approx(0.375)
    assert (low, high) == (pytest.approx(0.125, abs=1e-9), pytest.approx(0.75, abs=1e-9))
    assert paired_difference(a, a, 1000, seed=0) == (0.0, 0.0, 0.0)


def test_the_interval_covers_the_truth_nineteen_times_of_twenty() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for i in range(200):
        a, b = rng.random(300) < 0.5, rng.random(300) < 0.6
        _, low, high = paired_difference(a.astype(float), b.astype(float), 600, seed=i)
        covered += low <= 0.1 <= high
    assert 180 <= covered <= 199


def test_two_runs_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = run(tmp_path / "sft", [True, False] * 4)
    b = run(tmp_path / "rlaif", [True] * 6 + [False] * 2)
    assert main([a, b]) == 0
    out = capsys.readouterr().out
    assert "| exact_match % | n | sft | rlaif | difference (95 % interval) |" in out
    assert "| odd | 4 | 0.0 | 75.0 | +75.0 (" in out
    assert "| even | 4 | 100.0 | 75.0 | -25.0 (" in out
    assert "| all | 8 | 50.0 | 75.0 | +25.0 (" in out
    page = tmp_path / "rlaif" / "comparison" / "comparison.md"
    assert "![](comparison.png)" in page.read_text()
    assert Image.open(page.parent / "comparison.png").size[0] > 300
    stored = json.loads((page.parent / "comparison.json").read_text())
    assert [row["label"] for row in stored["rows"]] == ["even", "odd", "all"]


def test_what_only_one_run_answered_is_left_out(tmp_path: Path) -> None:
    a, b = run(tmp_path / "a", [True] * 8), run(tmp_path / "b", [False] * 8, start=6)
    (row,) = (row for row in compare(a, b, ("a", "b"), by="duration") if row["label"] == "all")
    assert (row["n"], row["a"], row["b"]) == (2, 1.0, 0.0)


def test_scores_of_two_judges_are_not_compared(tmp_path: Path) -> None:
    """What no judge has given still is; so is the same judge at another address."""

    class Judged(ExactMatch):
        def grade(self, records: Any) -> list[dict[str, Any]]:
            return [{**r, "scores": {"judged": 1.0, **r["scores"]}} for r in super().grade(records)]

    folders = []
    for name, model in (("a", "m-1"), ("b", "m-2"), ("c", "m-1")):
        folders.append(str(tmp_path / name))
        judge = {"model": model, "base_url": f"http://{name}/v1"}
        write_results(folders[-1], Judged(), Judged().grade(records([True] * 4)), {"judge": judge})
    a, b, c = folders
    with pytest.raises(ValueError, match=r"a and b were graded by judges of different .*, or --score exact_match"):
        compare(a, b, ("a", "b"))
    assert compare(a, b, ("a", "b"), score="token_f1")[-1]["a"] == 1.0
    assert compare(a, c, ("a", "c"))[-1]["score"] == "judged"


def test_mistakes_are_named(tmp_path: Path) -> None:
    a, b = run(tmp_path / "a", [True] * 4), run(tmp_path / "b", [True] * 4)
    with pytest.raises(ValueError, match=r"graded.jsonl: no such file; run `orlaif test`"):
        main([a, str(tmp_path / "none")])
    with pytest.raises(ValueError, match=r"score 'bleu' is not in both runs; in both are exact_match, token_f1"):
        main([a, b, "--score", "bleu"])
    with pytest.raises(ValueError, match="no record has a 'domain' to break down by"):
        main([a, b, "--by", "domain"])
    with pytest.raises(ValueError, match="no question in common"):
        compare(a, run(tmp_path / "c", [True] * 4, start=50), ("a", "c"))
    graded = tmp_path / "b" / "graded.jsonl"
    graded.write_text(graded.read_text().replace('"q1"', '"other"'))
    with pytest.raises(ValueError, match="different questions under the same id, such as '1'"):
        main([a, b])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"id": "q1", "prediction": "red"}', r"has no 'scores'"),
        ('{"scores": {}}', r"has no 'id'"),
        ("[1]", r"is a list"),
        ('{"id": "q1", ', r": no valid JSON: .*"),
        ('{"id": "q1", "scores": {"exact_match": "right"}}', r': scores is \{"exact_match": "right"\}'),
    ],
)
def test_a_line_that_is_no_graded_answer_is_named(line: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "graded.jsonl").write_text('{"id": "q0", "scores": {"exact_match": null}}\n' + line + "\n")
    with pytest.raises(ValueError, match=rf"^.*graded\.jsonl, line 2:? ?{said}; it must be a graded answer"):
        compare(str(tmp_path), str(tmp_path), ("a", "b"))


def test_help_has_no_doubled_percent(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "95 % bootstrap" in " ".join(capsys.readouterr().out.split())
