"""Score -> advantage beside :func:`~orlaif_kernels.mappings.zscore`: baselines that use an oracle's numbers.

Pure functions over groups ``[P, G]`` of scores, larger is better, NaN = no score. As for the mappings of ranks, equal
scores get zero advantages, permuting a group permutes its advantages, and each group sums to zero; an answer without a
score is left out of every mean and gets 0. The Triton kernels have none of these: the loss is handed their advantages.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from orlaif_kernels.mappings import check_scores, has_signal, zscore


def mean_centered(scores: Tensor) -> Tensor:
    """``A_i = s_i - mean_j s_j``, not divided by the deviation (Dr. GRPO, Liu et al. 2025, arXiv 2503.20783).

    Args:
        scores: f32[P, G].

    Returns:
        f32[P, G].

    Raises:
        ValueError: an infinite score.
    """
    return _centred(scores).float()


def rloo(scores: Tensor) -> Tensor:
    """``A_i = s_i - mean_{j != i} s_j``: each answer against the others (RLOO, Ahmadian et al. 2024, arXiv 2402.14740).

    That is ``G / (G - 1)`` times :func:`mean_centered`, G the number of answers with a score.

    Args:
        scores: f32[P, G].

    Returns:
        f32[P, G]; 0 where a group has a single score.

    Raises:
        ValueError: an infinite score.
    """
    n = (~scores.isnan()).sum(-1, keepdim=True)
    return (_centred(scores) * n / (n - 1).clamp(min=1)).float()


def odrpo(scores: Tensor, thresholds: Sequence[float] | None = None) -> Tensor:
    """``A_i = sum_k zscore(1[s_i >= t_k])``: success at each threshold normalised by itself (ODRPO, arXiv 2605.12667).

    The paper splits the discrete score of a rubric into one indicator for each level that can be reached or missed,
    takes GRPO's advantage of each, and adds them up; a threshold that all answers of a group pass, or none, adds
    nothing. (Written from the paper's abstract: further weights of its own would be missing here.)

    Args:
        scores: f32[P, G].
        thresholds: such as ``(2, 3, 4, 5)`` for a rubric of 1 to 5. None: the scores that occur in a group, each once;
            then only the order of the scores counts, as it does for mappings of ranks.

    Returns:
        f32[P, G].

    Raises:
        ValueError: an infinite score.
    """
    check_scores(scores)
    levels = scores if thresholds is None else torch.as_tensor(thresholds, dtype=scores.dtype, device=scores.device)
    levels = levels.expand(*scores.shape[:-1], levels.shape[-1]).sort(-1).values
    passes = (scores.unsqueeze(-2) >= levels.unsqueeze(-1)).to(scores.dtype)  # [P, K, G]
    passes = passes.masked_fill(scores.isnan().unsqueeze(-2), torch.nan)
    repeated = torch.zeros_like(levels, dtype=torch.bool)
    repeated[..., 1:] = levels[..., 1:] == levels[..., :-1]
    each = zscore(passes).masked_fill((repeated | levels.isnan()).unsqueeze(-1), 0.0)
    return each.sum(-2)


def _centred(scores: Tensor) -> Tensor:
    """f64[P, G], scores minus their group's mean; 0 without a score and in groups of equal scores."""
    check_scores(scores)
    valid = ~scores.isnan()
    filled = scores.double().nan_to_num(0.0)
    mean = filled.sum(-1, keepdim=True) / valid.sum(-1, keepdim=True).clamp(min=1)
    return (filled - mean).masked_fill(~valid | ~has_signal(scores.nan_to_num(0.0), valid), 0.0)
