"""The loss by its definition, in float64, a completion at a time: what the kernels are held against. It shares no code
with them, nor with each other implementation: nothing is imported from orlaif_kernels."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor


def scaled(logits: Tensor, temperature: float, softcap: float | None, logit_scale: float) -> Tensor:
    """Logits as they enter the softmax; an excluded one stays -inf."""
    z = logits.masked_fill(logits == -math.inf, 0.0) * logit_scale
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    return (z / temperature).masked_fill(logits == -math.inf, -math.inf)


def statistics(z: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Log-prob and entropy of tokens [L] under logits [L, V]."""
    lse = torch.logsumexp(z, -1, keepdim=True)
    excluded = z == -math.inf
    log_p = (z.masked_fill(excluded, 0.0) - lse).masked_fill(excluded, 0.0)  # exp of -lse may be inf
    p = log_p.exp().masked_fill(excluded, 0.0)
    return (z - lse).gather(-1, ids.long().unsqueeze(-1)).squeeze(-1), -(p * log_p).sum(-1)


def within(x: Tensor, most: float | None) -> tuple[Tensor, Tensor]:
    if most is None:
        return x, torch.zeros_like(x, dtype=torch.bool)
    return x.clamp(-most, most), x.detach().abs() > most


def loss(
    logits: Tensor,
    token_ids: Tensor,
    *,
    mask: Tensor,
    advantages: Tensor,
    old_logps: Tensor | None = None,
    ref_logps: Tensor | None = None,
    token_weights: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    delta: float | None = None,
    kl_coef: float = 0.0,
    kl_estimator: str = "k3",
    kl_in: str = "loss",
    entropy_coef: float = 0.0,
    loss_type: str = "dapo",
    ratio: str = "token",
    max_log_ratio: float | None = 20.0,
    max_completion_length: int | None = None,
    normalizer: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and metrics; float64 throughout."""
    n, t = token_ids.shape
    if cu_seqlens is None:
        spans = [(row, 0, t) for row in range(n)]
    else:
        spans = [(0, int(a), int(b)) for a, b in itertools.pairwise(cu_seqlens)]
    total, count = (logits.double().masked_fill(~logits.isfinite(), 0.0) * 0.0).sum(), 0.0
    told: dict[str, list[Tensor]] = {k: [] for k in ("entropy", "kl", "low", "high", "runaway")}
    for i, (row, start, end) in enumerate(spans):
        kept = torch.arange(start, end)[mask[row, start:end].bool()]
        if len(kept) == 0:
            continue

        def of(x: Tensor, row: int = row, kept: Tensor = kept) -> Tensor:
            return x[row, kept].double()

        logp, entropy = statistics(scaled(of(logits), temperature, softcap, logit_scale), token_ids[row, kept])
        old = logp.detach() if old_logps is None else of(old_logps)
        a = of(advantages) if advantages.shape == token_ids.shape else advantages[i].double().expand(len(kept))
        log_ratio = logp - old
        if ratio == "sequence":
            log_ratio = log_ratio.mean().expand(len(kept))
        log_ratio, runaway = within(log_ratio, max_log_ratio)
        kl = None
        if ref_logps is not None:
            x = of(ref_logps) - (logp if kl_in == "loss" else old)
            if kl_estimator == "k3":
                x, beyond = within(x, max_log_ratio)
                runaway = runaway | beyond
            kl = {"k1": -x, "k2": x**2 / 2, "k3": x.exp() - 1 - x}[kl_estimator]
            if kl_in == "advantage":
                a = a - kl_coef * kl
        w = log_ratio.exp()
        unclipped = w * a if delta is None else w.clamp(max=delta) * a
        # Not torch.clamp, which has no gradient in a clip of width 0.
        low, high = torch.full_like(w, 1 - clip_low), torch.full_like(w, 1 + clip_high)
        clipped = torch.where(w > high, high, torch.where(w < low, low, w))
        term = torch.min(unclipped, clipped * a)
        if kl is not None and kl_in == "loss" and kl_coef:
            term = term - kl_coef * kl
        term = term + entropy_coef * entropy
        weight = torch.ones(len(kept), dtype=torch.float64) if token_weights is None else of(token_weights)
        if loss_type == "grpo":
            weight = weight / len(kept)
        count += {"grpo": 1, "dapo": len(kept), "dr_grpo": max_completion_length or 0}[loss_type]
        total = total - (weight * term).sum()
        told["entropy"].append(entropy)
        told["low"].append((a < 0) & (w < 1 - clip_low))
        told["high"].append((a > 0) & (w > 1 + clip_high))
        told["runaway"].append(runaway)
        if kl is not None:
            told["kl"].append(kl)
    total = total / (max(count, 1.0) if normalizer is None else float(normalizer))
    mean = {k: torch.cat(x).detach().double().mean() if x else torch.zeros(()).double() for k, x in told.items()}
    metrics = {"loss": total.detach(), "entropy": mean["entropy"]}
    metrics |= {f"clip_ratio/{k}_mean": mean[k] for k in ("low", "high", "runaway")}
    metrics["clip_ratio/region_mean"] = mean["low"] + mean["high"]
    return total, metrics | ({} if ref_logps is None else {"kl": mean["kl"]})
