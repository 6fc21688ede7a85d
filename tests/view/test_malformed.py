"""Lines of JSON that no run wrote so: the page leaves them out, and says how many, where and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orlaif.cli.view import main
from orlaif.samples import read_groups
from orlaif.view.export import one_file
from orlaif.view.malformed import malformed
from orlaif.view.page import as_json
from orlaif.view.run import Run
from tests.view.runs import answer, group, run


def good(step: int) -> dict[str, Any]:
    return group(step, f"p{step}", answer("red", 0), answer("blue", 1))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"answers": "oops"}, "answers is 'oops'; it must be a list of objects"),
        ({"prompt": None}, "prompt is None; it must be an object"),
        ({"prompt": {"id": 7}}, "prompt.id is 7; it must be a text"),
        ({"prompt": {"id": "p"}}, "prompt.question is missing"),
        ({"answers": [{**answer("a", 0), "rank": "x"}]}, "answers[0].rank is 'x'; it must be a whole number"),
        ({"answers": [answer("a", 0), {"text": "a"}]}, "answers[1].rank is missing"),
        ({"answers": [answer("a", 0, kl="much")]}, "answers[0].kl is 'much'; it must be a number or null"),
        (
            {"answers": [answer("a", 0, logps=["b"])]},
            "answers[0].logps is ['b']; it must be a list of numbers, or null",
        ),
        (
            {"answers": [answer("a", 0, trainer_logps=[-1.0, -2.0])]},
            "answers[0] has 1 logps and 2 trainer_logps; there must be one a token",
        ),
        ({"exchanges": None}, "exchanges is None; it must be a list of objects"),
        ({"seconds": 3}, "seconds is 3; it must be an object"),
        ({"seen": ["a.mp4"]}, "seen is ['a.mp4']; it must be a list of objects"),
        ({"failure": 7}, "failure is 7; it must be a text or null"),
    ],
)
def test_what_is_wrong_is_said(change: dict[str, Any], reason: str) -> None:
    assert malformed(good(0)) is None
    assert malformed({**good(0), **change}) == reason


def test_malformed_lines_are_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Among them one that nests deeper than Python reads, and a shard without a header."""
    folder = run(tmp_path / "one", [good(0), good(1)])
    (shard,) = (folder / "samples").iterdir()
    wrong = [{"step": 30}, {**good(2), "answers": "oops"}, {**good(3), "prompt": None}, {**good(4), "step": "x"}, [1]]
    with shard.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in wrong)
        file.write("[" * 100_000 + "\n" + json.dumps(good(5)) + "\n")
    (folder / "samples" / "a001-p1-000001.jsonl").write_text("{}\n" + json.dumps(good(6)) + "\n")
    one = Run(folder)
    assert one.overview["groups"]["step"] == [0, 1, 5]
    said = f"6 lines that no run wrote so were left out, the first at {shard}, line 4: epoch is missing; "
    assert one.overview["left_out"] == said + "it must be a whole number"
    assert one.group(2) == {**good(5), "seen": []}
    assert "6 lines that no run wrote so" in one_file([one], most=5)
    assert main([str(folder), "--export", str(tmp_path / "page.html")]) == 0
    assert said in capsys.readouterr().err


def test_nothing_but_malformed_lines_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "a001-p0-000001.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"1 line that no run wrote so was left out, .*line 1: no header"):
        Run(tmp_path)


def test_a_reader_of_samples_is_warned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = run(tmp_path / "one", [good(0)])
    (shard,) = (folder / "samples").iterdir()
    with shard.open("a") as file:
        file.write('{"step":30}\n')
    assert [one["step"] for one in read_groups(folder / "samples")] == [0]
    assert "line 3: epoch is missing" in caplog.text


def test_a_line_that_is_changed_while_it_is_viewed(tmp_path: Path) -> None:
    folder = run(tmp_path / "one", [good(0)])
    one = Run(folder)
    (shard,) = (folder / "samples").iterdir()
    shard.write_text(shard.read_text().replace('"answers":[', '"answer":[', 1))
    assert one.group(0) is None


def test_numbers_that_json_cannot_say_are_null() -> None:
    assert as_json({"kl": [json.loads("1e999"), 0.5]}) == '{"kl":[null,0.5]}'
