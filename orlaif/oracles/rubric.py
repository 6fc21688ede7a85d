"""A judge that is asked yes/no questions about each answer instead of an order of all.

What makes an answer good is written down as a list of questions with weights. The judge, behind a server or local,
answers each of them for each different answer; an answer's value is the sum of the weights of its yes, and values make
ranks. How often a question has decided anything is in the log, so that one that never does can go.

Shapes: P groups, G answers, Q questions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from orlaif.oracles.base import Exchange, Judge, Oracle, ranking_of, values_of
from orlaif.oracles.held import HeldModel
from orlaif.types import CandidateGroup, OracleError, Prompt, Ranking


@dataclass(frozen=True, kw_only=True)
class Rubric:
    """A question about an answer.

    Args:
        name: in the log.
        question: to be answered with yes or no, such as ``Does it name a colour that the video shows?``
        weight: what a yes is worth; below 0 where it speaks against the answer.

    Raises:
        ValueError: an empty name or question, a name with a slash, a weight that is 0 or no number.
    """

    name: str
    question: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.name.strip() or "/" in self.name:
            raise ValueError(f"rubric name is {self.name!r}; it must be a word for the log, without a slash")
        if not self.question.strip():
            raise ValueError(f"rubric {self.name!r} has no question")
        if not math.isfinite(self.weight) or self.weight == 0:
            raise ValueError(f"rubric {self.name!r} has weight {self.weight}; it must be a number other than 0")


class RubricJudge(Oracle):
    """Ranks by a weighted sum of yes/no verdicts, which is the score; answers with the same sum share a rank.

    Logged for each rubric, over the groups ranked since the last step: ``oracle/rubric/<name>/decided``, the share of
    groups that would be ranked otherwise without it, and ``oracle/rubric/<name>/yes``, its share of yes. A rubric that
    others agree with decides nothing, so the shares need not add up to 1.

    Args:
        judge: who is asked: ``HTTPJudge``, or a local one (``PairwiseJudge``, ``ListwiseJudge``). Of its settings those
            about orders and their instructions do not matter here.
        rubrics: one or more questions.

    Raises:
        ValueError: no rubric, or two of one name.
    """

    gives_scores = True

    def __init__(self, judge: Judge, rubrics: Sequence[Rubric]) -> None:
        names = [rubric.name for rubric in rubrics]
        if not names:
            raise ValueError("oracle.rubrics is empty; a rubric judge needs one question or more")
        if len(set(names)) < len(names):
            raise ValueError(f"oracle.rubrics has the names {', '.join(names)}; each must be there once")
        self.judge, self.rubrics = judge, tuple(rubrics)
        self.weights = torch.tensor([rubric.weight for rubric in rubrics], dtype=torch.float64)
        self.mostly_waits = judge.mostly_waits
        self._forget()

    def rank(self, groups: Sequence[CandidateGroup]) -> Ranking:
        """Order the answers of each group.

        Args:
            groups: P groups.

        Returns:
            Dense ranks i64[P, G], and the weighted sums f32[P, G] as scores; groups of which the judge gave no verdicts
            in ``failures``. A group whose answers are all the same is not asked about: it is tied, without scores.
        """
        size = len(groups[0].answers)
        outcomes: list[Tensor | OracleError] = [torch.zeros(size, dtype=torch.float64) for _ in groups]
        asked = [i for i, group in enumerate(groups) if len(set(group.answers)) > 1]
        self._groups += len(groups)
        if asked:
            said = self.judge.verdicts([groups[i] for i in asked], [rubric.question for rubric in self.rubrics])
            for i, verdicts in zip(asked, said, strict=True):
                if isinstance(verdicts, OracleError):
                    self._groups -= 1
                    outcomes[i] = verdicts
                    continue
                outcomes[i] = verdicts @ self.weights
                self._decided += deciding(verdicts, self.weights)
                self._yes += verdicts.mean(0)
                self._asked += 1
        scores = values_of(outcomes, size)
        scores[[i for i in range(len(groups)) if i not in asked]] = torch.nan
        return replace(ranking_of(outcomes, size), scores=scores.float())

    def _forget(self) -> None:
        self._groups = self._asked = 0
        self._decided = torch.zeros(len(self.rubrics), dtype=torch.float64)
        self._yes = torch.zeros(len(self.rubrics), dtype=torch.float64)

    def take_counts(self) -> dict[str, float]:
        """The judge's own, and what each rubric has decided."""
        counts = self.judge.take_counts()
        for i, rubric in enumerate(self.rubrics):
            if self._groups:
                counts[f"rubric/{rubric.name}/decided"] = float(self._decided[i]) / self._groups
            if self._asked:
                counts[f"rubric/{rubric.name}/yes"] = float(self._yes[i]) / self._asked
        self._forget()
        return counts

    def take_exchanges(self) -> list[Exchange]:
        """The judge's."""
        return self.judge.take_exchanges()

    def lacks(self, prompt: Prompt) -> str | None:
        """What the judge needs of a prompt and this one has not."""
        return self.judge.lacks(prompt)

    def bind(self, policy: Any) -> None:
        """Bind the judge to the policy that is trained."""
        self.judge.bind(policy)

    def close(self) -> None:
        """Close the judge."""
        self.judge.close()

    @property
    def borrows_policy(self) -> bool:
        """Whether the judge runs the policy's weights."""
        return self.judge.borrows_policy

    def held_models(self) -> tuple[HeldModel, ...]:
        """The models that the judge holds."""
        return self.judge.held_models()


def deciding(verdicts: Tensor, weights: Tensor) -> Tensor:
    """Which rubrics decide: without them the order, or what is tied, would be another.

    Args:
        verdicts: f64[G, Q], 1 = yes and 0 = no.
        weights: f64[Q].

    Returns:
        bool[Q].
    """
    worth = verdicts * weights
    values = worth.sum(-1)
    without = values.unsqueeze(-1) - worth  # [G, Q]
    order = _signs(values.unsqueeze(-1))
    return (_signs(without) != order).flatten(0, 1).any(0)


def _signs(values: Tensor) -> Tensor:
    """Of each pair of rows, which is larger, [G, G, Q]; equal to 9 decimals is equal."""
    return (values.unsqueeze(0) - values.unsqueeze(1)).round(decimals=9).sign()
