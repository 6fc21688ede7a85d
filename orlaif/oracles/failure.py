"""What happens when an oracle fails: ask again, do without the group, or stop the run; and asking it on a thread."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from orlaif.oracles.base import Exchange, Oracle, checked_ranking
from orlaif.stages import stage
from orlaif.types import CandidateGroup, OracleError, Ranking

log = logging.getLogger(__name__)

#: A rate is that of so many groups at least, so that one failure at the start of a run is no rate of 100 %.
_FEWEST = 20


@dataclass(frozen=True, kw_only=True)
class OracleFailure:
    """What to do with groups that the oracle cannot rank: ``on_oracle_failure`` of a recipe.

    Args:
        action: ``drop_group`` gives the group no weight, and is counted as ``oracle/failure_rate``; ``retry`` asks
            again and then stops the run; ``error`` stops the run at once.
        retries: for ``drop_group`` and ``retry``, how often a failed group is asked again.
        max_rate: with ``drop_group``, the run stops when more than this share of all groups so far has failed; before
            the 20th group, when more than this share of 20 has.

    Raises:
        ValueError: a setting is out of its range.
    """

    action: Literal["error", "retry", "drop_group"] = "drop_group"
    retries: int = 2
    max_rate: float = 0.1

    def __post_init__(self) -> None:
        if self.action not in ("error", "retry", "drop_group"):
            raise ValueError(
                f"on_oracle_failure.action is {self.action!r}; it must be 'error', 'retry' or 'drop_group'"
            )
        if self.action == "retry" and self.retries < 1:
            raise ValueError("on_oracle_failure.action is 'retry'; retries must be 1 or more")
        if self.retries < 0:
            raise ValueError(f"on_oracle_failure.retries is {self.retries}; it must be 0 or more")
        if not 0 <= self.max_rate <= 1:
            raise ValueError(f"on_oracle_failure.max_rate is {self.max_rate}; it must lie in [0, 1]")

    def check(self, failed: int, groups: int, last: OracleError) -> None:
        """Stop a run of which too many groups have failed.

        Args:
            failed: groups that could not be ranked so far.
            groups: of all so far.
            last: how the last one failed.

        Raises:
            OracleError: more than ``max_rate`` allows, with the cause of ``last``.
        """
        if failed > self.max_rate * max(groups, _FEWEST):
            cause = f"{last.cause}; {failed:g} of {groups:g} groups so far have failed, more than "
            cause += f"on_oracle_failure.max_rate allows ({self.max_rate:g})"
            raise OracleError(last.oracle, last.prompt_id, cause)


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
        ValueError: the oracle's answer is no ranking of shape [P, G].
    """
    if on_failure.action == "error":
        ranking = checked_ranking(oracle, groups)
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
    for error in ranking.failures:
        log.warning("%s; the group is left out (on_oracle_failure: drop_group)", error)
    return ranking


class Asked:
    """An oracle at work on the groups of a step; one that mostly waits does so on a thread.

    Args:
        oracle: the oracle.
        groups: P groups.
        on_failure: what to do with groups that could not be ranked.
        turns: held while the oracle is asked, where the groups of several steps are in flight.

    Attributes:
        seconds: from the question to the ranking.
        waited: seconds that nothing else could be done in.
        counts: what has happened to the oracle since it was last asked.
        exchanges: what a judge was asked and replied meanwhile.
    """

    def __init__(
        self,
        oracle: Oracle,
        groups: Sequence[CandidateGroup],
        on_failure: OracleFailure,
        turns: threading.Lock | None = None,
    ) -> None:
        self.seconds = self.waited = 0.0
        self.counts: dict[str, float] = {}
        self.exchanges: Sequence[Exchange] = ()
        self._turns = turns or threading.Lock()
        self._outcome: Ranking | BaseException | None = None
        self._work = (oracle, groups, on_failure)
        self._thread = None
        if oracle.mostly_waits:
            # A daemon: an interrupted run does not stay for a server that stalls.
            self._thread = threading.Thread(target=self._run, name="orlaif-oracle", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        with self._turns:
            start = time.perf_counter()
            try:
                with stage("judge"):
                    self._outcome = rank_groups(*self._work)
                self.counts = self._work[0].take_counts()
                self.exchanges = self._work[0].take_exchanges()
            except BaseException as error:
                self._outcome = error
            self.seconds = time.perf_counter() - start

    @property
    def is_ahead(self) -> bool:
        """Whether the oracle was asked when this was made; else it is in :meth:`result`."""
        return self._thread is not None

    def result(self) -> Ranking:
        """The ranking of all P groups; raises as :func:`rank_groups`."""
        start = time.perf_counter()
        if self._thread is not None:
            self._thread.join()
        elif self._outcome is None:
            self._run()
        self.waited = time.perf_counter() - start
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        assert self._outcome is not None
        return self._outcome


def _asked(oracle: Oracle, groups: Sequence[CandidateGroup]) -> Ranking:
    """Without an error: where the oracle raises one, each group is asked alone, so that it costs that group only."""
    try:
        return checked_ranking(oracle, groups)
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
