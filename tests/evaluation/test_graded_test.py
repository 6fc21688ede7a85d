"""``orlaif test`` keeps answers and makes grades anew: tested with a module that answers from a list."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer

from orlaif import VideoDataModule
from orlaif.answer_format import named_format
from orlaif.data.datasets import JsonlDataset
from orlaif.data.video import UniformSampling
from orlaif.evaluation.answers import Accuracy, WrittenAnswers
from orlaif.evaluation.graded_test import GradedTest
from orlaif.evaluation.loop import Evaluated
from orlaif.evaluation.suite import ExactMatch, Record
from orlaif.policy import Policy
from orlaif.types import PromptBatch, PromptEncoder, VideoClip, VideoPrompt


class Blind:
    """An encoder that looks at nothing."""

    def __call__(self, prompts: Sequence[VideoPrompt], clips: Sequence[VideoClip]) -> PromptBatch:
        ids = torch.ones(len(prompts), 1, dtype=torch.int64)
        return PromptBatch(prompts=tuple(prompts), clips=tuple(clips), input_ids=ids, attention_mask=ids, mm_inputs={})


class Parrot(Evaluated):
    """Answers ``red`` to everything, and notes what it was asked."""

    def __init__(self, model: str, suite: Any = None, max_new_tokens: int = 4) -> None:
        loops = {"validate": Accuracy(), "test": GradedTest(suite), "predict": WrittenAnswers()}
        super().__init__(Policy(model), max_new_tokens, loops)  # type: ignore[arg-type]
        self.asked: list[str] = []

    def prompt_encoder(self, processor: str | None, system_prompt: str | None) -> PromptEncoder:
        return Blind()

    def answer(self, batch: PromptBatch) -> list[str]:
        self.asked += [prompt.id for prompt in batch.prompts]
        return ["red"] * len(batch)


class Down(ExactMatch):
    """A judge whose server does not answer."""

    def grade(self, records: Sequence[Record]) -> list[Record]:
        raise ConnectionError("http://judge: connection refused")


class Lenient(ExactMatch):
    """Likes everything."""

    def grade(self, records: Sequence[Record]) -> list[Record]:
        return [{**record, "scores": {"exact_match": 1.0, "token_f1": 1.0}} for record in records]

    def about(self) -> dict[str, Any]:
        return {**super().about(), "mood": "good"}


class Lab:
    """A folder with a run and its six questions."""

    def __init__(self, root: Path, model: str, data_root: str) -> None:
        self.root, self.model = root, model
        index = next(Path(data_root).glob("*/test-20.jsonl"))
        self.rows = [json.loads(line) for line in index.read_text().splitlines()[:6]]
        for row in self.rows:
            row["video"] = str(index.parent / row["video"])
            row["answer"] = "purple"

    def test(self, suite: Any = None, batch_size: int = 4, **settings: Any) -> Parrot:
        path = self.root / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        data = VideoDataModule(
            test=JsonlDataset(str(path)), sampling=UniformSampling(2), batch_size=batch_size, num_workers=0
        )
        module = Parrot(self.model, suite, **settings)
        trainer = Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=str(self.root / "run")
        )
        trainer.test(module, data, verbose=False)
        module.metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}  # type: ignore
        return module

    def results(self) -> Any:
        return json.loads((self.root / "run" / "results.json").read_text())

    @property
    def run(self) -> Path:
        return self.root / "run"


@pytest.fixture
def lab(tmp_path: Path, tiny_model: str, data_root: str) -> Lab:
    return Lab(tmp_path, tiny_model, data_root)


def test_answers_are_read_by_the_policys_format_and_texts_are_kept(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another format is another reading of the same texts."""
    text = "<think>a</think><answer>purple</answer>"
    monkeypatch.setattr(Parrot, "answer", lambda self, batch: [text, *["red"] * (len(batch) - 1)])
    first = lab.test(batch_size=6)
    assert first.metrics["test/accuracy"] == 0.0
    assert "test/answer/unreadable" not in first.metrics
    setattr_of = Parrot.__init__

    def tagged(self: Parrot, *args: Any, **settings: Any) -> None:
        setattr_of(self, *args, **settings)
        self.policy.answer_format = named_format("think_answer")

    monkeypatch.setattr(Parrot, "__init__", tagged)
    monkeypatch.setattr(Parrot, "answer", lambda self, batch: pytest.fail("asked again"))
    again = lab.test(batch_size=6)
    assert again.metrics["test/accuracy"] == pytest.approx(1 / 6)
    assert again.metrics["test/answer/unreadable"] == pytest.approx(5 / 6)
    graded = [json.loads(line) for line in (lab.run / "graded.jsonl").read_text().splitlines()]
    assert (graded[0]["prediction"], graded[0]["completion"]) == ("purple", text)
    assert (graded[1]["prediction"], graded[1]["completion"]) == ("", "red")


