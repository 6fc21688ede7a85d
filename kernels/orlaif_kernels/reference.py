"""The plain-PyTorch truth of the GRPO_rank loss: autograd over the definition, at any precision.

With ``w = exp(logp - old_logp)`` and per completion token the objective (to be maximised) is

    min(w A, clip(w, 1 - clip_low, 1 + clip_high) A) - kl_coef * KL(policy || reference) + entropy_coef * H(policy)

It follows GRPO (Shao et al. 2024, arXiv 2402.03300) with the asymmetric clip and the token-level normaliser of DAPO
(Yu et al. 2025, arXiv 2503.14476); what GRPO_rank (arXiv 2510.02561) changes is where A comes from, which is not this
file's business. Everything is computed in float32 or wider, whatever the dtype of the logits. With an upper bound
delta (INTELLECT-2, arXiv 2505.07291) the first term is ``min(w, delta) A``; with ``ratio="sequence"`` (GSPO, arXiv
2507.18071) the log of w is the mean of ``logp - old_logp`` over the completion.

Shapes: N completions (all groups of a rank, flattened), T tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from orlaif_kernels.arguments import KLEstimator, LossSettings, LossType


def _distribution(logits: Tensor, token_ids: Tensor, mask: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled logits, their log-sum-exp [N, T], and the log-prob [N, T] of each token (0 where masked)."""
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; it must be positive")
    scaled = (logits if logits.dtype == torch.float64 else logits.float()) / temperature
    lse = scaled.logsumexp(-1)
    target = scaled.gather(-1, token_ids.long().masked_fill(~mask, 0).unsqueeze(-1)).squeeze(-1)
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
        normalisers first and divide last. A row without tokens is no completion and counts nowhere.
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
    settings: LossSettings,
    old_logps: Tensor | None = None,
    ref_logps: Tensor | None = None,
    normalizer: Tensor | float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and metrics of :func:`orlaif_kernels.grpo_rank_loss`, differentiable by autograd; float64 stays
    float64."""
    if settings.softcap is not None:
        capped = settings.softcap * torch.tanh(logits / settings.softcap)
        logits = torch.where(logits == -torch.inf, logits, capped)
    scaled, lse, logps = _distribution(logits, token_ids, mask, settings.temperature)

    # Excluded entries have p = 0 and logit -inf; 0 * -inf would be NaN, in the backward pass as well.
    finite = scaled.masked_fill(scaled == -torch.inf, 0.0)
    probs = (scaled - lse.unsqueeze(-1)).exp()
    entropy = (lse - (probs * finite).sum(-1)).masked_fill(~mask, 0.0)

    old = logps.detach() if old_logps is None else old_logps.to(logps.dtype).masked_fill(~mask, 0.0)
    log_ratio = logps - old
    if settings.ratio == "sequence":
        log_ratio = (log_ratio.sum(-1) / mask.sum(-1).clamp(min=1)).unsqueeze(-1).expand_as(logps)
    a = advantages.to(logps.dtype).unsqueeze(-1)
    floor, cap_up, cap_down = settings.bounds
    with torch.no_grad():
        ratio = log_ratio.exp()
        low = (ratio < floor) & (a < 0) & mask
        high = (ratio > 1 + settings.clip_high) & (a > 0) & mask
        cap = torch.full_like(a, cap_down).masked_fill(a > 0, cap_up)
        over = ratio > cap
    # Where a bound binds the term is a constant; kept out of exp, whose overflow would make its zero gradient NaN.
    surrogate = log_ratio.masked_fill(low | over | (a == 0), 0.0).exp() * a
    surrogate = surrogate.where(~low, floor * a).where(~over | (a == 0), cap * a)
    objective = surrogate + settings.entropy_coef * entropy
    kl = None
    if ref_logps is not None:
        kl = token_kl(logps, ref_logps.to(logps.dtype).masked_fill(~mask, 0.0), settings.kl_estimator)
        if settings.kl_coef != 0:
            objective = objective - settings.kl_coef * kl

    weights, own = loss_weights(mask, settings.loss_type, mask.shape[1], logps.dtype)
    divisor = own.clamp(min=1) if normalizer is None else normalizer
    loss = -(objective * weights).sum() / divisor

    with torch.no_grad():
        tokens = mask.sum().clamp(min=1)
        metrics = {
            "loss": loss.detach(),
            "entropy": entropy.sum() / tokens,
            "clip_ratio/low_mean": low.sum() / tokens,
            "clip_ratio/high_mean": high.sum() / tokens,
            "clip_ratio/region_mean": (low | high).sum() / tokens,
        }
        if kl is not None:
            metrics["kl"] = kl.masked_fill(~mask, 0.0).sum() / tokens
    return loss, metrics
