"""Several oracles as one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from orlaif.oracles.aggregate import Method, by_method
from orlaif.oracles.base import Oracle, ranking_of
from orlaif.oracles.failure import Asked, OracleFailure
from orlaif.oracles.held import HeldModel
from orlaif.types import CandidateGroup, OracleError, Prompt, Ranking


class EnsembleOracle(Oracle):
    """Aggregates the rankings of several oracles.

    Args:
        oracles: two or more.
        weights: of their opinions, by default all alike.
        method: ``borda`` (mean share of the others that an answer beats) or ``copeland`` (pairs won by majority).
        min_opinions: a group that fewer oracles could rank has failed; by default all must.

    Raises:
        ValueError: settings that contradict each other.
    """

    gives_scores = False

    def __init__(
        self,
        oracles: Sequence[Oracle],
        weights: Sequence[float] | None = None,
        method: Method = "borda",
        min_opinions: int | None = None,
    ) -> None:
        if len(oracles) < 2:
            raise ValueError(f"oracle.oracles has {len(oracles)}; an ensemble needs 2 or more")
        if weights is not None and (len(weights) != len(oracles) or min(weights) <= 0):
            raise ValueError(f"oracle.weights is {list(weights)}; it must be {len(oracles)} positive numbers")
        if method not in get_args(Method):
            raise ValueError(f"oracle.method is {method!r}; it must be 'borda' or 'copeland'")
        if min_opinions is not None and not 1 <= min_opinions <= len(oracles):
            raise ValueError(f"oracle.min_opinions is {min_opinions}; it must lie in 1 .. {len(oracles)}")
        self.oracles = list(oracles)
        self.weights = torch.tensor(weights or [1.0] * len(oracles), dtype=torch.float64)
        self.method = method
        self.min_opinions = min_opinions or len(oracles)
        self.mostly_waits = all(oracle.mostly_waits for oracle in oracles)

    def lacks(self, prompt: Prompt) -> str | None:
        """What too many members need to have ``min_opinions``."""
        lacking = [lack for oracle in self.oracles if (lack := oracle.lacks(prompt)) is not None]
        return lacking[0] if len(self.oracles) - len(lacking) < self.min_opinions else None

    def bind(self, policy: Any) -> None:
        """Bind every member to the policy that is trained."""
        for oracle in self.oracles:
            oracle.bind(policy)

    def close(self) -> None:
        """Close all of them."""
        for oracle in self.oracles:
            oracle.close()

    @property
    def most_answers(self) -> int | None:
        """How many ``min_opinions`` members can order."""
        bounds = sorted((oracle.most_answers or sys.maxsize for oracle in self.oracles), reverse=True)
        most = bounds[self.min_opinions - 1]
        return None if most == sys.maxsize else most

    @property
    def borrows_policy(self) -> bool:
        """Whether any member runs the policy's weights."""
        return any(oracle.borrows_policy for oracle in self.oracles)

    def held_models(self) -> tuple[HeldModel, ...]:
        """The models that the members hold."""
        return tuple(model for oracle in self.oracles for model in oracle.held_models())

    def take_counts(self) -> dict[str, float]:
        """Counts of each member, under its class and place: ``HTTPJudge_0/requests``."""
        return {
            f"{type(oracle).__name__}_{i}/{name}": value
            for i, oracle in enumerate(self.oracles)
            for name, value in oracle.take_counts().items()
        }

    def rank(self, groups: Sequence[CandidateGroup]) -> Ranking:
        """Order the answers of each group by what the oracles say together.

        Args:
            groups: P groups.

        Returns:
            Dense ranks i64[P, G]; groups with fewer than ``min_opinions`` opinions in ``failures``.
        """
        lenient = OracleFailure(action="drop_group", retries=0)
        asked = [Asked(oracle, groups, lenient) for oracle in self.oracles]  # those that wait do so together
        opinions = [each.result() for each in asked]
        self.keep_exchanges(exchange for each in asked for exchange in each.exchanges)
        causes = {error.prompt_id: error for opinion in opinions for error in opinion.failures}
        stacked = torch.stack([opinion.ranks for opinion in opinions])  # [N, P, G]
        outcomes: list[Tensor | OracleError] = []
        for i, group in enumerate(groups):
            ranks = stacked[:, i]
            given = (ranks >= 0).any(-1)
            if int(given.sum()) >= self.min_opinions:
                outcomes.append(by_method(self.method, ranks[given], self.weights[given]))
                continue
            cause = f"{int(given.sum())} of {len(opinions)} oracles ranked it, {self.min_opinions} are needed"
            if group.prompt.id in causes:
                cause += f"; {causes[group.prompt.id]}"
            outcomes.append(OracleError(type(self).__name__, group.prompt.id, cause))
        return ranking_of(outcomes, stacked.shape[-1])
