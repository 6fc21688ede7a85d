"""An oracle in processes of its own, on this machine or others: actors of Ray, as for ``orlaif.rollout.remote``.

A local judge then computes beside the training step instead of taking turns with it.

Shapes: P groups, G completions per group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from orlaif.distributed.actors import ActorLostError, Call, Placement, Pool
from orlaif.oracles.base import Exchange, Oracle, checked_ranking
from orlaif.types import CandidateGroup, OracleError, Prompt, Ranking


@dataclass(frozen=True, kw_only=True)
class Told:
    """What comes back from an actor.

    Args:
        said: the ranking of its groups, or why there is none.
        counts: what has happened to its oracle meanwhile.
        exchanges: what a judge was asked and replied meanwhile.
    """

    said: Ranking | OracleError
    counts: Mapping[str, float]
    exchanges: tuple[Exchange, ...]


class OracleHost:
    """An oracle in the process of an actor.

    Args:
        oracle: is asked.
    """

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle

    def rank(self, groups: Sequence[CandidateGroup]) -> Told:
        """What it says of P groups, and what has happened to it meanwhile, whether it could rank them or not."""
        try:
            said: Ranking | OracleError = checked_ranking(self.oracle, groups).to("cpu")
        except OracleError as error:
            said = error
        return Told(said=said, counts=self.oracle.take_counts(), exchanges=tuple(self.oracle.take_exchanges()))


class Remote(Oracle):
    """An oracle that is asked in actors of Ray (``pip install '.[ray]'``), while the step goes on.

    Args:
        oracle: of any kind that has a model of its own, or none; it must be possible to pickle it.
        actors: how many hold it, for all processes of the run together.
        resources: of each; see :class:`~orlaif.distributed.actors.Placement`.
        max_restarts: how often an actor that has died is started again; -1: always.
        address: of a Ray session; by default a new one on this machine.

    Raises:
        ValueError: a setting is out of its range, or Ray is not installed; when a run begins, a judge that is the
            policy's own base, or resources that the session does not have.
    """

    mostly_waits = True

    def __init__(
        self,
        oracle: Oracle,
        actors: int = 1,
        resources: Mapping[str, float] | None = None,
        max_restarts: int = 3,
        address: str | None = None,
    ) -> None:
        self.oracle = oracle
        self.placement = Placement(actors=actors, resources=resources, max_restarts=max_restarts, address=address)
        self._pool: Pool | None = None
        self._counts: dict[str, float] = {}

    def bind(self, policy: Any) -> None:
        """Start the actors; all processes of the run must call."""
        self.oracle.bind(policy)
        if self.oracle.borrows_policy:
            raise ValueError(
                f"oracle.oracle is {type(self.oracle).__name__} with model: null, which is the policy's own base: it "
                "cannot be elsewhere; name a model, or name the judge without orlaif.oracles.Remote"
            )
        if self._pool is None:
            self._pool = Pool(self.placement, OracleHost, self.oracle)
            self._pool.wait()

    def close(self) -> None:
        """End the actors."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    @property
    def gives_scores(self) -> bool | None:
        """Whether the oracle's rankings have scores."""
        return self.oracle.gives_scores

    @property
    def most_answers(self) -> int | None:
        """How many different answers of a group the oracle can order."""
        return self.oracle.most_answers

    def lacks(self, prompt: Prompt) -> str | None:
        """What the oracle needs of a prompt and this one has not."""
        return self.oracle.lacks(prompt)

    def take_counts(self) -> dict[str, float]:
        """Those of the oracle, and groups that were asked anew because their actor died."""
        counts, self._counts = self._counts, {}
        return counts | {"asked_anew": 0.0 if self._pool is None else float(self._pool.take_count())}

    def rank(self, groups: Sequence[CandidateGroup]) -> Ranking:
        """What the actors say, each of its share of the groups."""
        if self._pool is None:
            raise ValueError("oracle is Remote, which is asked while training; name its oracle in its place here")
        shares = self._pool.shares(len(groups))
        calls = []
        for actor, places in shares:
            share = self._pool.put([groups[i] for i in places])
            calls.append(Call(actor=actor, method="rank", arguments=(share,), weight=len(places)))
        try:
            answers: list[Told] = self._pool.ask(calls)
        except ActorLostError as error:
            raise OracleError(type(self.oracle).__name__, groups[0].prompt.id, str(error)) from error
        rankings = []
        for told in answers:
            for name, number in told.counts.items():
                self._counts[name] = self._counts.get(name, 0.0) + number
            self.keep_exchanges(told.exchanges)
        for told in answers:
            if isinstance(told.said, OracleError):
                raise told.said
            rankings.append(told.said)
        return together(rankings)


def together(rankings: Sequence[Ranking]) -> Ranking:
    """Rankings of several batches as that of one."""
    scores = None
    if any(one.scores is not None for one in rankings):
        nothing = [torch.full(one.ranks.shape, torch.nan) for one in rankings]
        scores = torch.cat([n if one.scores is None else one.scores for n, one in zip(nothing, rankings, strict=True)])
    return Ranking(
        ranks=torch.cat([one.ranks for one in rankings]),
        scores=scores,
        failures=tuple(failure for one in rankings for failure in one.failures),
    )
