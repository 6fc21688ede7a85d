"""What the losses take by keyword, said once: see each class's fields.

Shapes: N completions, T tokens, V vocabulary; C completions packed in one row.
"""

from __future__ import annotations

from typing import Required, TypedDict

from torch import Tensor
from torch.distributed import ProcessGroup

from orlaif_kernels.arguments import KLEstimator, KLPlace, LossType, Mapping, RatioLevel


class LossArguments(TypedDict, total=False):
    """What every loss is given, by keyword.

    Args:
        mask: bool[N, T] (or 0 and 1), True on completion tokens. Required. Elsewhere everything may hold anything, NaN
            included.
        advantages: f32[N] or f32[N, T]; or else
        ranks: i64[N] or i64[N / G, G] (or i32), as for :func:`rank_advantage`, whose map is then part of this
            operation. A completion of weight 0 (not ranked, or all of its group alike) does not count at all: no term,
            no KL, and nothing in what the loss is divided by.
        group_size: G, with ``ranks``.
        mapping: ``dcg``, ``borda`` or ``ndcg_penalty`` (sequence log-probs are then summed from ``old_logps``).
        old_logps: f32[N, T] of the policy that sampled; None means it was this policy: the ratio is exactly 1.
        ref_logps: f32[N, T] of the frozen reference; required where ``kl_coef`` is not 0.
        token_weights: f32[N, T], multiplies each token's term, such as a truncated importance weight of another
            engine's samples; it does not enter what the loss is divided by.
        cu_seqlens: i32[C + 1] or i64[C + 1]: N is 1 and C completions lie one after the other, the c-th from
            ``cu_seqlens[c]`` on; ``advantages`` and ``ranks`` are then of C. (The host waits for their lengths.)
        loss_type: ``grpo`` = mean per completion, then mean; ``dapo`` = all tokens alike; ``dr_grpo`` = sum over a
            constant length. A completion without tokens is none and counts nowhere.
        max_completion_length: that constant, for ``dr_grpo`` without ``normalizer``.
        normalizer: one positive number, divides the weighted sum; None means this call's own (1 if that is 0).
        temperature: divides the logits, as in sampling.
        softcap: final-logit soft-capping c, ``c tanh(logit / c)``, of the families that have it.
        logit_scale: multiplies the logits before that, of the families that have it.
        implementation: ``auto`` (triton on CUDA, else torch), ``torch`` or ``triton``.
    """

    mask: Required[Tensor]
    advantages: Tensor | None
    ranks: Tensor | None
    group_size: int | None
    mapping: Mapping
    old_logps: Tensor | None
    ref_logps: Tensor | None
    token_weights: Tensor | None
    cu_seqlens: Tensor | None
    loss_type: LossType
    max_completion_length: int | None
    normalizer: Tensor | float | None
    temperature: float
    softcap: float | None
    logit_scale: float
    implementation: str


class GRPOArguments(LossArguments, total=False):
    """And what GRPO_rank's objective is given.

    Args:
        clip_low: the ratio is clipped at ``1 - clip_low``.
        clip_high: and at ``1 + clip_high``.
        delta: upper bound of the unclipped ratio, which is what bounds the loss of a bad answer; None = unbounded.
        kl_coef: weight of the KL to the reference.
        kl_estimator: ``k1``, ``k2`` or ``k3``. In the loss the gradient of k1 ignores the reference and has mean zero.
        kl_in: ``loss``, or ``advantage``: ``A - kl_coef KL`` per token, of the log-probs when sampled, without
        gradient. entropy_coef: weight of the exact entropy over the vocabulary.
        ratio: ``token``, or ``sequence``: one ratio per completion, the geometric mean of its tokens'.
        max_log_ratio: log-ratios beyond this, to the old policy or (``k3``) to the reference, count as this and have no
            gradient, so that one runaway token makes no inf; how many tokens is ``clip_ratio/runaway_mean``. None = no
            bound.
    """

    clip_low: float
    clip_high: float
    delta: float | None
    kl_coef: float
    kl_estimator: KLEstimator
    kl_in: KLPlace
    entropy_coef: float
    ratio: RatioLevel
    max_log_ratio: float | None


class HeadArguments(TypedDict, total=False):
    """What a head is given, by keyword.

    Args:
        bias: [V] or None.
        chunk_size: tokens per chunk; by default 2048 on a GPU, less on a CPU.
        fp32_logits: keep the logits of 16-bit GEMMs in float32: exact where bf16 rounds a log-prob by about .006, for
            2.5 times the memory of a chunk.
        vocabulary_group: processes among which the head's rows are split, in the order of ranks: ``weight`` (and
            ``bias``) are this one's rows, or a ``DTensor`` of which it has its own. Hidden states and all else must be
            the same on every one of them, and each gets the whole gradient of the hidden states and that of its rows.
    """

    bias: Tensor | None
    chunk_size: int | None
    fp32_logits: bool
    vocabulary_group: ProcessGroup | None


class LinearLossArguments(LossArguments, HeadArguments, total=False):
    """Of any objective, through a head."""


class LinearGRPOArguments(GRPOArguments, HeadArguments, total=False):
    """Of GRPO_rank, through a head."""
