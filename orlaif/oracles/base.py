"""What an oracle is.

An oracle sees whole groups and returns an order of each. It may tie answers and leave answers out, but it never makes
an order up: a group that it cannot rank is an :class:`~orlaif.types.OracleError`; what becomes of it is for
``orlaif.oracles.failure`` and the recipe to say.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from orlaif.oracles.held import HeldModel
from orlaif.types import CandidateGroup, OracleError, Prompt, PromptBatch, Ranking, VideoError


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """What a judge was asked about a group, and what it replied.

    Args:
        prompt_id: of the group.
        asked: question and candidates as they were shown, without instructions and frames.
        replied: its words.
    """

    prompt_id: str
    asked: str
    replied: str


class Oracle(ABC):
    """The protocol, and the seam a recipe fills.

    Attributes:
        mostly_waits: ``rank`` waits for others (a server) instead of computing, so that a training step may ask on a
            thread and go on with the reference's forward pass.
    """

    mostly_waits = False
    #: Kept, and not taken yet.
    _exchanges: tuple[Exchange, ...] = ()

    @abstractmethod
    def rank(self, groups: Sequence[CandidateGroup]) -> Ranking:
        """Order the answers of each group.

        Args:
            groups: P groups of the same size G.

        Returns:
            ranks i64[P, G] on the CPU: 0 = best, equal answers share a rank, -1 = not ranked.

        Raises:
            OracleError: a group could not be ranked. An oracle that can rank the others may instead return them, with
                -1 throughout for the group and the error in ``failures``.
        """

    def lacks(self, prompt: Prompt) -> str | None:
        """What :meth:`rank` needs of a prompt and this one has not, in words; by default nothing."""
        return None

    def bind(self, policy: Any) -> None:
        """Called once before training, with the policy; for oracles that use it."""
        return

    def close(self) -> None:  # noqa: B027 (most oracles hold nothing)
        """Called by all processes when the run is over."""

    @property
    def gives_scores(self) -> bool | None:
        """Whether its rankings have scores, which some mappings need; None where only a ranking shows it."""
        return None

    @property
    def most_answers(self) -> int | None:
        """How many different answers of a group it can order, if that is bounded."""
        return None

    @property
    def borrows_policy(self) -> bool:
        """Whether :meth:`rank` runs the policy's own weights; they are gathered for it where they are sharded."""
        return False

    def held_models(self) -> tuple[HeldModel, ...]:
        """The models that it holds besides the policy's, which may lie on the same GPUs; for the plan."""
        return ()

    def take_counts(self) -> dict[str, float]:
        """What has happened since this was last asked, for the log (``oracle/<name>``); by default nothing is said."""
        return {}

    def take_exchanges(self) -> list[Exchange]:
        """What a judge was asked and replied since this was last called, readable or not."""
        taken, self._exchanges = self._exchanges, ()
        return list(taken)

    def keep_exchanges(self, exchanges: Iterable[Exchange]) -> None:
        """For oracles that ask in words: keep what they asked and were replied, until it is taken."""
        self._exchanges += tuple(exchanges)


class Judge(Oracle):
    """An oracle that can also be asked yes/no questions about single answers, as ``RubricJudge`` does."""

    @abstractmethod
    def verdicts(self, groups: Sequence[CandidateGroup], questions: Sequence[str]) -> list[Tensor | OracleError]:
        """Answer every question about every answer of each group.

        Args:
            groups: P groups.
            questions: Q questions to be answered with yes or no.

        Returns:
            Of each group f64[G, Q], 1 = yes and 0 = no, the same for equal answers; or why there is none.
        """


def dense_ranks(scores: Tensor) -> Tensor:
    """Ranks from scores: the largest is 0, equal scores share a rank, infinite ones are the best or the worst.

    NaN is no score: such an answer is not ranked, and the others are ranked as if it were not there.

    Args:
        scores: [P, G], of any dtype but complex.

    Returns:
        i64[P, G], dense numbering, -1 where the score is NaN.

    Raises:
        ValueError: scores of another shape.
    """
    if scores.ndim != 2:
        raise ValueError(f"dense_ranks was given scores of shape {list(scores.shape)}; expected [P, G], a row a group")
    ranks = torch.full(scores.shape, -1, dtype=torch.int64)
    for row, out in zip(scores.cpu(), ranks, strict=True):
        valid = ~row.isnan()
        levels, inverse = torch.unique(row[valid], return_inverse=True)  # ascending
        out[valid] = len(levels) - 1 - inverse
    return ranks


