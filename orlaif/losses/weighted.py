"""Losses without a clip that stops the gradient: CISPO weighs it, SAPO closes a gate.

Shapes: those of :class:`orlaif.losses.Loss`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from orlaif_kernels.arguments import LossType
from torch import Tensor

from orlaif.losses.base import Loss


@dataclass(frozen=True, kw_only=True)
class CISPO(Loss):
    """CISPO (MiniMax-M1, arXiv 2506.13585): the weight is clipped, not the gradient.

    ``-sg[min(w, 1 + clip_high)] A logp``: tokens beyond the clip go on to learn. As in the paper nothing clips from
    below.

    Args:
        clip_high: the weight is at most ``1 + clip_high`` (5 in ScaleRL, 2510.13786).
    """

    clip_high: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.clip_high > 0:
            raise ValueError(f"loss.clip_high is {self.clip_high}; it must be positive")

    def __call__(
        self, logp: Tensor, old: Tensor, reference: Tensor | None, entropy: Tensor, advantage: Tensor, mask: Tensor
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Terms, and which weights were clipped."""
        ratio = (logp - old).detach().exp()
        clipped = (ratio > 1 + self.clip_high) & (advantage > 0)
        terms = -ratio.clamp(max=1 + self.clip_high) * advantage * logp
        return terms, {"clip_ratio/high_mean": clipped.to(logp.dtype)}


@dataclass(frozen=True, kw_only=True)
class SAPO(Loss):
    """SAPO (Gao et al. 2025, arXiv 2511.20347): a soft gate in place of the clip.

    ``-(4 / tau) sigmoid(tau (w - 1)) A``, with ``tau_pos`` where A > 0 and ``tau_neg`` elsewhere: the gradient fades as
    w leaves 1, and faster for bad answers.

    Args:
        tau_pos: temperature of good answers.
        tau_neg: temperature of bad answers.
    """

    loss_type: LossType = "grpo"
    tau_pos: float = 1.0
    tau_neg: float = 1.05

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tau_pos", "tau_neg"):
            if not getattr(self, name) > 0:
                raise ValueError(f"loss.{name} is {getattr(self, name)}; it must be positive")

    def __call__(
        self, logp: Tensor, old: Tensor, reference: Tensor | None, entropy: Tensor, advantage: Tensor, mask: Tensor
    ) -> Tensor:
        """Terms."""
        tau = torch.where(advantage > 0, self.tau_pos, self.tau_neg)
        ratio = (logp - old).clamp(max=20.0).exp()  # the gate is shut long before; inf would make its gradient NaN
        return -4 / tau * torch.sigmoid(tau * (ratio - 1)) * advantage
