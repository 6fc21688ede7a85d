"""What an oracle is, and what happens when it fails.

An oracle sees whole groups and returns an order of each. It may tie answers and leave answers out, but it never makes
an order up: a group that it cannot rank is an :class:`~orlaif.types.OracleError`, which stops the run unless the recipe
says otherwise (:class:`OracleFailure`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from orlaif.types import CandidateGroup, OracleError, Ranking


class Oracle(ABC):
    """The protocol, and the seam a recipe fills."""

    @abstractmethod
    def rank(self, groups: Sequence[CandidateGroup]) -> Ranking:
        """Order the answers of each group.

        Args:
            groups: P groups of the same size G.

        Returns:
            ranks i64[P, G] on the CPU: 0 = best, equal answers share a rank, -1 = not ranked.

        Raises:
            OracleError: a group could not be ranked.
        """


def dense_ranks(scores: Tensor) -> Tensor:
    """Ranks from scores: the largest is 0, equal scores share a rank, NaN is not ranked.

    Args:
        scores: f32[P, G].

    Returns:
        i64[P, G], dense numbering.
    """
    ranks = torch.full(scores.shape, -1, dtype=torch.int64)
    for row, out in zip(scores.cpu(), ranks, strict=True):
        valid = ~row.isnan()
        _, inverse = torch.unique(-row[valid], return_inverse=True)
        out[valid] = inverse
    return ranks


@dataclass(frozen=True, kw_only=True)
class OracleFailure:
    """What to do with groups that the oracle cannot rank: ``on_oracle_failure`` of a recipe.

    Args:
        action: ``error`` stops the run; ``retry`` asks again, up to ``retries`` times, and then stops the run;
            ``drop_group`` gives the group no weight, and is counted as ``oracle/failure_rate``.
        retries: for ``retry`` and ``drop_group``, how often a failed group is asked again.
        max_rate: with ``drop_group``, the run stops when more than this share of all groups so far has failed (from
            the 20th group on).

    Raises:
        ValueError: a setting is out of its range.
    """

    action: Literal["error", "retry", "drop_group"] = "error"
    retries: int = 0
    max_rate: float = 0.1

    def __post_init__(self) -> None:
        if self.action not in ("error", "retry", "drop_group"):
            raise ValueError(
                f"on_oracle_failure.action is {self.action!r}; it must be 'error', 'retry' or 'drop_group'"
            )
        if self.action == "retry" and self.retries < 1:
            raise ValueError("on_oracle_failure.action is 'retry'; retries must be 1 or more")
        if not 0 <= self.max_rate <= 1:
            raise ValueError(f"on_oracle_failure.max_rate is {self.max_rate}; it must lie in [0, 1]")


def rank_groups(oracle: Oracle, groups: Sequence[CandidateGroup], on_failure: OracleFailure) -> Ranking:
    """Rank all groups, handling failures as the recipe says.

    Args:
        oracle: the oracle.
        groups: P groups.
        on_failure: what to do with an OracleError.

    Returns:
        The ranking of all P groups; a dropped group has rank -1 throughout and is listed in ``failures``.

    Raises:
        OracleError: a group failed and the recipe does not allow it.
        ValueError: the oracle's answer does not have the shape [P, G].
    """
    try:
        ranking = oracle.rank(groups)
    except OracleError:
        if on_failure.action == "error":
            raise
        return _one_by_one(oracle, groups, on_failure)
    expected = (len(groups), len(groups[0].answers))
    if tuple(ranking.ranks.shape) != expected:
        raise ValueError(
            f"{type(oracle).__name__}.rank gave ranks of shape {list(ranking.ranks.shape)}; expected {expected}"
        )
    return ranking


def _one_by_one(oracle: Oracle, groups: Sequence[CandidateGroup], on_failure: OracleFailure) -> Ranking:
    """Ask for each group alone, so that a failure costs its own group only."""
    size = len(groups[0].answers)
    ranks, scores, failures = [], [], []
    for group in groups:
        for attempt in range(on_failure.retries + 1):
            try:
                one = oracle.rank([group])
            except OracleError as error:
                if attempt < on_failure.retries:
                    continue
                if on_failure.action != "drop_group":
                    raise
                failures.append(error)
                one = Ranking(ranks=torch.full((1, size), -1))
            ranks.append(one.ranks)
            scores.append(one.scores if one.scores is not None else torch.full((1, size), torch.nan))
            break
    all_scores = torch.cat(scores)
    return Ranking(
        ranks=torch.cat(ranks), scores=None if bool(all_scores.isnan().all()) else all_scores, failures=tuple(failures)
    )


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
    shuffled = [
        replace(group, answers=tuple(group.answers[i] for i in order))
        for group, order in zip(groups, orders, strict=True)
    ]
    again = oracle.rank(shuffled).ranks
    same = [bool((row == first[order]).all()) for row, first, order in zip(again, ranking.ranks, orders, strict=True)]
    return sum(same) / len(same)
