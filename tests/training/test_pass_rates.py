"""`orlaif predict` measures how often prompts are answered rightly, and a run reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from orlaif.cli.recipe import run
from orlaif.data.pass_rates import PassRateFilter
from orlaif.data.replay import HardPromptReplay
from orlaif.demo.shapes import ShapesDataset
from orlaif.training.pass_rates import MeasuredGroups
from orlaif.types import CandidateGroup, OracleError, Ranking
from tests.cli.test_cli import small
from tests.processes import Scored
from tests.training.test_resume_matrix import Lab, Watch
from tests.training.test_rlaif import ByText, rlaif, sft, trainer


def test_predict_writes_what_a_data_set_reads(tmp_path: Path, tiny_model: str, data_root: str) -> None:
    predict = {"class_path": "orlaif.demo.shapes.ShapesDataset"}
    predict |= {"init_args": {"root": data_root, "split": "validation", "size": 10}}  # type: ignore[dict-item]
    words = ["--model", "orlaif.training.pass_rates.PassRates", f"--data.init_args.predict={json.dumps(predict)}"]
    run(small("demo_rlaif.yaml", "predict", tmp_path, tiny_model, data_root, *words))
    path = tmp_path / "predictions" / "pass_rates.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    questions = ShapesDataset(data_root, "validation", size=10)
    assert [row["id"] for row in rows] == [questions[i].id for i in range(10)]
    for row in rows:
        assert set(row) == {"id", "pass_rate", "mean_score", "samples", "tied"}
        assert row["pass_rate"] * row["samples"] == int(row["pass_rate"] * row["samples"])
        assert 0 <= row["pass_rate"] <= row["mean_score"] <= 1
    assert len(PassRateFilter(questions, str(path))) == 10


def group(prompt_id: str) -> Any:
    prompt = type("Named", (), {"id": prompt_id})()
    made = object.__new__(CandidateGroup)
    object.__setattr__(made, "prompt", prompt)
    return made


def test_the_rows_of_groups() -> None:
    """Of four answers one is right, one of the right kind; all tie in the second group; the third failed."""
    scores = torch.tensor([[1.0, 0.5, 0.0, 0.0], [1.0] * 4, [torch.nan] * 4])
    ranks = torch.tensor([[0, 1, 2, 2], [0] * 4, [-1] * 4])
    ranking = Ranking(ranks=ranks, scores=scores, failures=(OracleError("Some", "c", "no idea"),))
    rows = MeasuredGroups().rows_of([group("a"), group("b"), group("c")], ranking)
    assert rows == [
        {"id": "a", "pass_rate": 0.25, "mean_score": 0.375, "samples": 4, "tied": False},
        {"id": "b", "pass_rate": 1.0, "mean_score": 1.0, "samples": 4, "tied": True},
    ]
    unasked = Ranking(ranks=torch.zeros(1, 4, dtype=torch.int64), scores=torch.full((1, 4), torch.nan))
    assert MeasuredGroups().rows_of([group("a")], unasked) == []
    with pytest.raises(OracleError, match="gives no scores to measure pass rates by"):
        MeasuredGroups().rows_of([group("a")], Ranking(ranks=ranks[:1]))


class ReplayLab(Lab):
    """Of the matrix of resumed runs, with a replay of hard prompts: four of sixteen rows."""

    def data(self, kind: str, batch_size: int = 2) -> Any:
        module = super().data(kind, batch_size)
        rows: Any = module.datasets["train"]
        file = self.folder / "rates.jsonl"
        lines = [json.dumps({"id": rows[i].id, "pass_rate": i / len(rows)}) for i in range(len(rows))]
        file.write_text("\n".join(lines))
        module.datasets["train"] = HardPromptReplay(rows, str(file), share=0.25)
        return module


class MeasuringLab(Lab):
    """With a replay whose rates the run measures itself."""

    def make(self, stage: str) -> Any:
        return rlaif(self.model, eval_max_new_tokens=2, oracle=Scored())

    def data(self, kind: str, batch_size: int = 2) -> Any:
        module = super().data(kind, batch_size)
        rows: Any = module.datasets["train"]
        rows._prompts = rows.prompts[:6]
        module.datasets["train"] = HardPromptReplay(rows, share=0.25, measure=True)
        return module


@pytest.mark.parametrize("cut", [(1, 1), pytest.param((1, 3), marks=pytest.mark.slow)])
def test_a_resumed_run_goes_on_with_its_rates(tiny_model: str, data_root: str, tmp_path: Path, cut: Any) -> None:
    """Four batches an epoch; broken off in the second, whose rest, and the third, are drawn as if it were not."""
    lab = MeasuringLab(tiny_model, data_root, tmp_path)
    way = "in_step" if cut == (1, 1) else "steps"
    case = {"way": way, "stage": "rlaif", "data": "map", "accumulate": 2, "validate": None, "cut": cut}
    lab.check(case)


def test_measuring_needs_an_oracle_with_scores(tiny_model: str, data_root: str, tmp_path: Path) -> None:
    lab = MeasuringLab(tiny_model, data_root, tmp_path)
    for module, told in (
        (rlaif(tiny_model, oracle=ByText()), "oracle gives no scores to measure pass rates by"),
        (sft(tiny_model), "SupervisedFineTuning has no oracle to measure by"),
    ):
        with pytest.raises((ValueError, OracleError), match=told):
            trainer(tmp_path, max_steps=1).fit(module, lab.data("map"))


@pytest.mark.slow
def test_a_resumed_run_replays_the_same(tiny_model: str, data_root: str, tmp_path: Path) -> None:
    lab = ReplayLab(tiny_model, data_root, tmp_path)
    case = {"way": "steps", "stage": "rlaif", "data": "map", "accumulate": 1, "validate": None, "cut": (1, 3)}
    lab.check(case)
    whole: Watch = lab.uninterrupted(case)[0]
    first = [ids for epoch, _, _, pair in whole.rows if epoch == 0 for ids in pair]
    assert len(first) == 16
    assert sum("~" in row for row in first) == 4
