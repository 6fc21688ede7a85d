"""The plain-PyTorch truth of the GRPO_rank loss.

With ``w = exp(logp - old_logp)`` and per completion token the objective (to be maximised) is

    min(w A, clip(w, 1 - clip_low, 1 + clip_high) A) - kl_coef * KL(policy || reference) + entropy_coef * H(policy)

It follows GRPO (Shao et al. 2024, arXiv 2402.03300) with the asymmetric clip and the token-level normaliser of DAPO
(Yu et al. 2025, arXiv 2503.14476); what GRPO_rank (arXiv 2510.02561) changes is where A comes from, which is not this
file's business. Everything is computed in float32 or wider, whatever the dtype of the logits.

Shapes: N completions (all groups of a rank, flattened), T tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

KLEstimator = Literal["k1", "k2", "k3"]
LossType = Literal["grpo", "dapo", "dr_grpo"]


def _distribution(logits: Tensor, token_ids: Tensor, mask: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled logits, their log-sum-exp [N, T], and the log-prob [N, T] of each token (0 where masked)."""
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; it must be positive")
    scaled = (logits if logits.dtype == torch.float64 else logits.float()) / temperature
    lse = scaled.logsumexp(-1)
    target = scaled.gather(-1, token_ids.masked_fill(~mask, 0).unsqueeze(-1)).squeeze(-1)
    return scaled, lse, (target - lse).masked_fill(~mask, 0.0)


