"""Rank -> advantage: the seam that a recipe fills.

The mappings themselves are pure functions of ``orlaif_kernels.mappings`` (beside the Triton kernel that computes them
in one launch); here are the thin classes that a recipe names by ``class_path``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from orlaif_kernels.arguments import one_of
from orlaif_kernels.mappings import Gain, Quotient, borda, dcg, ndcg_penalty, zscore
from torch import Tensor

from orlaif.types import Completions, Ranking

__all__ = ["DCG", "Advantage", "Borda", "NDCGPenalty", "ZScore", "borda", "dcg", "ndcg_penalty", "zscore"]


class Advantage(ABC):
    """The seam a recipe fills: from an oracle's ranking to advantages."""

    @abstractmethod
    def __call__(self, ranking: Ranking, completions: Completions) -> Tensor:
        """Advantages f32[P, G], zero-mean within each group; or f32[P, G, T], of each token.

        Args:
            ranking: of P groups, on the device of the completions.
            completions: of the same groups.
        """


class DCG(Advantage):
    """Advantages by :func:`dcg` of the oracle's ranks; a recipe names it by ``class_path``."""

    def __call__(self, ranking: Ranking, completions: Completions) -> Tensor:
        """Advantages f32[P, G] of ranks i64[P, G]; the completions are not looked at."""
        return dcg(ranking.ranks)


class Borda(Advantage):
    """Advantages by :func:`borda` of the oracle's ranks; a recipe names it by ``class_path``."""

    def __call__(self, ranking: Ranking, completions: Completions) -> Tensor:
        """Advantages f32[P, G] of ranks i64[P, G]; the completions are not looked at."""
        return borda(ranking.ranks)


class NDCGPenalty(Advantage):
    """:func:`ndcg_penalty` of the ranks and the log-probs recorded when the answers were sampled.

    Args:
        gain: ``text``, the gain that the paper's text defines, or ``appendix``, the one of its appendix's values.
        quotient: ``literal``, as the paper divides, or ``reversed``.

    Raises:
        ValueError: another gain or quotient.
    """

    def __init__(self, gain: Gain = "text", quotient: Quotient = "literal") -> None:
        one_of("gain", gain, Gain)
        one_of("quotient", quotient, Quotient)
        self.gain, self.quotient = gain, quotient

    def __call__(self, ranking: Ranking, completions: Completions) -> Tensor:
        """Advantages f32[P, G]; raises ValueError for completions without log-probs."""
        if completions.logps is None:
            raise ValueError(
                "NDCGPenalty needs Completions.logps, the log-probs recorded when the answers were sampled"
            )
        return ndcg_penalty(ranking.ranks, (completions.logps * completions.mask).sum(-1), self.gain, self.quotient)


class ZScore(Advantage):
    """:func:`zscore` of the oracle's scores: scalar GRPO, the baseline."""

    def __call__(self, ranking: Ranking, completions: Completions) -> Tensor:
        """Advantages f32[P, G]; raises ValueError for an oracle that only ranks."""
        if ranking.scores is None:
            raise ValueError("ZScore needs an oracle with scores; this one only ranks (use DCG or Borda)")
        return zscore(ranking.scores)
