"""Inputs that a GRPO loss meets and that break one, and the float64 truth to hold it against."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.kernels import truth as independent

MASKS = ("none", "ragged", "row", "all")
#: Largest error allowed, relative to the largest entry of the truth.
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 8e-3, torch.float16: 5e-4}


@dataclass
class Case:
    """Arguments of the loss, and its settings; ``token_ids`` and log-probs are poisoned where masked."""

    logits: Tensor
    token_ids: Tensor
    mask: Tensor
    advantages: Tensor
    old_logps: Tensor | None = None
    ref_logps: Tensor | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def arguments(self) -> dict[str, Any]:
        tensors = ("advantages", "mask", "old_logps", "ref_logps")
        return {**{name: getattr(self, name) for name in tensors}, **self.settings}

    def truth(self, grad_output: float = 1.0, logits: Tensor | None = None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Loss, gradient by the logits, and metrics, by autograd in float64."""
        logits = (self.logits if logits is None else logits).detach().double().requires_grad_()
        loss, metrics = truth(logits, self)
        (grad,) = torch.autograd.grad(loss * grad_output, logits)
        return loss.detach(), grad, metrics


def truth(logits: Tensor, case: Case) -> tuple[Tensor, dict[str, Tensor]]:
    return independent.loss(logits, case.token_ids, **case.arguments)


def make_mask(kind: str, n: int, t: int) -> Tensor:
    """``none`` masked, ``ragged`` lengths, a whole ``row``, or ``all``."""
    mask = torch.ones(n, t, dtype=torch.bool)
    if kind == "ragged":
        lengths = torch.randint(1, t + 1, (n,))
        mask = torch.arange(t) < lengths[:, None]
        mask[0, t // 2] = t == 1  # a hole in the middle as well
    elif kind == "row":
        mask[n // 2] = False
    elif kind == "all":
        mask[:] = False
    return mask


def make_case(
    n: int = 3,
    t: int = 4,
    v: int = 1000,
    *,
    dtype: torch.dtype = torch.float32,
    mask: str = "ragged",
    old: bool = True,
    ref: bool = True,
    seed: int = 0,
    logits: Tensor | None = None,
    **settings: Any,
) -> Case:
    """Random inputs whose ratios keep off the edges of the clip, where a rounding decides on which side they fall."""
    torch.manual_seed(seed)
    if logits is None:
        logits = (torch.randn(n, t, v) * 3).to(dtype)
    n, t, v = logits.shape
    token_ids = torch.randint(v, (n, t))
    kept = make_mask(mask, n, t)
    advantages = torch.randn(n)
    advantages[-1] = 0.0
    if settings.get("loss_type") == "dr_grpo":
        settings.setdefault("max_completion_length", t)
    scale = {
        k: settings.get(k, default) for k, default in (("temperature", 1.0), ("softcap", None), ("logit_scale", 1.0))
    }
    logps = independent.statistics(independent.scaled(logits.double(), **scale), token_ids)[0]
    # Inside, beyond either edge of any clip used here, and beyond delta.
    shifts = torch.tensor([0.0, 0.05, -0.05, 0.5, -0.5, 1.0])
    old_logps = logps - shifts[torch.randint(len(shifts), (n, t))]
    ref_logps = logps + torch.randn(n, t) * 0.3
    poison = ~kept
    return Case(
        logits=logits,
        token_ids=token_ids.masked_fill(poison, -100),
        mask=kept,
        advantages=advantages,
        old_logps=old_logps.float().masked_fill(poison, math.nan) if old else None,
        ref_logps=ref_logps.float().masked_fill(poison, math.nan) if ref else None,
        settings=settings,
    )


def relative(got: Tensor, expected: Tensor) -> float:
    """Largest error relative to the largest entry (to 1 where all are 0)."""
    largest = expected.abs().max().item()
    return (got.double() - expected).abs().max().item() / (largest or 1.0)
