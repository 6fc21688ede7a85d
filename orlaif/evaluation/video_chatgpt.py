"""Video-ChatGPT's five dimensions of free answers (Maaz et al. 2023), each scored 0 to 5 by a judge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orlaif.evaluation.grader import ChatGrader, Ungraded, comparison, read_object, read_score
from orlaif.evaluation.quoting import QUOTED_NOTE, quoted
from orlaif.evaluation.suite import UNGRADED_COLUMNS, Record, Suite, Table, mean_of, needed, ungraded_rates

_REPLY = (
    ' Reply with one JSON object and nothing else, such as {"score": 3}: "score" is a whole number from 0 (worst) to 5 '
    "(best)."
)
ASKED = {
    "correctness": "whether its facts are right: nothing that contradicts the correct answer, nothing misread",
    "detail": "how complete and specific it is: all major points of the correct answer, with particulars instead of "
    "generalities",
    "context": "whether it grasps what the video is about as a whole, as the correct answer does",
    "temporal": "whether it gets the order and timing of events right, as in the correct answer",
    "consistency": "whether both predicted answers say the same: the two questions ask for one thing in different "
    "words, and neither answer may contradict the other or the correct answer",
}
#: Which dimensions each of the benchmark's files is judged by.
OF_FILE = {
    "generic": ("correctness", "detail", "context"),
    "temporal": ("temporal",),
    "consistency": ("consistency",),
}
#: What the table says of answers without a grade.
COLUMNS = (*UNGRADED_COLUMNS, ("n unasked", "unasked"))


def instructions(dimension: str) -> str:
    """What the judge is told for a dimension."""
    return f"You grade answers to questions about videos. Judge the predicted answer by {ASKED[dimension]}.{_REPLY}"


def _shown(record: Record, second: Record | None) -> str:
    """What the judge sees: one answer, or the two of a pair."""
    if second is None:
        return comparison(record["question"], record["answer"], record["prediction"])
    return (
        f"Question 1: {record['question']}\nQuestion 2: {second['question']}\nThe answers, {QUOTED_NOTE}.\n"
        f"Correct answer: {quoted(record['answer'])}\n"
        f"Predicted answer to question 1: {quoted(record['prediction'])}\n"
        f"Predicted answer to question 2: {quoted(second['prediction'])}"
    )


def _read(reply: str) -> dict[str, Any]:
    return {"score": read_score(read_object(reply).get("score"))}


class VideoChatGPTSuite(Suite):
    """Mean scores of the five dimensions over the prompts of ``orlaif.data.benchmarks.VideoChatGPT``.

    Args:
        judge: grades answers.
    """

    def __init__(self, judge: ChatGrader) -> None:
        self.judge = judge

    def grade(self, records: Sequence[Record]) -> list[Record]:
        """Adds ``verdicts`` by dimension; a pair of the consistency file is scored once, on its first record."""
        by_id = {record["id"]: record for record in records}
        graded: list[Record] = [{**record, "scores": {}, "verdicts": {}} for record in records]
        asked: list[tuple[Record, str, tuple[str, str]]] = []
        for record in graded:
            for dimension in OF_FILE[needed(record, "file", type(self).__name__)]:
                second = None
                if dimension == "consistency":
                    if not record["id"].endswith("/1"):
                        continue
                    second = by_id.get(f"{record['id'][:-1]}2")
                    if second is None:
                        cause = "its second question was not answered"
                        record["verdicts"][dimension] = {"ungraded": "unasked", "cause": cause}
                        record["scores"][dimension] = None
                        continue
                asked.append((record, dimension, (instructions(dimension), _shown(record, second))))
        replies = self.judge.ask_all([(*question, _read) for _, _, question in asked])
        for (record, dimension, _), reply in zip(asked, replies, strict=True):
            record["verdicts"][dimension] = reply.record() if isinstance(reply, Ungraded) else reply
            record["scores"][dimension] = None if isinstance(reply, Ungraded) else reply["score"]
        return graded

    def tables(self, records: Sequence[Record]) -> list[Table]:
        """One table with a row for each dimension that the judge scores from 0 to 5."""
        rows = []
        for dimension in ASKED:
            scored = [record for record in records if dimension in record["scores"]]
            kinds = [record["verdicts"][dimension].get("ungraded") for record in scored]
            counts = [kinds.count(kind) for _, kind in COLUMNS]
            rows.append((dimension, len(scored), (mean_of(scored, dimension), *counts)))
        headings = tuple(heading for heading, _ in COLUMNS)
        return [Table("Video-ChatGPT's dimensions", ("score (0-5)", *headings), tuple(rows))]

    def metrics(self, records: Sequence[Record]) -> dict[str, float]:
        """Each dimension's mean, their mean as ``score``, ``unanswered_rate`` and ``unreadable_rate``."""
        means = {name: value for name in ASKED if (value := mean_of(records, name)) is not None}
        if means:
            means["score"] = sum(means.values()) / len(means)
        return means | ungraded_rates([verdict for record in records for verdict in record["verdicts"].values()])

    def about(self) -> dict[str, Any]:
        """What the report pins: also the judge, with its instructions for each dimension."""
        return {**super().about(), "judge": self.judge.about(*map(instructions, ASKED))}
