"""What an evaluation is: from predictions to graded records, and from those to tables.

A *record* is a line of ``predictions/test.jsonl``: ``id, question, prediction, category, tags``, and ``answer`` and
``options`` where the data has them. Grading adds numbers under ``scores`` (None = this answer has no such score, and is
left out of its mean) and whatever tells how they came about.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from orlaif.evaluation.text_metrics import is_correct, token_f1
from orlaif.prompt import Prompt

Record = dict[str, Any]


def needed(record: Record, name: str, what: str) -> Any:
    """A record's ``answer`` or tag.

    Raises:
        ValueError: it has none, so that ``what`` cannot grade it.
    """
    value = record.get("answer") if name == "answer" else record.get("tags", {}).get(name)
    if value is None:
        raise ValueError(f"question {record['id']!r} has no {name}, which {what} needs; is data.test the right data?")
    return value


@dataclass(frozen=True)
class Table:
    """Means of scores by group.

    Args:
        title: what it shows.
        columns: names of the scores.
        rows: label, number of answers, and a value per column; None where nothing was scored.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, int, tuple[float | None, ...]], ...]

    def markdown(self) -> str:
        """As Markdown, each value as :func:`shown` puts it."""
        lines = [f"**{self.title}**", "", "| | n | " + " | ".join(self.columns) + " |"]
        lines.append("|---" * (len(self.columns) + 2) + "|")
        for label, n, values in self.rows:
            cells = [shown(value, column) for value, column in zip(values, self.columns, strict=True)]
            lines.append(f"| {label} | {n} | " + " | ".join(cells) + " |")
        return "\n".join(lines)


def shown(value: float | None, column: str) -> str:
    """A value as text: a percentage where the column ends in ``%``, whole where it is a count."""
    if value is None:
        return "-"
    if is_count(column):
        return f"{value:.0f}"
    return f"{100 * value:.1f}" if column.endswith("%") else f"{value:.2f}"


def is_count(column: str) -> bool:
    """Whether a column holds numbers of answers (``n unreadable``), which are summed and not averaged."""
    return column.startswith("n ")


def mean_of(records: Iterable[Record], score: str) -> float | None:
    """Mean of a score over the records that have it; None where none has."""
    values = [record["scores"][score] for record in records if record["scores"].get(score) is not None]
    return sum(values) / len(values) if values else None


def table(
    title: str,
    records: Sequence[Record],
    columns: Sequence[tuple[str, str]],
    label_of: Callable[[Record], str | None],
    total: str | None = "all",
) -> Table:
    """Means by group, groups in the order of their names, and over everything.

    Args:
        title: what it shows.
        records: graded.
        columns: pairs of a heading and the score below it.
        label_of: the group of a record; None leaves it out of the groups.
        total: label of the row over all records; None leaves it out.
    """
    labels = sorted({label for record in records if (label := label_of(record)) is not None})
    groups = [(label, [record for record in records if label_of(record) == label]) for label in labels]
    if total is not None:
        groups.append((total, list(records)))

    def value(heading: str, score: str, members: Sequence[Record]) -> float | None:
        mean = mean_of(members, score)
        counted = sum(record["scores"].get(score) is not None for record in members)
        return round(mean * counted) if is_count(heading) and mean is not None else mean

    rows = tuple(
        (label, len(members), tuple(value(heading, score, members) for heading, score in columns))
        for label, members in groups
    )
    return Table(title, tuple(heading for heading, _ in columns), rows)


#: What a table of judged answers says of those without a grade, besides the means of the others.
UNGRADED_COLUMNS = (("n unanswered", "unanswered"), ("n unreadable", "unreadable"))


def with_counts(record: Record, verdicts: Sequence[Record]) -> Record:
    """A record with ``unanswered`` and ``unreadable`` among its scores, for :data:`UNGRADED_COLUMNS`."""
    kinds = [verdict.get("ungraded") for verdict in verdicts]
    counts = {kind: float(kinds.count(kind)) for _, kind in UNGRADED_COLUMNS}
    return {**record, "scores": {**record["scores"], **counts}}


def ungraded_rates(verdicts: Sequence[Record]) -> dict[str, float]:
    """``unanswered_rate`` and ``unreadable_rate`` of verdicts, where there are any."""
    kinds = [verdict.get("ungraded") for verdict in verdicts]
    return {f"{kind}_rate": kinds.count(kind) / len(kinds) for _, kind in UNGRADED_COLUMNS if kinds}


class Suite(ABC):
    """An evaluation that a recipe names by ``class_path``."""

    def check(self, prompts: Sequence[Prompt]) -> None:  # noqa: B027 (most suites grade any question)
        """Before any question is asked: raise ValueError for data that this suite could not grade."""

    @abstractmethod
    def grade(self, records: Sequence[Record]) -> list[Record]:
        """The same records, in order, with ``scores``."""

    @abstractmethod
    def tables(self, records: Sequence[Record]) -> list[Table]:
        """Tables of graded records, the most important first."""

    @abstractmethod
    def metrics(self, records: Sequence[Record]) -> dict[str, float]:
        """What goes to the log, as ``test/<name>``."""

    def about(self) -> dict[str, Any]:
        """What a result depends on besides the predictions, such as the judge; kept with the results."""
        return {"suite": type(self).__name__}


class ExactMatch(Suite):
    """Judge-free: exact match after SQuAD's normalisation, and F1 of words, overall and by category."""

    COLUMNS = (("accuracy %", "exact_match"), ("token F1 %", "token_f1"), ("n unreadable", "unreadable"))

    def grade(self, records: Sequence[Record]) -> list[Record]:
        """Records without a reference answer have no scores but ``unreadable``: whether they hold no answer."""
        graded = []
        for record in records:
            answer = record.get("answer")
            scores = {
                "exact_match": None if answer is None else float(is_correct(record["prediction"], answer)),
                "token_f1": None if answer is None else token_f1(record["prediction"], answer),
                "unreadable": float(not record["prediction"].strip()),
            }
            graded.append({**record, "scores": scores})
        return graded

    def tables(self, records: Sequence[Record]) -> list[Table]:
        """One table with a row for each category, and one for all."""
        return [table("Exact match and token F1", records, self.COLUMNS, lambda record: record.get("category"))]

    def metrics(self, records: Sequence[Record]) -> dict[str, float]:
        """Means in 0 to 1: ``accuracy``, ``token_f1``, and ``accuracy/<category>`` of each category."""
        means = {"accuracy": mean_of(records, "exact_match"), "token_f1": mean_of(records, "token_f1")}
        for category in sorted({record["category"] for record in records if record.get("category")}):
            members = [record for record in records if record.get("category") == category]
            means[f"accuracy/{category}"] = mean_of(members, "exact_match")
        return {name: value for name, value in means.items() if value is not None}
