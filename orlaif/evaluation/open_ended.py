"""Open-ended video QA (MSVD-QA, MSRVTT-QA, ActivityNet-QA): graded by a judge as Maaz et al. (2023) do, and judge-free.

The judge is shown question, reference answer and prediction and says yes or no and a score from 0 to 5. Accuracy is the
share of yes among the answers that were judged; replies that cannot be read are counted, not guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orlaif.evaluation.grader import ChatGrader, Ungraded, comparison, read_object, read_score
from orlaif.evaluation.suite import (
    UNGRADED_COLUMNS,
    ExactMatch,
    Record,
    Suite,
    Table,
    mean_of,
    needed,
    table,
    ungraded_rates,
    with_counts,
)

INSTRUCTIONS = (
    "You grade answers to questions about videos. Compare the predicted answer with the correct one: they match if "
    "they mean the same; synonyms and paraphrases match. Grade how well they agree, from 0 (not at all) to 5. Reply "
    'with one JSON object and nothing else, such as {"pred": "yes", "score": 4}: "pred" is "yes" or "no", '
    '"score" a whole number from 0 to 5.'
)
ACTIVITYNET_TYPES = ("motion", "spatial", "temporal", "yes/no", "color", "object", "location", "number", "other")


def read_verdict(reply: str) -> dict[str, Any]:
    """``pred`` yes or no, and ``score``, from a judge's reply; raises ValueError for anything else."""
    said = read_object(reply)
    pred = str(said.get("pred")).strip().lower()
    if pred not in ("yes", "no"):
        raise ValueError(f"'pred' is {said.get('pred')!r}; it must be yes or no")
    return {"pred": pred, "score": read_score(said.get("score"))}


class OpenEndedSuite(Suite):
    """Accuracy and mean score by a judge, where there is one; exact match and token F1 always.

    Args:
        judge: grades answers; None leaves the judge's columns out.
        types: names of the numbered kinds of question, in order, for the table; ``activitynet`` for ActivityNet-QA's.
        instructions: what the judge is told; it must ask for the reply that :func:`read_verdict` reads.
    """

    def __init__(
        self,
        judge: ChatGrader | None = None,
        types: Sequence[str] | None = None,
        instructions: str = INSTRUCTIONS,
    ) -> None:
        self.judge, self.instructions = judge, instructions
        self.types = ACTIVITYNET_TYPES if types is not None and list(types) == ["activitynet"] else tuple(types or ())

    def grade(self, records: Sequence[Record]) -> list[Record]:
        """Adds ``verdict``: what the judge said, or why nothing could be read, which is then ``unreadable``."""
        graded = ExactMatch().grade(records)
        if self.judge is None:
            return graded
        name = type(self).__name__
        shown = [comparison(one["question"], needed(one, "answer", name), one["prediction"]) for one in graded]
        replies = self.judge.ask_all([(self.instructions, one, read_verdict) for one in shown])
        for record, verdict in zip(graded, replies, strict=True):
            if isinstance(verdict, Ungraded):
                record["verdict"] = verdict.record()
                record["scores"] |= {"judged": None, "score": None}
            else:
                record["verdict"] = verdict
                record["scores"] |= {"judged": float(verdict["pred"] == "yes"), "score": verdict["score"]}
            record["scores"]["unreadable"] = float(record["verdict"].get("ungraded") == "unreadable")
        return graded

    def tables(self, records: Sequence[Record]) -> list[Table]:
        """One table with a row for each kind of question, and one for all."""
        columns = list(ExactMatch.COLUMNS)
        if self.judge is not None:
            *columns, _ = [("judged accuracy %", "judged"), ("score (0-5)", "score"), *columns]
            records = [with_counts(record, [record["verdict"]]) for record in records]
            columns += UNGRADED_COLUMNS
        return [table("Open-ended answers by kind of question", records, columns, self._kind)]

    def _kind(self, record: Record) -> str | None:
        kind = record.get("category")
        return self.types[int(kind)] if kind and kind.isdigit() and int(kind) < len(self.types) else kind

    def metrics(self, records: Sequence[Record]) -> dict[str, float]:
        """``accuracy``, ``token_f1``; of a judge ``judged_accuracy``, ``judged_score``, and rates without a grade."""
        names = {
            "accuracy": "exact_match",
            "token_f1": "token_f1",
            "judged_accuracy": "judged",
            "judged_score": "score",
        }
        means = {name: value for name, score in names.items() if (value := mean_of(records, score)) is not None}
        if self.judge is not None:
            means |= ungraded_rates([record["verdict"] for record in records])
        return means

    def about(self) -> dict[str, Any]:
        """What the report pins: also the judge with its instructions, None without a judge."""
        return {**super().about(), "judge": None if self.judge is None else self.judge.about(self.instructions)}
