"""A function of the user's own as an oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from orlaif.oracles.base import Oracle
from orlaif.types import CandidateGroup, OracleError, Ranking


class FunctionOracle(Oracle):
    """Asks ``function`` for the ranks of one group after the other.

    Args:
        function: from a :class:`~orlaif.types.CandidateGroup` to G ranks: 0 = best, equal answers share a rank, None or
            -1 = not ranked. In a recipe its dotted name, ``my_package.my_rank``.
    """

    gives_scores = False

    def __init__(self, function: Callable[[CandidateGroup], Sequence[int | None]]) -> None:
        self.function = function

    def rank(self, groups: Sequence[CandidateGroup]) -> Ranking:
        """Order the answers of each group.

        Args:
            groups: P groups.

        Returns:
            ranks i64[P, G], as the function says.

        Raises:
            OracleError: the function's answer is not a ranking of the group.
        """
        rows = []
        for group in groups:
            ranks: Any = self.function(group)
            try:
                ranks = [-1 if rank is None else rank for rank in ranks]
                if len(ranks) != len(group.answers) or not all(rank == int(rank) for rank in ranks):
                    raise ValueError(f"it must be {len(group.answers)} whole numbers")
                rows.append(Ranking(ranks=torch.tensor([ranks], dtype=torch.int64)).ranks)
            except (ValueError, TypeError) as error:
                name = getattr(self.function, "__name__", type(self.function).__name__)
                raise OracleError(name, group.prompt.id, f"it gave {ranks}: {error}") from None
        return Ranking(ranks=torch.cat(rows))
