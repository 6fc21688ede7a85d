"""Video-MME (Fu et al. 2024): which option an answer names, as its official script reads it and strictly, and tables.

``official`` takes the first capital A to D anywhere and drops answers without one from the denominator; ``strict``
reads as all of orlaif does (``choices``) and counts what it cannot read as wrong. Both are reported, for a
model that answers nonsense gains from the first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from orlaif.evaluation.choices import choice
from orlaif.evaluation.suite import Record, Suite, Table, mean_of, needed, table

#: What the official script deletes, wherever it stands, in this order. Two of them are two phrases run together, for
#: lack of a comma between them, so that neither phrase is ever deleted alone.
OFFICIAL_PREFIXES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option is" + "The correct option is",
    "Best answer:" + "Best option:",
    "Answer:",
    "Option:",
    "The correct answer",
    "The correct option",
)
DURATIONS = ("short", "medium", "long")
BREAKDOWNS = (("task_type", "task type"), ("domain", "domain"), ("sub_category", "sub-category"))


def official_letter(response: str) -> str:
    """The option that Video-MME's official script reads in a response; empty where it reads none.

    It deletes a list of phrases, gives up on more than ten words without a capital A to D, and takes the first capital
    A to D anywhere, also within a word ("Both" is B).
    """
    text = response.strip()
    for prefix in OFFICIAL_PREFIXES:
        text = text.replace(prefix, "")
    if len(text.split()) > 10 and not re.search("[ABCD]", text):
        return ""
    letter = re.search("[ABCD]", text)
    return letter[0] if letter else ""


class VideoMMESuite(Suite):
    """Accuracy by duration x {overall, task type, domain, sub-category}, ``official`` and ``strict``."""

    COLUMNS = (("official %", "official"), ("strict %", "strict"))

    def grade(self, records: Sequence[Record]) -> list[Record]:
        """Adds ``letter``, as the official script reads it; ``official`` is None where it reads none."""
        graded = []
        for record in records:
            letter = official_letter(record["prediction"])
            options = record.get("options") or list("ABCD")
            expected = needed(record, "answer", type(self).__name__)
            place = choice(record["prediction"], options)
            for tag in ("duration", *(tag for tag, _ in BREAKDOWNS)):
                needed(record, tag, type(self).__name__)
            scores = {
                "official": float(letter == expected) if letter else None,
                "strict": float(place is not None and "ABCD"[place : place + 1] == expected),
                "unreadable": float(place is None),
            }
            graded.append({**record, "letter": letter, "scores": scores})
        return graded

    def tables(self, records: Sequence[Record]) -> list[Table]:
        """By duration; then, for each breakdown, durations side by side with all of them pooled."""
        tables = [self._by_duration(records)]
        for tag, name in BREAKDOWNS:
            columns = []
            for scoring in ("official", "strict"):
                columns += [(f"{duration} {scoring} %", f"{duration}/{scoring}") for duration in (*DURATIONS, "all")]
            columns.append(("n unreadable", "all/unreadable"))
            spread = [self._spread(record) for record in records]
            tables.append(table(f"Video-MME by {name}", spread, columns, lambda record, tag=tag: record["tags"][tag]))  # type: ignore[misc]
        return tables

    def _by_duration(self, records: Sequence[Record]) -> Table:
        columns = (*self.COLUMNS, ("n unreadable", "unreadable"))
        made = table("Video-MME by duration", records, columns, lambda record: record["tags"]["duration"])
        order = {name: place for place, name in enumerate((*DURATIONS, "all"))}
        return Table(made.title, made.columns, tuple(sorted(made.rows, key=lambda row: order[row[0]])))

    @staticmethod
    def _spread(record: Record) -> Record:
        """Scores under the record's duration, and under all."""
        scores = {
            f"{duration}/{scoring}": value
            for duration in (record["tags"]["duration"], "all")
            for scoring, value in record["scores"].items()
        }
        return {**record, "scores": scores}

    def metrics(self, records: Sequence[Record]) -> dict[str, float]:
        """``accuracy`` (strict), ``accuracy_official``, ``unreadable_rate``, and ``accuracy/<duration>``."""
        means = {"accuracy": mean_of(records, "strict"), "accuracy_official": mean_of(records, "official")}
        for duration in DURATIONS:
            members = [record for record in records if record["tags"]["duration"] == duration]
            means[f"accuracy/{duration}"] = mean_of(members, "strict")
        if records:
            means["unreadable_rate"] = sum(record["scores"]["unreadable"] for record in records) / len(records)
        return {name: value for name, value in means.items() if value is not None}
