"""The control: an oracle that knows nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from orlaif.oracles.base import Oracle
from orlaif.types import CandidateGroup, Ranking


class RandomOracle(Oracle):
    """A random order of each group, drawn anew every time; a run must gain nothing from it.

    Args:
        seed: of the orders.
    """

    def __init__(self, seed: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def rank(self, groups: Sequence[CandidateGroup]) -> Ranking:
        """Permutations of 0 .. G-1, i64[P, G]; no ties, whatever the answers are."""
        orders = [torch.randperm(len(group.answers), generator=self._generator) for group in groups]
        return Ranking(ranks=torch.stack(orders))
