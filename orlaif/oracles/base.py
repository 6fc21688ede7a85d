"""What an oracle is, and what happens when it fails.

An oracle sees whole groups and returns an order of each. It may tie answers and leave answers out, but it never makes
an order up: a group that it cannot rank is an :class:`~orlaif.types.OracleError`, which stops the run unless the recipe
says otherwise (:class:`OracleFailure`).
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from orlaif.types import CandidateGroup, OracleError, Ranking


class Oracle(ABC):
    """The protocol, and the seam a recipe fills.

    Attributes:
        mostly_waits: ``rank`` waits for others (a server) instead of computing, so that a training step may ask on a
            thread and go on with the reference's forward pass.
    """

    mostly_waits = False

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

    def bind(self, policy: Any) -> None:
        """Called once before training, with the policy; for oracles that use it."""
        return

    @property
    def borrows_policy(self) -> bool:
        """Whether :meth:`rank` runs the policy's own weights; they are gathered for it where they are sharded."""
        return False

    def take_counts(self) -> dict[str, float]:
        """What has happened since this was last asked, for the log (``oracle/<name>``); by default nothing is said."""
        return {}


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


def ranking_of(outcomes: Sequence[Tensor | OracleError], size: int) -> Ranking:
    """A ranking from what became of each group.

    Args:
        outcomes: P times aggregated values f64[G], more is better, equal to 9 decimals = tied; or why there are none.
        size: G.

    Returns:
        Dense ranks i64[P, G], -1 throughout and an entry in ``failures`` for groups without values.
    """
    nothing = torch.full((size,), torch.nan, dtype=torch.float64)
    values = torch.stack([nothing if isinstance(outcome, OracleError) else outcome for outcome in outcomes])
    failures = tuple(outcome for outcome in outcomes if isinstance(outcome, OracleError))
    return Ranking(ranks=dense_ranks(values.round(decimals=9)), failures=failures)


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
        oracle: the oracle. It may raise an OracleError, or return what it could rank with the others in ``failures``.
        groups: P groups.
        on_failure: what to do with groups that could not be ranked.

    Returns:
        The ranking of all P groups; a dropped group has rank -1 throughout and is listed in ``failures``.

    Raises:
        OracleError: a group failed and the recipe does not allow it.
        ValueError: the oracle's answer does not have the shape [P, G].
    """
    if on_failure.action == "error":
        ranking = _checked(oracle, groups)
        if ranking.failures:
            raise ranking.failures[0]
        return ranking
    ranking = _asked(oracle, groups)
    for _ in range(on_failure.retries):
        failed = _failed(ranking, groups)
        if not failed:
            break
        ranking = _replaced(ranking, failed, _asked(oracle, [groups[i] for i in failed]))
    if ranking.failures and on_failure.action != "drop_group":
        raise ranking.failures[0]
    return ranking


class Asked:
    """An oracle at work on the groups of a step; one that mostly waits does so on a thread.

    Args:
        oracle: the oracle.
        groups: P groups.
        on_failure: what to do with groups that could not be ranked.

    Attributes:
        seconds: from the question to the ranking.
        waited: seconds that nothing else could be done in.
    """

    def __init__(self, oracle: Oracle, groups: Sequence[CandidateGroup], on_failure: OracleFailure) -> None:
        self.seconds = self.waited = 0.0
        self._outcome: Ranking | BaseException | None = None
        self._work = (oracle, groups, on_failure)
        self._thread = None
        if oracle.mostly_waits:
            # A daemon: an interrupted run does not stay for a server that stalls.
            self._thread = threading.Thread(target=self._run, name="orlaif-oracle", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        start = time.perf_counter()
        try:
            self._outcome = rank_groups(*self._work)
        except BaseException as error:
            self._outcome = error
        self.seconds = time.perf_counter() - start

    def result(self) -> Ranking:
        """The ranking of all P groups; raises as :func:`rank_groups`."""
        start = time.perf_counter()
        if self._thread is None:
            self._run()
        else:
            self._thread.join()
        self.waited = time.perf_counter() - start
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        assert self._outcome is not None
        return self._outcome


def _checked(oracle: Oracle, groups: Sequence[CandidateGroup]) -> Ranking:
    ranking = oracle.rank(groups)
    expected = (len(groups), len(groups[0].answers))
    if tuple(ranking.ranks.shape) != expected:
        raise ValueError(
            f"{type(oracle).__name__}.rank gave ranks of shape {list(ranking.ranks.shape)}; expected {expected}"
        )
    return ranking


def _asked(oracle: Oracle, groups: Sequence[CandidateGroup]) -> Ranking:
    """Without an error: where the oracle raises one, each group is asked alone, so that it costs its own group only."""
    try:
        return _checked(oracle, groups)
    except OracleError as error:
        if len(groups) == 1:
            return Ranking(ranks=torch.full((1, len(groups[0].answers)), -1), failures=(error,))
    alone = [_asked(oracle, [group]) for group in groups]
    missing = torch.full((1, len(groups[0].answers)), torch.nan)
    scores = [missing if one.scores is None else one.scores for one in alone]
    return Ranking(
        ranks=torch.cat([one.ranks for one in alone]),
        scores=None if all(one.scores is None for one in alone) else torch.cat(scores),
        failures=tuple(error for one in alone for error in one.failures),
    )


def _failed(ranking: Ranking, groups: Sequence[CandidateGroup]) -> list[int]:
    ids = {error.prompt_id for error in ranking.failures}
    empty = (ranking.ranks < 0).all(-1).tolist()
    return [i for i, group in enumerate(groups) if empty[i] and group.prompt.id in ids]


def _replaced(ranking: Ranking, places: list[int], new: Ranking) -> Ranking:
    """``ranking`` with the groups at ``places`` taken from ``new``."""
    ranks, scores = ranking.ranks.clone(), ranking.scores
    ranks[places] = new.ranks
    if scores is not None or new.scores is not None:
        scores = torch.full(ranks.shape, torch.nan) if scores is None else scores.clone()
        scores[places] = torch.full(new.ranks.shape, torch.nan) if new.scores is None else new.scores
    return Ranking(ranks=ranks, scores=scores, failures=new.failures)


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
