"""Multiple choice (MVBench, LongVideoBench, LVBench, TempCompass, MMVU): accuracy, by the labels of the paper's table.

Answers are read as all of orlaif reads them (``choices``); what cannot be read is wrong, and counted, unless a judge
grades it. Where the published script guesses (LongVideoBench's draws an option, MVBench's takes the first word for
one), nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from orlaif.evaluation.answer_judge import ANSWER_INSTRUCTIONS, CAPTION_INSTRUCTIONS, asked_about
from orlaif.evaluation.choices import choice, final_answer
from orlaif.evaluation.grader import ChatGrader, Ungraded
from orlaif.evaluation.suite import Record, Suite, Table, mean_of, needed, table
from orlaif.evaluation.text_metrics import is_correct, normalize_answer
from orlaif.prompt import Prompt

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
    """Accuracy, overall and by labels; questions without options are compared by exact match, or by a judge.

    A judge is asked what rules cannot say: whether an answer that names no option, or one to a question without
    options, is right, and what a caption answers (``orlaif.evaluation.answer_judge``).

    Args:
        title: of the tables.
        by: tags to break down by, a table each; ``category`` is the prompts' category. A tag may name several labels,
            with ``;`` between, and then counts for each.
        judge: grades what no rule can; None leaves captions without a score.
    """

    COLUMNS = (("accuracy %", "strict"), ("n unreadable", "unreadable"))
    JUDGED_COLUMNS = (
        ("accuracy %", "judged"),
        ("by rule %", "strict"),
        ("n judged", "asked"),
        ("n unanswered", "unanswered"),
        ("n unreadable", "unreadable"),
    )

    def __init__(
        self, title: str = "Multiple choice", by: Sequence[str] = ("category",), judge: ChatGrader | None = None
    ) -> None:
        self.title, self.by, self.judge = title, tuple(by), judge

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuse questions without an answer or a label of ``by``, and, without a judge, data without any options."""
        name = type(self).__name__
        for prompt in prompts:
            for field in ("answer", *(tag for tag in self.by if tag != "category")):
                needed({"id": prompt.id, "answer": prompt.answer, "tags": prompt.tags}, field, name)
        choosable = any(prompt.options or "probe" in prompt.tags for prompt in prompts)
        if prompts and self.judge is None and not choosable:
            raise ValueError(
                f"{name} needs questions with options, and none of the {len(prompts)} of data.test has any; "
                "orlaif.evaluation.suite.ExactMatch grades answers in words, a judge does so here"
            )

    def grade(self, records: Sequence[Record]) -> list[Record]:
        """Adds ``strict`` (right by rule or not; None for a caption) and ``unreadable``.

        With a judge also ``judged``, right or not by rule or judge, None where it failed to say; ``asked`` and
        ``unanswered`` of it; and ``unreadable`` is then what neither could be read by rule nor from its reply.
        """
        graded = [self._by_rule(record) for record in records]
        if self.judge is None:
            return graded
        asked = []
        for record in graded:
            scores = record["scores"]
            scores |= {"judged": scores["strict"] or 0.0, "asked": 0.0, "unanswered": 0.0}
            ruled = record.get("options") and scores["strict"] is not None and not scores["unreadable"]
            if not ruled and record["prediction"].strip():
                asked.append(record)
        replies = self.judge.ask_all([asked_about(record) for record in asked])
        for record, reply in zip(asked, replies, strict=True):
            failed = reply.ungraded if isinstance(reply, Ungraded) else None
            record["verdict"] = reply.record() if isinstance(reply, Ungraded) else reply
            record["scores"] |= {
                "judged": None if isinstance(reply, Ungraded) else float(reply["correct"]),
                "asked": 1.0,
                "unanswered": float(failed == "unanswered"),
                "unreadable": float(failed == "unreadable"),
            }
        return graded

    def _by_rule(self, record: Record) -> Record:
        answer = needed(record, "answer", type(self).__name__)
        for tag in self.by:
            if tag != "category":
                needed(record, tag, type(self).__name__)
        said, options = record["prediction"], record.get("options")
        right: bool | None
        if "probe" in record.get("tags", {}):
            right, unreadable = None, not said.strip()
        elif options:
            place = named_choice(said, options)
            right, unreadable = place is not None and place == named_choice(answer, options), place is None
        else:
            said = final_answer(said)
            right, unreadable = is_correct(said, answer), not said
        scores = {"strict": None if right is None else float(right), "unreadable": float(unreadable)}
        return {**record, "scores": scores}

    def tables(self, records: Sequence[Record]) -> list[Table]:
        """A table for each of ``by``, the last row of each over all questions."""
        tables = []
        for tag in self.by:
            spread = [{**record, "label": label} for record in records for label in _labels(record, tag)]
            title = f"{self.title} by {tag.replace('_', ' ')}"
            columns = self.COLUMNS if self.judge is None else self.JUDGED_COLUMNS
            made = table(title, spread, columns, lambda record: record["label"], total=None)
            whole = table(title, records, columns, lambda record: None)
            tables.append(Table(title, made.columns, made.rows + whole.rows))
        return tables

    def metrics(self, records: Sequence[Record]) -> dict[str, float]:
        """``accuracy`` (with a judge: by rule or judge), ``unreadable_rate``, and ``accuracy/<label>`` of the first of
        ``by``; with a judge ``unanswered_rate`` of all answers.
        """
        score = "strict" if self.judge is None else "judged"
        means = {"accuracy": mean_of(records, score), "unreadable_rate": mean_of(records, "unreadable")}
        if self.judge is not None:
            means["unanswered_rate"] = mean_of(records, "unanswered")
        for label in sorted({label for record in records for label in _labels(record, self.by[0])}):
            means[f"accuracy/{label}"] = mean_of([r for r in records if label in _labels(r, self.by[0])], score)
        return {name: value for name, value in means.items() if value is not None}

    def about(self) -> dict[str, Any]:
        """What the report pins: also the judge with its instructions, if there is one."""
        told = (ANSWER_INSTRUCTIONS, CAPTION_INSTRUCTIONS)
        return {**super().about(), **({} if self.judge is None else {"judge": self.judge.about(*told)})}


def _labels(record: Record, tag: str) -> list[str]:
    value = record.get("category") if tag == "category" else record["tags"][tag]
    return [label.strip() for label in value.split(";")] if value else []
