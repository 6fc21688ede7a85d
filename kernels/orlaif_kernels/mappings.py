"""Rank -> advantage in plain PyTorch: what a group's order is worth to each of its answers.

Pure functions over groups ``[P, G]``. Every mapping has three properties: a group of equal ranks gets zero advantages,
permuting a group permutes its advantages, and each group sums to zero.

The gain of rank r is the paper's, ``u(r) = 1 / ((1 + r) * log2(2 + r))`` (Oracle-RLAIF, arXiv 2510.02561). Unlike the
paper's penalty (:func:`ndcg_penalty`), the default (:func:`dcg`) rewards an answer for its own rank, not for whether
policy and oracle agree on it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

#: The two gains of a rank that the paper states: of its text, and the one that the values of its appendix come from.
Gain = Literal["text", "appendix"]
#: Which way round the penalty divides: as the paper writes it, or the oracle's gain by the policy's.
Quotient = Literal["literal", "reversed"]

#: Added to the standard deviation of ``zscore``, as TRL does.
ZSCORE_EPS = 1e-4


def _positions(keys: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """First position (i64) and number of ties (i64) of each entry when the valid keys of a row are sorted ascending."""
    earlier = (keys.unsqueeze(-2) < keys.unsqueeze(-1)) & valid.unsqueeze(-2)
    equal = (keys.unsqueeze(-2) == keys.unsqueeze(-1)) & valid.unsqueeze(-2)
    return earlier.sum(-1), equal.sum(-1).clamp(min=1)


def gain_of(rank: Tensor, gain: Gain = "text") -> Tensor:
    """What a rank is worth: f64, shaped like ``rank``.

    Args:
        rank: i64, 0 = best.
        gain: ``text``: ``1 / ((1 + r) log2(2 + r))``, as the paper's text defines it; ``appendix``:
            ``log2(2 + r) / (1 + r)``, which the values of the paper's appendix come from.
    """
    r = rank.double()
    return torch.log2(2.0 + r) / (1.0 + r) if gain == "appendix" else 1.0 / ((1.0 + r) * torch.log2(2.0 + r))


def _tied_gain(keys: Tensor, valid: Tensor, gain: Gain = "text") -> Tensor:
    """f64[P, G], gain of each entry's position; ties share the mean over the positions they span."""
    first, count = _positions(keys, valid)
    gains = gain_of(torch.arange(keys.shape[-1], device=keys.device), gain)
    prefix = torch.cat([gains.new_zeros(1), gains.cumsum(0)])
    return (prefix[(first + count).clamp(max=keys.shape[-1])] - prefix[first]) / count


def _centre(values: Tensor, valid: Tensor, keys: Tensor) -> Tensor:
    """Values minus their group mean; zero where not valid and in groups whose keys are all equal."""
    n = valid.sum(-1, keepdim=True).clamp(min=1)
    mean = values.where(valid, values.new_zeros(())).sum(-1, keepdim=True) / n
    return (values - mean).masked_fill(~valid | ~has_signal(keys, valid), 0.0).float()


def dcg(ranks: Tensor) -> Tensor:
    """``A_i = u(r_i) - mean_j u(r_j)``, the default mapping.

    Args:
        ranks: i64[P, G], 0 = best, ties allowed in dense or competition numbering, -1 = not ranked.

    Returns:
        f32[P, G]. Tied answers share the mean gain of the positions they span; an unranked answer is left out of the
        mean and gets 0.
    """
    valid = ranks >= 0
    return _centre(_tied_gain(ranks, valid), valid, ranks)


def borda(ranks: Tensor) -> Tensor:
    """Centred linear ranks: 0.5 for the best of a group, -0.5 for the worst.

    Args:
        ranks: i64[P, G], as for :func:`dcg`.

    Returns:
        f32[P, G].
    """
    valid = ranks >= 0
    first, count = _positions(ranks, valid)
    n = valid.sum(-1, keepdim=True)
    mean_position = first + (count - 1) / 2
    return _centre(0.5 - mean_position.double() / (n - 1).clamp(min=1), valid, ranks)


