"""A mapping of one's own: the best answer against the rest."""

import torch
from torch import Tensor

from orlaif.advantages import Advantage
from orlaif.types import Completions, Ranking


class BestOfGroup(Advantage):
    """1 for the best, shared by ties, minus the group's mean over ranked answers; unranked answers get 0."""

    def __call__(self, ranking: Ranking, completions: Completions) -> Tensor:
        """Advantages f32[P, G]."""
        ranked = ranking.ranks >= 0
        best = (ranking.ranks == 0).float()
        best = best / best.sum(-1, keepdim=True).clamp(min=1)
        mean = best.sum(-1, keepdim=True) / ranked.sum(-1, keepdim=True).clamp(min=1)
        return torch.where(ranked, best - mean, 0.0)
