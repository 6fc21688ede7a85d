"""Multiple choice (MVBench, LongVideoBench, LVBench, TempCompass, MMVU): accuracy, by the labels of the paper's table.

Answers are read as all of orlaif reads them (``choices``); what cannot be read is wrong, and counted. Where the
published script guesses (LongVideoBench's draws an option, MVBench's takes the first word for one), nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from orlaif.evaluation.choices import choice, final_answer
from orlaif.evaluation.suite import Record, Suite, Table, mean_of, needed, table
from orlaif.evaluation.text_metrics import is_correct, normalize_answer

#: "Caption A: a dog runs": how TempCompass names the captions to choose from.
_NAMED = re.compile(r"((?:option|caption|sentence)\s+\w+)\s*:\s*", re.IGNORECASE)


def named_choice(answer: str, options: Sequence[str]) -> int | None:
    """As :func:`~orlaif.evaluation.choices.choice`, also of options called ``Caption A: ...`` or ``Option 1: ...``."""
    names = [match[1] for option in options if (match := _NAMED.match(option))]
    if len(names) < len(options):
        return choice(answer, options)
    said = normalize_answer(final_answer(answer))
    same = [i for i, name in enumerate(names) if said == normalize_answer(name)]
    same += [i for i, option in enumerate(options) if said == normalize_answer(option)]
    if same:
        return same[0]
    texts = [_NAMED.sub("", option, count=1) for option in options]
    return choice(answer, [f"{name.split()[1]}. {text}" for name, text in zip(names, texts, strict=True)])


class MultipleChoiceSuite(Suite):
    """Accuracy, overall and by labels; questions without options are compared by exact match.

    Args:
        title: of the tables.
        by: tags to break down by, a table each; ``category`` is the prompts' category. A tag may name several labels,
            with ``;`` between, and then counts for each.
    """

    COLUMNS = (("accuracy %", "strict"), ("n unreadable", "unreadable"))

    def __init__(self, title: str = "Multiple choice", by: Sequence[str] = ("category",)) -> None:
        self.title, self.by = title, tuple(by)

    def grade(self, records: Sequence[Record]) -> list[Record]:
        """Adds ``strict`` (right or not) and ``unreadable``."""
        graded = []
        for record in records:
            answer = needed(record, "answer", type(self).__name__)
            for tag in self.by:
                if tag != "category":
                    needed(record, tag, type(self).__name__)
            if options := record.get("options"):
                place = named_choice(record["prediction"], options)
                right, unreadable = place is not None and place == named_choice(answer, options), place is None
            else:
                said = final_answer(record["prediction"])
                right, unreadable = is_correct(said, answer), not said
            scores = {"strict": float(right), "unreadable": float(unreadable)}
            graded.append({**record, "scores": scores})
        return graded

    def tables(self, records: Sequence[Record]) -> list[Table]:
        """A table for each of ``by``, the last row of each over all questions."""
        tables = []
        for tag in self.by:
            spread = [{**record, "label": label} for record in records for label in _labels(record, tag)]
            title = f"{self.title} by {tag.replace('_', ' ')}"
            made = table(title, spread, self.COLUMNS, lambda record: record["label"], total=None)
            whole = table(title, records, self.COLUMNS, lambda record: None)
            tables.append(Table(title, made.columns, made.rows + whole.rows))
        return tables

    def metrics(self, records: Sequence[Record]) -> dict[str, float]:
        """``accuracy``, ``unreadable_rate``, and ``accuracy/<label>`` of the first of ``by``."""
        means = {"accuracy": mean_of(records, "strict"), "unreadable_rate": mean_of(records, "unreadable")}
        for label in sorted({label for record in records for label in _labels(record, self.by[0])}):
            means[f"accuracy/{label}"] = mean_of([r for r in records if label in _labels(r, self.by[0])], "strict")
        return {name: value for name, value in means.items() if value is not None}


def _labels(record: Record, tag: str) -> list[str]:
    value = record.get("category") if tag == "category" else record["tags"][tag]
    return [label.strip() for label in value.split(";")] if value else []
