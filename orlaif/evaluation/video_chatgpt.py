"""Video-ChatGPT's five dimensions of free answers (Maaz et al. 2023), each scored 0 to 5 by a judge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orlaif.evaluation.grader import ChatGrader, read_object, read_score
from orlaif.evaluation.suite import Record, Suite, Table, mean_of, needed

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


def instructions(dimension: str) -> str:
    """What the judge is told for a dimension."""
    return f"You grade answers to questions about videos. Judge the predicted answer by {ASKED[dimension]}.{_REPLY}"


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
        graded = [{**record, "scores": {}, "verdicts": {}} for record in records]
        asked: list[tuple[Record, str, tuple[str, str]]] = []
        for record in graded:
            for dimension in OF_FILE[needed(record, "file", type(self).__name__)]:
                if dimension != "consistency":
                    text = f"Question: {record['question']}\nCorrect answer: {record['answer']}\n"
                    text += f"Predicted answer: {record['prediction']}"
                elif record["id"].endswith("/1"):
                    other = by_id.get(f"{record['id'][:-1]}2")
                    if other is None:
                        record["verdicts"][dimension] = "its second question was not answered"
                        record["scores"][dimension] = None
                        continue
                    text = f"Question 1: {record['question']}\nQuestion 2: {other['question']}\n"
                    text += f"Correct answer: {record['answer']}\nPredicted answer to question 1: "
                    text += f"{record['prediction']}\nPredicted answer to question 2: {other['prediction']}"
                else:
                    continue
                asked.append((record, dimension, (instructions(dimension), text)))
        replies = self.judge.ask_all(
            [question for _, _, question in asked], lambda reply: {"score": read_score(read_object(reply).get("score"))}
        )
        for (record, dimension, _), reply in zip(asked, replies, strict=True):
            record["verdicts"][dimension] = reply
            record["scores"][dimension] = reply["score"] if isinstance(reply, dict) else None
        return graded

    def tables(self, records: Sequence[Record]) -> list[Table]:
        """One row per dimension."""
        rows = []
        for dimension in ASKED:
            own = [record for record in records if dimension in record["scores"]]
            rows.append((dimension, len(own), (mean_of(own, dimension),)))
        return [Table("Video-ChatGPT's dimensions", ("score (0-5)",), tuple(rows))]

    def metrics(self, records: Sequence[Record]) -> dict[str, float]:
        """Each dimension's mean, their mean as ``score``, and ``unreadable_rate``."""
        found = {name: value for name in ASKED if (value := mean_of(records, name)) is not None}
        verdicts = [verdict for record in records for verdict in record["verdicts"].values()]
        if found:
            found["score"] = sum(found.values()) / len(found)
        if verdicts:
            found["unreadable_rate"] = sum(isinstance(verdict, str) for verdict in verdicts) / len(verdicts)
        return found

    def about(self) -> dict[str, Any]:
        """The judge, pinned."""
        return {**super().about(), "judge": self.judge.about(*map(instructions, ASKED))}
