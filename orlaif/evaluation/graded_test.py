"""``orlaif test``: greedy answers to all questions of ``data.test``, graded by a suite.

Answers are dear and grades are cheap, so the two are kept apart. An answer is kept as long as what it depends on is the
same: the model and its settings (``predictions/test.about.json``), and what was asked (a hash beside each answer).
Grades are made anew by every test, from the answers that there are and the labels that the data has now. So a test that
was interrupted goes on where it stopped, wherever that was, and corrected labels, another suite, or a judge that is
back are a matter of asking for the test again.

Results that lie there when a test begins are put aside in ``stale`` until there are new ones.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from glob import escape, glob
from typing import Any

from orlaif.answer_format import AnswerFormat, WholeAnswer
from orlaif.distributed.sync import raise_together
from orlaif.evaluation.loop import Evaluated, Loop
from orlaif.evaluation.predictions import (
    Predictions,
    changed_names,
    labels_key,
    question_key,
    read_object,
    record_of,
    write_object,
    written,
)
from orlaif.evaluation.report import GRADED, PAGE, PLOT, RESULTS, write_results
from orlaif.evaluation.suite import ExactMatch, Record, Suite
from orlaif.types import AsksQuestions, Delivery, Prompt

log = logging.getLogger(__name__)
STALE = "stale"
UNREADABLE = "answer/unreadable"


class GradedTest(Loop):
    """Answers what has not been answered, and grades all.

    Args:
        suite: how answers are graded; by default exact match and token F1.
    """

    def __init__(self, suite: Suite | None = None) -> None:
        self.suite = suite or ExactMatch()
        #: Of the current test, from :meth:`setup` on: what answers depend on, questions by id, and their keys.
        self._made_by: dict[str, Any] = {}
        self._format: AnswerFormat = WholeAnswer()
        self._questions: dict[str, Prompt] = {}
        self._keys: dict[str, str] = {}

    def setup(self, module: Evaluated) -> None:
        """Find out which questions have been answered already, and leave them out.

        Raises:
            ValueError: there are no questions, or the suite cannot grade them.
        """
        data = _data(module)
        prompts = data.questions("test")
        self._labels = labels_key(prompts)
        self._questions = {prompt.id: prompt for prompt in (prompts[i] for i in range(len(prompts)))}
        self.suite.check(list(self._questions.values()))
        self._keys = {name: question_key(prompt) for name, prompt in self._questions.items()}
        self._format = module.policy.answer_format
        self._made_by = made_by(module, data)
        process = module.global_rank, module.trainer.world_size
        self._predictions = Predictions(module.run_dir, "test", *process)
        self._skipped = Predictions(module.run_dir, "skipped", *process)
        about = os.path.join(self._predictions.folder, "test.about.json")
        known = read_object(about)
        changed = [] if known is None else changed_names(known, self._made_by)
        usable = known is not None and not changed
        answered = self._answered() if usable else {}
        outdated = {record["id"] for record in self._predictions.read()} - answered.keys() if usable else set()
        module.trainer.strategy.barrier()  # all have read before anyone writes
        if module.trainer.is_global_zero:
            self._skipped.remove()  # bad videos are tried again
            if not usable:
                self._predictions.remove()
            write_object(about, self._made_by)
            _put_aside(module.run_dir, self._depends_on())
        module.trainer.strategy.barrier()
        self._predictions.cut()
        where = self._predictions.folder
        if changed:
            log.info("%s: predictions were made with another %s; starting anew", where, ", ".join(changed))
        if outdated:
            log.info("%s: %d answers are to questions that have changed or are gone", where, len(outdated))
        if answered:
            log.info("%s: %d questions have been answered before", where, len(answered))
        data.leave_out["test"] = set(answered)

    def step(self, module: Evaluated, delivery: Delivery, batch_idx: int) -> None:
        """A line per prompt in ``predictions/test.jsonl``."""
        if delivery.skipped:
            self._skipped.append({"video": e.path, "cause": e.cause} for e in delivery.skipped)
        if batch := delivery.batch:
            answers = module.answer(batch)
            self._predictions.append(
                {**record_of(prompt, answer, self._format), "key": self._keys[prompt.id]}
                for prompt, answer in zip(batch.prompts, answers, strict=True)
            )

    def end(self, module: Evaluated) -> None:
        """Grade all answers, write the results (``orlaif.evaluation.report``), and log the metrics.

        Raises:
            Exception: on all processes, what kept the suite from grading; the answers are kept.
        """
        module.trainer.strategy.barrier()
        metrics: dict[str, float] = {}
        error = None
        if module.trainer.is_global_zero:
            try:
                metrics = self._grade(module.run_dir)
            except Exception as problem:
                log.error("%s", self._not_graded(module.run_dir))
                error = problem
        raise_together(error)
        for name, value in module.trainer.strategy.broadcast(metrics).items():
            module.log(f"test/{name}", value, rank_zero_only=True)

    def _answered(self) -> dict[str, Record]:
        """Answers of all processes to the questions as they are now, by id."""
        records = self._predictions.read()
        return {
            r["id"]: r for r in records if "prediction" in r and r.get("key") == self._keys.get(str(r.get("id")), "")
        }

    def _depends_on(self) -> dict[str, Any]:
        """What results depend on besides the answers: how they were made, the labels, the suite and its judge."""
        return {
            **self.suite.about(),
            "answer_format": repr(self._format),
            "made_by": self._made_by,
            "labels": self._labels,
        }

    def _grade(self, run_dir: str) -> dict[str, float]:
        answered = self._answered()
        texts = {name: written(record) for name, record in answered.items()}
        records = [record_of(p, texts[name], self._format) for name, p in self._questions.items() if name in texts]
        graded = self.suite.grade(records)
        counts = {"answered": len(graded), "asked": len(self._questions), "skipped": self._skipped.read()}
        unreadable = {}
        if texts and not isinstance(self._format, WholeAnswer):
            unreadable = {UNREADABLE: sum(self._format.read(t).answer is None for t in texts.values()) / len(texts)}
        metrics = (
            write_results(run_dir, self.suite, graded, {**self._depends_on(), **counts, **unreadable}) | unreadable
        )
        shutil.rmtree(os.path.join(run_dir, STALE), ignore_errors=True)
        if len(graded) < len(self._questions):
            log.warning("only %d of %d questions are answered and graded", len(graded), len(self._questions))
        log.info("results in %s", os.path.join(run_dir, PAGE))
        return metrics

    def _not_graded(self, run_dir: str) -> str:
        said = f"the {len(self._answered())} answers in {self._predictions.folder} are kept, but could not be graded; "
        said += "`orlaif test` again grades them"
        stale = os.path.join(run_dir, STALE)
        return f"{said}; {stale} holds results of an earlier test" if os.path.isdir(stale) else said


def _data(module: Evaluated) -> AsksQuestions:
    data = getattr(module.trainer, "datamodule", None)
    if not isinstance(data, AsksQuestions):
        raise ValueError("a test needs a DataModule that knows its questions: orlaif.VideoDataModule with data.test")
    return data


def made_by(module: Evaluated, data: AsksQuestions) -> dict[str, Any]:
    """What all answers of a test depend on: the model, its settings, and those of the data."""
    policy = module.policy
    path = policy.path
    folders = [policy.source.adapter, policy.source.model] if os.path.isdir(path) else []
    files = [file for folder in folders if folder for file in sorted(glob(os.path.join(escape(folder), "*")))]
    stats = [(os.path.basename(f), (s := os.stat(f)).st_size, s.st_mtime_ns) for f in files]
    ckpt = getattr(module.trainer, "ckpt_path", None)
    there = ckpt is not None and os.path.exists(ckpt)
    settings = {
        "model": path,
        "dtype": policy.dtype,
        "quantization": None if policy.quantization is None else json.dumps(policy.quantization, sort_keys=True),
        "files": hashlib.sha256(json.dumps(stats).encode()).hexdigest(),
        "checkpoint": None if ckpt is None else [str(ckpt), os.stat(ckpt).st_mtime_ns if there else None],
        "global_step": module.global_step,
        "max_new_tokens": module.greedy.max_new_tokens,
        "chat": repr(policy.chat),
        **data.answers_depend_on(),
    }
    return json.loads(json.dumps(settings))  # as it will be read again: JSON has no tuples


def _put_aside(run_dir: str, depends_on: dict[str, Any]) -> None:
    """Move results that lie in the run's folder to ``stale``, and say what they were made with that is another now."""
    there = [name for name in (RESULTS, GRADED, PAGE, PLOT) if os.path.exists(os.path.join(run_dir, name))]
    if not there:
        return
    before = (read_object(os.path.join(run_dir, RESULTS)) or {}).get("about")
    if isinstance(before, dict):
        before = {
            name: value for name, value in before.items() if name not in ("answered", "asked", "skipped", UNREADABLE)
        }
        if changed := changed_names(before, json.loads(json.dumps(depends_on))):
            log.info("%s: results were made with another %s; graded anew", run_dir, ", ".join(changed))
    stale = os.path.join(run_dir, STALE)
    shutil.rmtree(stale, ignore_errors=True)
    os.makedirs(stale)
    for name in there:
        os.replace(os.path.join(run_dir, name), os.path.join(stale, name))
