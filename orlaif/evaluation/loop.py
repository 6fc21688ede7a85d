"""Greedy evaluation, shared by all stages: validation while training, ``orlaif test`` with a suite, ``orlaif predict``.

Predictions go to JSONL as they are made, so that a test that was interrupted goes on where it stopped; which model and
settings they come from is kept beside them, and predictions of another model are not mixed with new ones.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
from contextlib import ExitStack
from glob import glob
from typing import Any

from lightning import LightningModule

from orlaif.distributed.sync import exchange
from orlaif.evaluation.report import write_results
from orlaif.evaluation.suite import ExactMatch, Record, Suite
from orlaif.evaluation.text_metrics import is_correct
from orlaif.policy import Policy
from orlaif.policy.encoding import ProcessorEncoder
from orlaif.policy.hub import load_processor
from orlaif.rollout import SamplingParams, generate
from orlaif.types import AsksQuestions, Delivery, PromptBatch, Prompts, VideoPrompt

log = logging.getLogger(__name__)


class Evaluated(LightningModule):
    """A module whose policy answers questions.

    Args:
        policy: the model.
        eval_max_new_tokens: longest greedy answer in validation, test and prediction.
        suite: how ``orlaif test`` grades answers; by default exact match and token F1.
    """

    def __init__(self, policy: Policy, eval_max_new_tokens: int, suite: Suite | None = None) -> None:
        super().__init__()
        self.policy = policy
        self.greedy = SamplingParams(max_new_tokens=eval_max_new_tokens, temperature=0.0)
        self.suite = suite or ExactMatch()
        self._predictions: str | None = None
        self._gathered = ExitStack()
        self._marks: dict[str, tuple[str | None, bool]] = {}

    @property
    def run_dir(self) -> str:
        """Folder of this run."""
        return self.trainer.default_root_dir

    def prompt_encoder(self, processor: str | None, system_prompt: str | None) -> ProcessorEncoder:
        """The encoder that the DataModule calls on its threads: :class:`~orlaif.types.BringsEncoder`."""
        if processor is not None:
            return ProcessorEncoder(load_processor(processor), system_prompt)
        # A tokenizer keeps the last call's padding in itself; the step's calls must not meet those of a thread.
        return ProcessorEncoder(copy.deepcopy(self.policy.processor), system_prompt)

    def answer(self, batch: PromptBatch) -> list[str]:
        """One greedy answer per prompt."""
        return [group[0] for group in generate(self.policy, batch, 1, self.greedy).texts] if len(batch) else []

    def _gather(self) -> None:
        """For an evaluation, in which processes may have unequal numbers of questions, hold sharded weights whole."""
        self._gathered.enter_context(self.policy.gathered())

    # ------------------------------------------------------------ validation

    def on_validation_epoch_start(self) -> None:
        """Gather sharded weights."""
        self._gather()

    def validation_step(self, delivery: Delivery, batch_idx: int) -> None:
        """Mark greedy answers, where the data has reference answers."""
        batch = delivery.batch
        for prompt, answer in zip(batch.prompts, self.answer(batch), strict=True):
            if prompt.answer is not None:
                self._marks[prompt.id] = prompt.category, is_correct(answer, prompt.answer)

    def on_validation_epoch_end(self) -> None:
        """``val/accuracy`` and ``val/accuracy/<category>``, of all processes; what two were given counts once."""
        self._gathered.close()
        marks: dict[str, tuple[str | None, bool]] = {}
        for own in exchange(self._marks):
            marks |= own
        self._marks = {}
        by_category: dict[str, list[bool]] = {}
        for category, correct in marks.values():
            if category:
                by_category.setdefault(category, []).append(correct)
        if marks:
            accuracy = sum(correct for _, correct in marks.values()) / len(marks)
            self.log("val/accuracy", accuracy, prog_bar=True, sync_dist=True)
        for category, found in sorted(by_category.items()):
            self.log(f"val/accuracy/{category}", sum(found) / len(found), sync_dist=True)

    # ----------------------------------------------------------- predictions

    def _path(self, stage: str) -> str:
        rank = f"-rank{self.global_rank}" if self.trainer.world_size > 1 else ""
        return os.path.join(self.run_dir, "predictions", f"{stage}{rank}.jsonl")

    def _open_predictions(self, stage: str) -> None:
        """A fresh file."""
        self._predictions = self._path(stage)
        os.makedirs(os.path.dirname(self._predictions), exist_ok=True)
        open(self._predictions, "w").close()

    def _write_predictions(self, records: list[Record]) -> None:
        assert self._predictions is not None
        with open(self._predictions, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)

    # ------------------------------------------------------------------ test

    def setup(self, stage: str) -> None:
        """Before a test, find out which of its questions have been answered already."""
        if stage != "test":
            return
        data = self._data()
        questions = data.questions("test")
        folder = os.path.join(self.run_dir, "predictions")
        made_by, about = self._made_by(data, questions), os.path.join(folder, "test.about.json")
        done: dict[str, Record] = {}
        if os.path.exists(about):
            with open(about, encoding="utf-8") as file:
                known = json.load(file)
            if known == made_by:
                done = self._answered()
            else:
                changed = sorted(key for key in made_by if known.get(key) != made_by[key])
                log.info("%s: predictions were made with another %s; starting anew", folder, ", ".join(changed))
        self.trainer.strategy.barrier()  # all have read before anyone writes
        if self.trainer.is_global_zero:
            os.makedirs(folder, exist_ok=True)
            old = glob(os.path.join(folder, "skipped*.jsonl"))  # bad videos are tried again
            for path in old if done else [*old, *glob(os.path.join(folder, "test*.jsonl"))]:
                os.remove(path)
            with open(about, "w", encoding="utf-8") as file:
                json.dump(made_by, file, indent=2)
        self.trainer.strategy.barrier()
        if done:
            log.info("%s: %d questions have been answered before", folder, len(done))
        data.leave_out["test"] = set(done)

    def _data(self) -> AsksQuestions:
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, AsksQuestions):
            raise ValueError(
                "a test needs a DataModule that knows its questions: orlaif.VideoDataModule with data.test"
            )
        return data

    def _made_by(self, data: AsksQuestions, asked: Prompts) -> dict[str, Any]:
        """What predictions depend on."""
        path = self.policy.path
        files = sorted(glob(os.path.join(path, "*"))) if os.path.isdir(path) else []
        ckpt = getattr(self.trainer, "ckpt_path", None)
        stats = [(os.path.basename(f), (s := os.stat(f)).st_size, s.st_mtime_ns) for f in files]
        questions = [(p.id, p.question, p.video) for p in (asked[i] for i in range(len(asked)))]
        return {
            "model": path,
            "dtype": self.policy.dtype,
            "files": hashlib.sha256(json.dumps(stats).encode()).hexdigest(),
            "checkpoint": None if ckpt is None else [str(ckpt), os.stat(ckpt).st_mtime_ns],
            "global_step": self.global_step,
            "max_new_tokens": self.greedy.max_new_tokens,
            **data.answers_depend_on(),
            "questions": hashlib.sha256(json.dumps(questions).encode()).hexdigest(),
        }

    def _answered(self) -> dict[str, Record]:
        """Predictions of all ranks by id; a last line that a killed process left half written is cut off."""
        found: dict[str, Record] = {}
        for path in sorted(glob(os.path.join(self.run_dir, "predictions", "test*.jsonl"))):
            with open(path, "rb") as file:
                content = file.read()
            whole = content[: content.rfind(b"\n") + 1]
            if whole != content and path == self._path("test"):
                with open(path, "wb") as file:
                    file.write(whole)
            found |= {record["id"]: record for record in map(json.loads, whole.splitlines())}
        return found

    def _left_out(self) -> list[dict[str, str]]:
        """Bad videos that all ranks met."""
        found = []
        for path in sorted(glob(os.path.join(self.run_dir, "predictions", "skipped*.jsonl"))):
            with open(path, encoding="utf-8") as file:
                found += [json.loads(line) for line in file]
        return found

    def on_test_epoch_start(self) -> None:
        """Go on with ``predictions/test.jsonl``; gather sharded weights."""
        self._gather()
        self._predictions = self._path("test")

    def test_step(self, delivery: Delivery, batch_idx: int) -> None:
        """A line per prompt in ``predictions/test.jsonl``."""
        batch = delivery.batch
        if delivery.skipped:
            with open(self._path("skipped"), "a", encoding="utf-8") as file:
                file.writelines(json.dumps({"video": e.path, "cause": e.cause}) + "\n" for e in delivery.skipped)
        answers = self.answer(batch)
        self._write_predictions([_record(p, a) for p, a in zip(batch.prompts, answers, strict=True)])

    def on_test_epoch_end(self) -> None:
        """Grade all answers, write the results (``orlaif.evaluation.report``), and log the metrics."""
        self._gathered.close()
        self.trainer.strategy.barrier()
        metrics: dict[str, float] = {}
        if self.trainer.is_global_zero:
            data = self._data()
            answered = self._answered()
            questions = data.questions("test")
            order = [questions[i].id for i in range(len(questions))]
            graded = self.suite.grade([answered[name] for name in order if name in answered])
            about = {
                **self.suite.about(),
                "made_by": self._made_by(data, questions),
                "answered": len(graded),
                "asked": len(order),
                "skipped": self._left_out(),
            }
            metrics = write_results(self.run_dir, self.suite, graded, about)
            log.info("results in %s", os.path.join(self.run_dir, "results.md"))
        for name, value in self.trainer.strategy.broadcast(metrics).items():
            self.log(f"test/{name}", value, rank_zero_only=True)

    # --------------------------------------------------------------- predict

    def on_predict_epoch_start(self) -> None:
        """A fresh ``predictions/predict.jsonl``; gather sharded weights."""
        self._gather()
        self._open_predictions("predict")

    def on_predict_epoch_end(self) -> None:
        """Free what was gathered."""
        self._gathered.close()

    def predict_step(self, delivery: Delivery, batch_idx: int) -> Any:
        """The greedy answers, also written to ``predictions/predict.jsonl``."""
        batch = delivery.batch
        answers = self.answer(batch)
        self._write_predictions(
            [{"id": p.id, "question": p.question, "prediction": a} for p, a in zip(batch.prompts, answers, strict=True)]
        )
        return answers


def _record(prompt: VideoPrompt, answer: str) -> Record:
    record: Record = {
        "id": prompt.id,
        "question": prompt.question,
        "prediction": answer,
        "category": prompt.category,
        "tags": dict(prompt.tags),
    }
    if prompt.answer is not None:
        record["answer"] = prompt.answer
    if prompt.options is not None:
        record["options"] = list(prompt.options)
    return record


class Evaluation(Evaluated):
    """A model that is only evaluated: ``orlaif test --config recipes/eval_....yaml``.

    Args:
        policy: the model.
        suite: how answers are graded; by default exact match and token F1.
        eval_max_new_tokens: longest greedy answer.
    """

    def __init__(self, policy: Policy, suite: Suite | None = None, eval_max_new_tokens: int = 64) -> None:
        super().__init__(policy, eval_max_new_tokens, suite)

    def configure_model(self) -> None:
        """Load the policy; idempotent."""
        self.policy.load()
