"""What a loss is: per-token terms from log-probs and entropies; and everything around it that is no loss's business.

An *objective* is a plain PyTorch function ``(logp, old, reference, entropy, advantage, mask) -> terms``, all alike in
shape: [M], the tokens that count, or [N, T] where ``objective.level`` is ``"sequence"``. Terms are to be minimised;
with them it may return a dict of per-token values, whose means become metrics. Masked places hold 0 and do not count.
``old`` is the log-prob when sampled (``logp.detach()`` where there was one update: a ratio of exactly 1), ``reference``
None where there is none. Weights, normalisers and microbatches are applied outside. :class:`GRPORank` is one of them.

Shapes: N completions (all groups of a process, flattened), T tokens, M tokens that count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from orlaif_kernels.arguments import KLEstimator, LossSettings, LossType, one_of, whole_number

Objective = Callable[..., Any]
#: What :class:`GRPORank` says of each token; ``kl`` where there is a reference.
METRICS = ("kl", "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean", "clip_ratio/runaway_mean")


def bound(x: Tensor, most: float) -> tuple[Tensor, Tensor]:
    """``x`` within +-``most`` (no gradient beyond), and where it was beyond; NaN stays NaN."""
    beyond = x.detach().abs() > most
    return torch.where(beyond, x.detach().sign() * most, x), beyond


def token_kl(
    logps: Tensor, ref_logps: Tensor, estimator: KLEstimator, most: float = torch.inf
) -> tuple[Tensor, Tensor]:
    """Per-token estimate of KL(policy || reference) from samples of the policy (Schulman 2020, "Approximating KL").

    Args:
        logps: under the policy, with gradient.
        ref_logps: under the reference, alike in shape.
        estimator: ``k1`` = -log r, ``k2`` = (log r)^2 / 2, ``k3`` = r - 1 - log r, with r = reference / policy.
        most: bound of log r in ``k3``.

    Returns:
        the estimate, and where the bound held.
    """
    log_r = ref_logps - logps
    one_of("kl_estimator", estimator, KLEstimator)
    if estimator == "k3":
        log_r, beyond = bound(log_r, most)
        return torch.expm1(log_r) - log_r, beyond
    return -log_r if estimator == "k1" else log_r.square() / 2, torch.zeros_like(log_r, dtype=torch.bool)


@dataclass(frozen=True, eq=False)  # torch 2.11 cannot compile a call of one that hashes its fields
class GRPORank:
    """Minus ``min(w A, clip(w, 1 - clip_low, 1 + clip_high) A) - kl_coef KL + entropy_coef H`` per token.

    It follows GRPO (Shao et al. 2024, arXiv 2402.03300) with the asymmetric clip of DAPO (2503.14476); what GRPO_rank
    (2510.02561) changes is where A comes from. ``delta`` bounds w from above (INTELLECT-2, 2505.07291); with ``ratio``
    ``sequence`` (GSPO, 2507.18071) log w is the mean of ``logp - old`` over the completion.
    """

    settings: LossSettings

    @property
    def level(self) -> str:
        """``token`` or ``sequence``."""
        return self.settings.ratio

    @property
    def fusible(self) -> bool:
        """Whether ``token_kernel.term`` has it."""
        return self.settings.ratio == "token" and self.settings.kl_in == "loss"

    def __call__(
        self, logp: Tensor, old: Tensor, reference: Tensor | None, entropy: Tensor, advantage: Tensor, mask: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Terms and metrics, alike in shape."""
        s, a = self.settings, advantage
        log_ratio = logp - old
        if s.ratio == "sequence":
            mean = log_ratio.masked_fill(~mask, 0.0).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
            log_ratio = mean.expand_as(logp)
        log_ratio, runaway = bound(log_ratio, s.most)
        cost = -s.entropy_coef * entropy
        metrics: dict[str, Tensor] = {}
        if reference is not None:
            # In the advantage it is a reward, a constant of the policy that sampled.
            policy = logp if s.kl_in == "loss" else old.detach()
            kl, beyond = token_kl(policy, reference, s.kl_estimator, s.most)
            runaway, metrics["kl"] = runaway | beyond, kl
            if s.kl_in == "advantage":
                a = a - s.kl_coef * kl
            elif s.kl_coef != 0:
                cost = cost + s.kl_coef * kl
        floor, cap_up, cap_down = s.bounds
        with torch.no_grad():
            ratio = log_ratio.exp()
            low, high = (a < 0) & (ratio < floor), (a > 0) & (ratio > 1 + s.clip_high)
            cap = torch.full_like(a, cap_down).masked_fill(a > 0, cap_up)
            over = ratio > cap
        # Where a bound binds the term is a constant; kept out of exp, whose overflow would make its zero gradient NaN.
        constant = low | over | ((a == 0) & ~log_ratio.isnan())
        surrogate = log_ratio.masked_fill(constant, 0.0).exp() * a
        surrogate = surrogate.where(~low, floor * a).where(~over | (a == 0), cap * a)
        counts = (low, high, low | high, runaway)
        return cost - surrogate, metrics | {k: x.to(logp.dtype) for k, x in zip(METRICS[1:], counts, strict=True)}


def loss_weights(
    mask: Tensor, loss_type: LossType, max_length: int | None = None, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """How much each token counts, and what they all count together.

    Args:
        mask: bool[N, T], True on the tokens that count.
        loss_type: ``grpo`` = mean per completion, then mean; ``dapo`` = all tokens alike; ``dr_grpo`` = sum over a
            constant length.
        max_length: that constant, for ``dr_grpo``.
        dtype: of what is returned.

    Returns:
        weights [N, T] (0 where masked), and their normaliser, a 0-dim tensor: over several batches, sum weights and
        normalisers first and divide last. A row without tokens is no completion and counts nowhere.
    """
    one_of("loss_type", loss_type, LossType)
    weights = mask.to(dtype)
    if loss_type == "grpo":
        lengths = mask.sum(-1, keepdim=True)
        return weights / lengths.clamp(min=1), (lengths > 0).to(dtype).sum()
    if loss_type == "dapo":
        return weights, weights.sum()
    if max_length is None:
        raise ValueError("loss_type 'dr_grpo' divides by a constant: pass max_completion_length, or a normalizer")
    whole_number("max_completion_length", max_length)
    return weights, mask.any(-1).to(dtype).sum() * max_length