def no_score_failures(oracle: Oracle, groups: Sequence[CandidateGroup], scores: Tensor) -> tuple[OracleError, ...]:
    """An error for each group whose scores f[P, G] are all NaN, for oracles that owe every answer one."""
    cause = "all its scores are NaN; its model computes no numbers (weights, or a dtype too narrow for them?)"
    name = type(oracle).__name__
    missing = scores.isnan().all(-1).tolist()
    return tuple(OracleError(name, group.prompt.id, cause) for group, none in zip(groups, missing, strict=True) if none)


def checked_ranking(oracle: Oracle, groups: Sequence[CandidateGroup]) -> Ranking:
    """What an oracle says of P groups, if that is a ranking of them.

    Raises:
        OracleError: as :meth:`Oracle.rank`.
        ValueError: naming the oracle, for anything that is no :class:`~orlaif.types.Ranking` of shape [P, G].
    """
    name = f"{type(oracle).__name__}.rank"
    expected = [len(groups), len(groups[0].answers)]
    try:
        ranking = oracle.rank(groups)
    except ValueError as error:  # such as Ranking's, which does not know who makes it
        raise ValueError(f"{name}: {error}") from error
    if not isinstance(ranking, Ranking):
        given = f"a Tensor of shape {list(ranking.shape)}" if isinstance(ranking, Tensor) else type(ranking).__name__
        raise ValueError(f"{name} returned {given}; it must be an orlaif.types.Ranking with ranks i64{expected}")
    if list(ranking.ranks.shape) != expected:
        raise ValueError(f"{name} gave ranks of shape {list(ranking.ranks.shape)}; expected {expected}")
    return ranking


def encoded(oracle: Oracle, groups: Sequence[CandidateGroup], make: Callable[[], PromptBatch]) -> PromptBatch:
    """Encode groups for a model that judges them.

    Args:
        oracle: whose model.
        groups: what is encoded.
        make: encodes them.

    Raises:
        OracleError: the model's processor does not take a clip that the policy's took; what becomes of its group is
            for ``on_oracle_failure`` to say.
    """
    try:
        return make()
    except VideoError as error:
        failed = next((g for g in groups if error.path in [part.path for part in g.prompt.media]), groups[0])
        raise OracleError(type(oracle).__name__, failed.prompt.id, f"its model cannot be shown {error}") from error


def ranking_of(outcomes: Sequence[Tensor | OracleError], size: int) -> Ranking:
    """A ranking from what became of each group.

    Args:
        outcomes: P times aggregated values f64[G], more is better, equal to 9 decimals = tied; or why there are none.
        size: G.

    Returns:
        Dense ranks i64[P, G], -1 throughout and an entry in ``failures`` for groups without values.
    """
    failures = tuple(outcome for outcome in outcomes if isinstance(outcome, OracleError))
    return Ranking(ranks=dense_ranks(values_of(outcomes, size).round(decimals=9)), failures=failures)


def values_of(outcomes: Sequence[Tensor | OracleError], size: int) -> Tensor:
    """f64[P, G], the values of :func:`ranking_of`; NaN throughout for groups that have none."""
    nothing = torch.full((size,), torch.nan, dtype=torch.float64)
    return torch.stack([nothing if isinstance(outcome, OracleError) else outcome for outcome in outcomes])


def order_consistency(
    oracle: Oracle, groups: Sequence[CandidateGroup], ranking: Ranking, generator: torch.Generator
) -> float:
    """Share of groups that keep their ranking when the candidates are shown in another order.

    Args:
        oracle: asked once more for every group.
        groups: P groups.
        ranking: what it answered before.
        generator: draws the order.

    Returns:
        A number in [0, 1]; 1 for an oracle that does not look at positions.
    """
    size = len(groups[0].answers)
    orders = [torch.randperm(size, generator=generator) for _ in groups]
    shuffled = [group.reordered(order.tolist()) for group, order in zip(groups, orders, strict=True)]
    again = checked_ranking(oracle, shuffled).ranks
    same = [bool((row == first[order]).all()) for row, first, order in zip(again, ranking.ranks, orders, strict=True)]
    return sum(same) / len(same)