def token_logps(logits: Tensor, token_ids: Tensor, *, mask: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probs of given tokens.

    Args:
        logits: [N, T, V], any float dtype; -inf excludes an entry of the vocabulary.
        token_ids: i64[N, T]; masked places may hold anything.
        mask: bool[N, T], True on completion tokens.
        temperature: divides the logits.

    Returns:
        f32[N, T] (f64 for f64 logits), 0 where masked.
    """
    return _distribution(logits, token_ids, mask, temperature)[2]


def token_kl(logps: Tensor, ref_logps: Tensor, estimator: KLEstimator) -> Tensor:
    """Per-token estimate of KL(policy || reference) from samples of the policy (Schulman 2020, "Approximating KL").

    Args:
        logps: [N, T] under the policy, with gradient.
        ref_logps: [N, T] under the reference.
        estimator: ``k1`` = -log r, ``k2`` = (log r)^2 / 2, ``k3`` = r - 1 - log r, with r = reference / policy.

    Returns:
        [N, T].
    """
    log_r = ref_logps - logps
    if estimator == "k1":
        return -log_r
    if estimator == "k2":
        return log_r.square() / 2
    if estimator == "k3":
        return torch.expm1(log_r) - log_r
    raise ValueError(f"kl_estimator is {estimator!r}; it must be 'k1', 'k2' or 'k3'")


def loss_weights(
    mask: Tensor, loss_type: LossType, max_length: int | None = None, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """How much each token counts, and what they all count together.

    Args:
        mask: bool[N, T], True on completion tokens.
        loss_type: ``grpo`` = mean per completion, then mean; ``dapo`` = all tokens alike; ``dr_grpo`` = sum over a
            constant length.
        max_length: that constant, for ``dr_grpo``.
        dtype: of what is returned.

    Returns:
        weights [N, T] (0 where masked), and their normaliser, a 0-dim tensor: over several batches, sum weights and
        normalisers first and divide last.
    """
    weights = mask.to(dtype)
    if loss_type == "grpo":
        lengths = mask.sum(-1, keepdim=True)
        return weights / lengths.clamp(min=1), (lengths > 0).to(dtype).sum()
    if loss_type == "dapo":
        return weights, weights.sum()
    if loss_type == "dr_grpo":
        if max_length is None or max_length < 1:
            raise ValueError(f"max_length is {max_length}; loss_type 'dr_grpo' needs the constant length, 1 or more")
        return weights, mask.any(-1).to(dtype).sum() * max_length
    raise ValueError(f"loss_type is {loss_type!r}; it must be 'grpo', 'dapo' or 'dr_grpo'")


def grpo_rank_loss(
    logits: Tensor,
    token_ids: Tensor,
    *,
    advantages: Tensor,
    mask: Tensor,
    old_logps: Tensor | None = None,
    ref_logps: Tensor | None = None,
    temperature: float = 1.0,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_coef: float = 0.0,
    kl_estimator: KLEstimator = "k3",
    entropy_coef: float = 0.0,
    loss_type: LossType = "dapo",
    max_length: int | None = None,
    normalizer: Tensor | float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The clipped-ratio GRPO_rank loss (to be minimised) and its metrics.

    Args:
        logits: [N, T, V] at the positions that predict the completion tokens, any float dtype.
        token_ids: i64[N, T]; masked places may hold anything.
        advantages: f32[N].
        mask: bool[N, T], True on completion tokens.
        old_logps: f32[N, T] of the policy that sampled; None means it was this policy, so that the ratio is 1.
        ref_logps: f32[N, T] of the frozen reference; required if ``kl_coef`` is not 0.
        temperature: divides the logits, as in sampling.
        clip_low: the ratio is clipped at ``1 - clip_low``.
        clip_high: and at ``1 + clip_high``.
        kl_coef: weight of the KL to the reference.
        kl_estimator: ``k1``, ``k2`` or ``k3``.
        entropy_coef: weight of the exact entropy over the vocabulary.
        loss_type: ``grpo``, ``dapo`` or ``dr_grpo`` (see :func:`loss_weights`).
        max_length: constant length of ``dr_grpo``.
        normalizer: divides the weighted sum; None means this call's own (1 if that is 0).

    Returns:
        The loss, a 0-dim tensor with gradient, and detached 0-dim metrics: ``loss, kl, entropy, clip_ratio/low_mean,
        clip_ratio/high_mean, clip_ratio/region_mean``, means over completion tokens (``kl`` only with ``ref_logps``).

    Raises:
        ValueError: ``kl_coef`` without ``ref_logps``, or an unknown estimator, loss type or temperature.
    """
    if kl_coef != 0 and ref_logps is None:
        raise ValueError(f"kl_coef is {kl_coef} but ref_logps is missing; pass them or set kl_coef to 0")
    scaled, lse, logps = _distribution(logits, token_ids, mask, temperature)

    # Excluded entries have p = 0 and logit -inf; 0 * -inf would be NaN, in the backward pass as well.
    finite = scaled.masked_fill(scaled == -torch.inf, 0.0)
    probs = (scaled - lse.unsqueeze(-1)).exp()
    entropy = (lse - (probs * finite).sum(-1)).masked_fill(~mask, 0.0)

    old = logps.detach() if old_logps is None else old_logps.to(logps.dtype).masked_fill(~mask, 0.0)
    log_ratio = logps - old
    a = advantages.to(logps.dtype).unsqueeze(-1)
    with torch.no_grad():
        ratio = log_ratio.exp()
        low = (ratio < 1 - clip_low) & (a < 0) & mask
        high = (ratio > 1 + clip_high) & (a > 0) & mask
    # Where the clip binds the term is a constant; kept out of exp, whose overflow would make its zero gradient NaN.
    surrogate = log_ratio.masked_fill(low | high | (a == 0), 0.0).exp() * a
    surrogate = surrogate.where(~low, (1 - clip_low) * a).where(~high, (1 + clip_high) * a)
    objective = surrogate + entropy_coef * entropy
    kl = None
    if ref_logps is not None:
        kl = token_kl(logps, ref_logps.to(logps.dtype).masked_fill(~mask, 0.0), kl_estimator)
        if kl_coef != 0:
            objective = objective - kl_coef * kl

    weights, own_normalizer = loss_weights(mask, loss_type, max_length, logps.dtype)
    total = -(objective * weights).sum()
    loss = total / (own_normalizer.clamp(min=1) if normalizer is None else normalizer)

    with torch.no_grad():
        tokens = mask.sum().clamp(min=1)
        metrics = {
            "loss": total.detach() / own_normalizer.clamp(min=1),
            "entropy": entropy.sum() / tokens,
            "clip_ratio/low_mean": low.sum() / tokens,
            "clip_ratio/high_mean": high.sum() / tokens,
            "clip_ratio/region_mean": (low | high).sum() / tokens,
        }
        if kl is not None:
            metrics["kl"] = kl.masked_fill(~mask, 0.0).sum() / tokens
    return loss, metrics
