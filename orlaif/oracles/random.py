"""The control: an oracle that knows nothing."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

import torch

from orlaif.oracles.base import Oracle
from orlaif.types import CandidateGroup, Ranking


class RandomOracle(Oracle):
    """A random order of each group; a run must gain nothing from it.

    The order is a function of seed, prompt and answers, so that a run that was stopped and resumed, or is spread over
    other processes, meets the same orders.

    Args:
        seed: of the orders.
    """

    gives_scores = False

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def _order(self, group: CandidateGroup) -> torch.Tensor:
        key = json.dumps([self.seed, group.prompt.id, *group.answers])
        generator = torch.Generator().manual_seed(random.Random(key).getrandbits(63))
        return torch.randperm(len(group.answers), generator=generator)

    def rank(self, groups: Sequence[CandidateGroup]) -> Ranking:
        """Permutations of 0 .. G-1, i64[P, G]; no ties, whatever the answers are."""
        return Ranking(ranks=torch.stack([self._order(group) for group in groups]))
