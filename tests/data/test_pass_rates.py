"""Rows by what was measured of them: which stay, which come again, and in which order."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from orlaif.data.pass_rates import PassRateFilter, read_pass_rates
from orlaif.data.prompts import PromptDataset
from orlaif.data.replay import HardPromptReplay
from orlaif.data.running_rates import RunningRates
from orlaif.data.share import Share
from orlaif.types import Measured, VideoPrompt


class Rows(PromptDataset):
    """``n`` prompts, p0, p1, ..."""

    def __init__(self, n: int) -> None:
        self.n = n

    def load(self) -> None:
        pass

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> VideoPrompt:
        return VideoPrompt(id=f"p{index}", video="v.mp4", question="what?")


def rates(folder: Path, *values: float, name: str = "rates.jsonl") -> str:
    """A file of pass rates of p0, p1, ..."""
    path = folder / name
    path.write_text("".join(json.dumps({"id": f"p{i}", "pass_rate": v}) + "\n" for i, v in enumerate(values)))
    return str(path)


def ids(dataset: Any) -> list[str]:
    return [dataset[i].id for i in range(len(dataset))]


def test_rows_outside_the_bounds_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = rates(tmp_path, 0.0, 0.125, 0.5, 0.875, 1.0)
    with caplog.at_level(logging.INFO):
        kept = PassRateFilter(Rows(5), file, min=0.125, max=0.5)
        assert ids(kept) == ["p1", "p2"]
    assert "2 of 5 rows stay (0 without a rate), 1 below 0.125 and 2 above 0.5 are left out" in caplog.text
    with pytest.raises(ValueError, match=r"leaves none of 5 rows: 4 are below min = 0.9, 1 above max = 0.95"):
        PassRateFilter(Rows(5), file, min=0.9, max=0.95).load()


def test_rows_without_an_entry(tmp_path: Path) -> None:
    file = rates(tmp_path, 0.5, 1.0)
    with pytest.raises(ValueError, match=r"has no entry for 1 of 3 rows, such as 'p2'; measure them"):
        PassRateFilter(Rows(3), file, max=0.9).load()
    assert ids(PassRateFilter(Rows(3), file, max=0.9, missing="keep")) == ["p0", "p2"]
    assert ids(PassRateFilter(Rows(3), file, max=0.9, missing="leave_out")) == ["p0"]


def test_several_files_and_broken_rows(tmp_path: Path) -> None:
    rates(tmp_path, 0.5, 0.25, name="rates-process0.jsonl")
    rates(tmp_path, 0.75, name="rates-process1.jsonl")
    found = read_pass_rates(str(tmp_path / "rates-*.jsonl"), "x.file")
    assert found == {"p0": 0.75, "p1": 0.25}
    (tmp_path / "bad.jsonl").write_text('{"id": "p0"}\n')
    with pytest.raises(ValueError, match=r"x.file: .*bad.jsonl.*needs an id and a number under 'pass_rate'"):
        read_pass_rates(str(tmp_path / "bad.jsonl"), "x.file")


def test_rates_that_are_none_and_ids_that_come_twice(tmp_path: Path) -> None:
    for wrong in (1.5, -0.1, float("nan")):
        with pytest.raises(ValueError, match=rf"line 1.*field 'pass_rate' is {wrong}; it must be from 0 to 1"):
            read_pass_rates(rates(tmp_path, wrong), "x.file")
    twice = tmp_path / "twice.jsonl"
    twice.write_text('{"id": "p0", "pass_rate": 0.5}\n' * 2)
    with pytest.raises(ValueError, match=r"line 2: id 'p0' stands in this file already"):
        read_pass_rates(str(twice), "x.file")


def test_refused_settings(tmp_path: Path) -> None:
    file = rates(tmp_path, 0.5)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"min": 0.6, "max": 0.5}, r"min is 0\.6, above max"),
        ({"missing": "skip"}, "missing is 'skip'"),
        ({"field": "rate"}, "field is 'rate'"),
    ]
    for wrong, words in cases:
        with pytest.raises(ValueError, match=words):
            PassRateFilter(Rows(1), file, **wrong)
    with pytest.raises(ValueError, match=r"share is 1\.0; it must be above 0 and below 1"):
        HardPromptReplay(Rows(1), file, share=1.0)
    with pytest.raises(ValueError, match="file is null; it must name pass rates, or measure must be true"):
        HardPromptReplay(Rows(1))
    with pytest.raises(ValueError, match="no row is right sometimes, and sometimes not"):
        HardPromptReplay(Rows(2), rates(tmp_path, 0.0, 1.0)).load()


def test_hard_prompts_come_again_with_an_id_of_their_own(tmp_path: Path) -> None:
    """A quarter of 16 rows is replayed: p1 (seldom right) and p2 (mostly), not p0 (never) nor the rest (always)."""
    replay = HardPromptReplay(Rows(12), rates(tmp_path, 0.0, 0.1, 0.9, *[1.0] * 9), share=0.25)
    drawn = {"p1": 0, "p2": 0}
    for epoch in range(50):
        rows = ids(replay.epoch(epoch, 3, Share(), False, None))
        assert len(rows) == replay.num_rows == 16
        assert len(set(rows)) == 16
        assert {row for row in rows if "~" not in row} == {f"p{i}" for i in range(12)}
        for row in rows:
            if "~" in row:
                drawn[row.split("~")[0]] += 1
    assert drawn["p1"] + drawn["p2"] == 200
    assert 160 <= drawn["p1"] <= 195  # 180 are expected


def group(prompt_id: str, rate: float, samples: int = 4) -> Measured:
    return Measured(id=prompt_id, pass_rate=rate, mean_score=rate, samples=samples)


def test_rates_are_means_over_the_groups_seen_and_count_behind_a_step() -> None:
    rates = RunningRates("pass_rate", {"a", "b~1"})
    rates.note([group("a", 0.25), group("a~1", 0.75), group("b~1", 1.0), group("a", 1.0, samples=2)])
    assert rates.means() == {}
    rates.settle()
    assert rates.means() == {"a": pytest.approx((1 + 3 + 2) / 10), "b~1": 1.0}
    before = rates.of_epoch(3)
    rates.note([group("a", 0.0, samples=10)])
    rates.settle()
    assert rates.of_epoch(3) == before  # an epoch is drawn by what was known at its beginning
    gone_on = RunningRates("pass_rate", {"a", "b~1"})
    gone_on.load_state_dict(json.loads(json.dumps(rates.state_dict())))
    gone_on.note([group("b~1", 0.0)])
    assert gone_on.of_epoch(3) == before
    assert gone_on.of_epoch(4) == {"a": pytest.approx(0.3), "b~1": 0.5}


def test_a_run_measures_what_it_replays(tmp_path: Path) -> None:
    """At first all are drawn alike; then p1 more often than p2, and p0 (never right) and the rest (always) not."""
    replay = HardPromptReplay(Rows(12), share=0.25, measure=True)
    about = replay.fingerprint()

    def again(epochs: range) -> list[str]:
        rows = [row for epoch in epochs for row in ids(replay.epoch(epoch, 3, Share(), False, None))]
        return [row.split("~")[0] for row in rows if "~" in row]

    assert set(again(range(20))) == {f"p{i}" for i in range(12)}
    assert replay.rates is not None
    replay.rates.note([group(f"p{i}", rate) for i, rate in enumerate((0.0, 0.1, 0.9, *[1.0] * 9))])
    drawn = again(range(20, 70))
    assert set(drawn) == {"p1", "p2"}
    assert 160 <= drawn.count("p1") <= 195  # 180 of 200 are expected
    # Where every prompt is right, or none is, the run goes on, and all are drawn alike.
    replay.rates.note([group(f"p{i}", 1.0, samples=10**6) for i in range(1, 12)])
    replay.rates.settle()
    replay.rates.load_state_dict({"sums": {f"p{i}": [4, 4] for i in range(12)}, "epoch": -1, "drawn": {}})
    assert len(set(again(range(70, 90)))) == 12
    assert replay.fingerprint() == about  # what is measured is no other data
    # A file says where to begin; what was seen takes its place.
    replay = HardPromptReplay(Rows(3), rates(tmp_path, 0.5, 1.0, 1.0), share=0.5, measure=True)
    assert set(again(range(10))) == {"p0"}
    assert replay.rates is not None
    replay.rates.note([group("p0", 1.0), group("p2", 0.5)])
    assert set(again(range(10, 20))) == {"p2"}


def test_the_order_is_one_for_all_processes_and_goes_on(tmp_path: Path) -> None:
    replay = HardPromptReplay(Rows(12), rates(tmp_path, *[0.5] * 12), share=0.25)
    whole = ids(replay.epoch(1, 3, Share(), False, None))
    assert whole == ids(replay.epoch(1, 3, Share(), False, None))
    assert whole != ids(replay.epoch(2, 3, Share(), False, None))
    halves = [ids(replay.epoch(1, 3, Share(process_index=i, num_processes=2), False, None)) for i in range(2)]
    assert [row for pair in zip(*halves, strict=True) for row in pair] == whole
    assert ids(replay.epoch(1, 3, Share(first=6), False, None)) == whole[6:]
    assert ids(replay.epoch(5, 3, Share(), True, None))[:12] == [f"p{i}" for i in range(12)]


def test_a_run_goes_on_with_the_same_replay_only(tmp_path: Path) -> None:
    """The order of the rows follows from rates and share, so that what the data is must say them."""
    one, other = (rates(tmp_path, 0.5, rate, name=f"{rate}.jsonl") for rate in (0.25, 0.75))
    found = {HardPromptReplay(Rows(2), file, share).fingerprint() for file in (one, other) for share in (0.25, 0.5)}
    assert len(found) == 4
