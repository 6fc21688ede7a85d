"""The loops of greedy answers: marked for ``val/accuracy``, or written as they are for ``orlaif predict``."""

from __future__ import annotations

from typing import Any

from orlaif.answer_format import WholeAnswer
from orlaif.distributed.sync import exchange
from orlaif.evaluation.loop import Evaluated, Loop
from orlaif.evaluation.predictions import Predictions, as_read
from orlaif.evaluation.text_metrics import is_correct
from orlaif.types import Delivery


class Accuracy(Loop):
    """``val/accuracy`` and ``val/accuracy/<category>`` of all processes, where the data has reference answers.

    And ``val/answer/unreadable``, where the policy's format finds no answer in some text.
    """

    def __init__(self) -> None:
        self._marks: dict[str, tuple[str | None, bool]] = {}
        self._unreadable: dict[str, bool] = {}

    def start(self, module: Evaluated) -> None:
        """Forget the marks of an evaluation that was broken off."""
        self._marks, self._unreadable = {}, {}

    def step(self, module: Evaluated, delivery: Delivery, batch_idx: int) -> None:
        """Mark the answers of a batch."""
        for prompt, answer in zip(delivery.batch.prompts, module.answer(delivery.batch), strict=True):
            read = module.policy.answer_format.read(answer)
            self._unreadable[prompt.id] = read.answer is None
            if prompt.answer is not None:
                correct = read.answer is not None and is_correct(read.answer, prompt.answer)
                self._marks[prompt.id] = prompt.category, correct

    def end(self, module: Evaluated) -> None:
        """Log; what two processes were given counts once."""
        marks: dict[str, tuple[str | None, bool]] = {}
        unreadable: dict[str, bool] = {}
        for theirs, not_read in exchange((self._marks, self._unreadable)):
            marks |= theirs
            unreadable |= not_read
        if unreadable and not isinstance(module.policy.answer_format, WholeAnswer):
            module.log("val/answer/unreadable", sum(unreadable.values()) / len(unreadable), sync_dist=True)
        by_category: dict[str, list[bool]] = {}
        for category, correct in marks.values():
            if category:
                by_category.setdefault(category, []).append(correct)
        if marks:
            accuracy = sum(correct for _, correct in marks.values()) / len(marks)
            module.log("val/accuracy", accuracy, prog_bar=True, sync_dist=True)
        for category, correct_ones in sorted(by_category.items()):
            share = sum(correct_ones) / len(correct_ones)
            module.log(f"val/accuracy/{category}", share, sync_dist=True)


class WrittenAnswers(Loop):
    """The answers, returned, and written to ``predictions/predict.jsonl`` as they are made."""

    def start(self, module: Evaluated) -> None:
        """Empty the file of predictions that an earlier run may have left."""
        self._predictions = Predictions(module.run_dir, "predict", module.global_rank, module.trainer.world_size)
        self._predictions.clear()

    def step(self, module: Evaluated, delivery: Delivery, batch_idx: int) -> Any:
        """Answer the questions of a batch and write them; returns the texts as they were written, one per prompt."""
        prompts, answers = delivery.batch.prompts, module.answer(delivery.batch)
        self._predictions.append(
            {"id": p.id, "question": p.question, **as_read(text, module.policy.answer_format)}
            for p, text in zip(prompts, answers, strict=True)
        )
        return answers