def test_corrected_labels_are_graded_and_nothing_is_asked_again(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    assert len(lab.test().asked) == 6
    assert lab.results()["metrics"]["accuracy"] == 0.0
    lab.rows[0]["answer"] = lab.rows[1]["answer"] = lab.rows[2]["answer"] = "red"
    lab.rows[3]["category"] = "hue"
    with caplog.at_level("INFO", logger="orlaif"):
        again = lab.test()
    assert again.asked == []
    assert lab.results()["metrics"]["accuracy"] == 0.5
    assert lab.results()["metrics"]["accuracy/hue"] == 0.0
    assert again.metrics["test/accuracy"] == 0.5  # type: ignore[attr-defined]
    assert "results were made with another labels; graded anew" in caplog.text
    assert "6 questions have been answered before" in caplog.text


def test_another_suite_grades_the_same_answers(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    lab.test()
    with caplog.at_level("INFO", logger="orlaif"):
        assert lab.test(Lenient()).asked == []
    assert lab.results()["metrics"]["accuracy"] == 1.0
    assert lab.results()["about"]["mood"] == "good"
    assert "results were made with another mood, suite; graded anew" in caplog.text


def test_a_judge_that_is_down_leaves_answers_and_no_results(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    lab.test()
    for _ in range(2):  # the second finds no results to put aside, and keeps those of the first
        with pytest.raises(ConnectionError, match="connection refused"):
            lab.test(Down())
        assert not (lab.run / "results.json").exists(), "what another test found is no result of this one"
        assert (lab.run / "stale" / "results.json").exists()
    assert "the 6 answers in" in caplog.text
    assert "could not be graded; `orlaif test` again grades them" in caplog.text
    assert "holds results of an earlier test" in caplog.text
    assert lab.test().asked == []
    assert lab.results()["about"]["answered"] == 6
    assert not (lab.run / "stale").exists()


@pytest.mark.parametrize("lost", [["results.json"], ["results.json", "results.md", "graded.jsonl"]])
def test_a_test_that_was_killed_before_its_grades(lab: Lab, lost: list[str]) -> None:
    lab.test()
    whole = lab.results()
    for name in lost:
        (lab.run / name).unlink()
    assert lab.test().asked == []
    assert lab.results() == whole
    assert (lab.run / "results.md").exists()


def test_a_changed_question_is_asked_again_and_others_are_not(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    lab.test()
    first, second, third = (row["id"] for row in lab.rows[:3])
    lab.rows[0]["question"] = "what is it not ?"
    lab.rows[1] |= {"start_s": 0.0, "end_s": 1.0}
    lab.rows[2]["video"] = lab.rows[3]["video"]
    gone = lab.rows.pop()
    lab.rows.append({**lab.rows[4], "id": "new"})
    with caplog.at_level("INFO", logger="orlaif"):
        assert lab.test(batch_size=1).asked == [first, second, third, "new"]
    assert "4 answers are to questions that have changed or are gone" in caplog.text
    graded = [json.loads(line)["id"] for line in (lab.run / "graded.jsonl").read_text().splitlines()]
    assert graded == [row["id"] for row in lab.rows]
    assert gone["id"] not in graded


def test_what_cannot_be_read_is_said_and_asked_again(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    lab.test()
    whole = lab.results()
    path = lab.run / "predictions" / "test.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:20], "7", *lines[3:5], lines[5][:-5]]))
    assert lab.test().asked == [lab.rows[i]["id"] for i in (1, 2, 5)]
    assert "test.jsonl, line 2: no prediction can be read there" in caplog.text
    assert "test.jsonl, line 3: no prediction can be read there" in caplog.text
    assert lab.results() == whole
    (lab.run / "predictions" / "test.about.json").write_text('{"model": ')
    assert len(lab.test().asked) == 6
    assert "test.about.json cannot be read; it does not count" in caplog.text
    (lab.run / "results.json").write_text("{")
    assert lab.test().asked == []
    assert lab.results() == whole


def test_another_setting_of_the_model_starts_anew(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    lab.test()
    with caplog.at_level("INFO", logger="orlaif"):
        assert len(lab.test(max_new_tokens=2).asked) == 6
    assert "predictions were made with another max_new_tokens; starting anew" in caplog.text
    assert len((lab.run / "predictions" / "test.jsonl").read_text().splitlines()) == 6


def test_an_answer_that_is_missing_is_said(lab: Lab, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    lab.rows[2]["video"] = str(tmp_path / "none.mp4")
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in lab.rows))
    data = VideoDataModule(
        test=JsonlDataset(str(path)), sampling=UniformSampling(2), on_bad_video="skip", max_bad_rate=1.0
    )
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=str(lab.run))
    trainer.test(Parrot(lab.model), data, verbose=False)
    assert "only 5 of 6 questions are answered and graded" in caplog.text
    assert lab.results()["about"]["skipped"] == [{"video": str(tmp_path / "none.mp4"), "cause": "no such file"}]


def test_a_test_without_questions_is_refused(lab: Lab) -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=str(lab.run))
    with pytest.raises(ValueError, match=r"data.test is missing; the recipe must name a dataset for it"):
        trainer.test(Parrot(lab.model), VideoDataModule(), verbose=False)
