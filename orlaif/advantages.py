"""Rank -> advantage: the seam that a recipe fills.

The mappings themselves are pure functions of ``orlaif_kernels.mappings`` (beside the Triton kernel that computes those
of ranks in one launch) and ``orlaif_kernels.score_mappings``; here are the thin classes that a recipe names by
``class_path``.
"""

from __future__ import annotations

import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from orlaif_kernels.arguments import one_of
from orlaif_kernels.mappings import Gain, Quotient, borda, dcg, ndcg_penalty, zscore
from orlaif_kernels.score_mappings import mean_centered, odrpo, rloo
from torch import Tensor

from orlaif.types import Completions, Ranking

__all__ = [
    "DCG",
    "ODRPO",
    "RLOO",
    "Advantage",
    "Borda",
    "MeanCentered",
    "NDCGPenalty",
    "ZScore",
    "borda",
    "dcg",
    "mean_centered",
    "ndcg_penalty",
    "odrpo",
    "rloo",
    "zscore",
]


class Advantage(ABC):
    """The seam a recipe fills: from an oracle's ranking to advantages.

    Attributes:
        needs_scores: whether an oracle that only ranks will not do.
    """

    needs_scores = False

    @property
    def caution(self) -> str | None:
        """What to know before training with it, in one sentence for the log; by default nothing."""
        return None

    @property
    def why_silent(self) -> str | None:
        """What it may be if groups that the oracle orders get no advantage, in words; by default nothing is known."""
        return None

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
    """Advantages by :func:`borda` of the oracle's ranks; a recipe names it by ``class_path``.

    GOPO (arXiv 2602.03876) has the same linear ranks from 2 to -2: four times these.
    """

    def __call__(self, ranking: Ranking, completions: Completions) -> Tensor:
        """Advantages f32[P, G] of ranks i64[P, G]; the completions are not looked at."""
        return borda(ranking.ranks)


class NDCGPenalty(Advantage):
    """:func:`ndcg_penalty` of the ranks and the log-probs recorded when the answers were sampled.

    For comparison with the paper, not for training: it looks at whether policy and oracle agree, not at whether an
    answer is good, and with ``literal`` it can push the best answer down. With ``text`` the penalty of an answer has no
    bound but the group's: it reaches down to ``1 - G log2(1 + G)``, -24.4 for 8 answers.

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

    @property
    def caution(self) -> str | None:
        """That the literal quotient is for comparison."""
        if self.quotient != "literal":
            return None
        return (
            "advantage is NDCGPenalty with quotient 'literal', which looks at whether policy and oracle agree and can "
            "push the best answer down; it is for comparison with the paper, and to train there is DCG, the default"
        )

    def __call__(self, ranking: Ranking, completions: Completions) -> Tensor:
        """Advantages f32[P, G]; raises ValueError for completions without log-probs."""
        if completions.logps is None:
            raise ValueError(
                "NDCGPenalty needs Completions.logps, the log-probs recorded when the answers were sampled"
            )
        return ndcg_penalty(ranking.ranks, (completions.logps * completions.mask).sum(-1), self.gain, self.quotient)


def _scores(ranking: Ranking, mapping: str) -> Tensor:
    """The scores f32[P, G] of an oracle that has them."""
    if ranking.scores is None:
        raise ValueError(f"{mapping} needs an oracle with scores; this one only ranks (use DCG or Borda)")
    return ranking.scores


class ZScore(Advantage):
    """:func:`zscore` of the oracle's scores: scalar GRPO, the baseline."""

    needs_scores = True

    def __call__(self, ranking: Ranking, completions: Completions) -> Tensor:
        """Advantages f32[P, G]; raises ValueError for an oracle that only ranks."""
        return zscore(_scores(ranking, "ZScore"))


class MeanCentered(Advantage):
    """:func:`mean_centered` of the oracle's scores: Dr. GRPO's advantage (arXiv 2503.20783), not scaled."""

    needs_scores = True

    def __call__(self, ranking: Ranking, completions: Completions) -> Tensor:
        """Advantages f32[P, G]; raises ValueError for an oracle that only ranks."""
        return mean_centered(_scores(ranking, "MeanCentered"))


class RLOO(Advantage):
    """:func:`rloo` of the oracle's scores: each answer against the mean of the others (arXiv 2402.14740)."""

    needs_scores = True

    def __call__(self, ranking: Ranking, completions: Completions) -> Tensor:
        """Advantages f32[P, G]; raises ValueError for an oracle that only ranks."""
        return rloo(_scores(ranking, "RLOO"))


class ODRPO(Advantage):
    """:func:`odrpo` of the oracle's scores: z-scores of success at each threshold, summed (arXiv 2605.12667).

    Args:
        thresholds: finite numbers, each once, on the scale of the oracle's scores, such as ``[2, 3, 4, 5]`` for scores
            of 1 to 5; by default the scores that occur in a group.

    Raises:
        ValueError: no threshold, one twice, or one that is no finite number.
    """

    needs_scores = True

    def __init__(self, thresholds: Sequence[float] | None = None) -> None:
        if thresholds is not None and not _are_thresholds(thresholds):
            raise ValueError(
                f"advantage.thresholds is {thresholds!r}; it must be one or more different finite numbers, or null"
            )
        self.thresholds = None if thresholds is None else tuple(thresholds)

    @property
    def why_silent(self) -> str | None:
        """Thresholds that no score lies between."""
        if self.thresholds is None:
            return None
        return f"advantage.thresholds {list(self.thresholds)} must lie among the oracle's scores"

    def __call__(self, ranking: Ranking, completions: Completions) -> Tensor:
        """Advantages f32[P, G]; raises ValueError for an oracle that only ranks."""
        return odrpo(_scores(ranking, "ODRPO"), self.thresholds)


def _are_thresholds(given: Any) -> bool:
    """Whether that is a sequence of different finite numbers."""
    if not isinstance(given, Sequence) or not all(isinstance(one, numbers.Real) for one in given):
        return False
    return 0 < len(given) == len(set(given)) and all(map(math.isfinite, given))