def disagreement(predicted: Tensor, true: Tensor, quotient: Quotient = "literal") -> Tensor:
    """The paper's penalty of an answer, ``1 - DCG(predicted) / DCG(true)``; ``reversed`` turns the quotient round.

    Args:
        predicted: gains of the policy's own ranks, any shape.
        true: gains of the oracle's ranks, of that shape.
        quotient: ``literal`` or ``reversed``. As written, an answer that the policy ranks below the oracle is punished
            and one that it overrates is rewarded; reversed it is the other way.
    """
    return 1.0 - (predicted / true if quotient == "literal" else true / predicted)


def ndcg_penalty(ranks: Tensor, sequence_logps: Tensor, gain: Gain = "text", quotient: Quotient = "literal") -> Tensor:
    """The policy-agreement penalty of the paper, ``A_i = mean_j d_j - d_i``, in each of its readings.

    ``d_i = 1 - DCG(p_i) / DCG(r_i)``, where p_i is the policy's own rank of answer i. It looks only at how policy and
    oracle differ, not at whether the answer is good, and as the paper writes it, it pushes down the best answer where
    the policy underrates it: it is here for comparison and is not the default.

    Args:
        ranks: i64[P, G], as for :func:`dcg`.
        sequence_logps: f32[P, G], log-prob of each whole answer when it was sampled.
        gain: see :func:`gain_of`.
        quotient: see :func:`disagreement`.

    Returns:
        f32[P, G].
    """
    valid = ranks >= 0
    penalty = disagreement(_tied_gain(-sequence_logps, valid, gain), _tied_gain(ranks, valid, gain), quotient)
    penalty = penalty.masked_fill(sequence_logps.isnan(), torch.nan)  # which has no place, not the first
    return _centre(-penalty, valid, ranks)


def zscore(scores: Tensor, eps: float = ZSCORE_EPS) -> Tensor:
    """GRPO's own normalisation of scalar scores (Shao et al. 2024, arXiv 2402.03300): the baseline without ranks.

    Args:
        scores: f32[P, G], larger is better, NaN = no score.
        eps: added to the standard deviation (unbiased), as TRL does.

    Returns:
        f32[P, G]; 0 for an answer without a score and in groups of equal scores.

    Raises:
        ValueError: an infinite score (the host waits for the device to know).
    """
    check_scores(scores)
    valid = ~scores.isnan()
    n = valid.sum(-1, keepdim=True)
    filled = scores.double().nan_to_num(0.0)
    centred = (filled - filled.sum(-1, keepdim=True) / n.clamp(min=1)).masked_fill(~valid, 0.0)
    std = (centred.square().sum(-1, keepdim=True) / (n - 1).clamp(min=1)).sqrt()
    low = scores.nan_to_num(torch.inf).amin(-1, keepdim=True)
    high = scores.nan_to_num(-torch.inf).amax(-1, keepdim=True)
    return (centred / (std + eps)).masked_fill(low >= high, 0.0).float()


def check_scores(scores: Tensor) -> None:
    """Raise a ValueError that names an infinite score, which no mean and no deviation survives."""
    if torch.compiler.is_compiling() or (scores.is_cuda and torch.cuda.is_current_stream_capturing()):
        return
    if len(places := scores.isinf().nonzero()):
        at = places[0].tolist()
        raise ValueError(
            f"scores are {float(scores[tuple(at)])} at {at}; a score is finite, or NaN where there is none"
        )


def has_signal(keys: Tensor, valid: Tensor) -> Tensor:
    """bool[P, 1], whether a group's valid keys differ: a group without signal teaches nothing."""
    limits = torch.finfo(keys.dtype) if keys.dtype.is_floating_point else torch.iinfo(keys.dtype)
    low = keys.masked_fill(~valid, limits.max).amin(-1, keepdim=True)
    high = keys.masked_fill(~valid, limits.min).amax(-1, keepdim=True)
    return low < high
