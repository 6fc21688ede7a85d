"""The GRPO_rank loss of the framework: its settings, and the choice of implementation.

The arithmetic is in ``orlaif_kernels``; this module ties it to a recipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from orlaif_kernels import grpo_rank_loss, linear_grpo_rank_loss
from orlaif_kernels.arguments import Implementation, KLEstimator, LossSettings, LossType, RatioLevel, one_of
from orlaif_kernels.reference import loss_weights, token_logps

__all__ = ["GRPORankLoss", "grpo_rank_loss", "linear_grpo_rank_loss", "loss_weights", "token_logps"]


@dataclass(frozen=True, kw_only=True)
class GRPORankLoss:
    """Settings of the GRPO_rank loss, as a recipe states them under ``loss``.

    Args:
        clip_low: the ratio is clipped at ``1 - clip_low``.
        clip_high: and at ``1 + clip_high``.
        delta: upper bound of the unclipped ratio, or None.
        kl_coef: weight of the KL to the frozen reference; 0 means that no reference is loaded.
        kl_estimator: ``k1``, ``k2`` or ``k3``.
        entropy_coef: weight of the exact entropy over the vocabulary.
        loss_type: ``grpo`` (mean per completion, then mean), ``dapo`` (all tokens alike) or ``dr_grpo`` (constant
            length).
        ratio: ``token``, or ``sequence`` for one ratio per completion.
        implementation: ``torch``, ``triton``, or ``auto``: triton on CUDA, else torch.
        fused_head: take the loss from hidden states and the LM head, a chunk of tokens at a time, so that the logits
            of a batch never exist at once. The same loss; less memory, and no gradient work for a head that is frozen.

    Raises:
        ValueError: a setting is out of its range.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    delta: float | None = None
    kl_coef: float = 0.0
    kl_estimator: KLEstimator = "k3"
    entropy_coef: float = 0.0
    loss_type: LossType = "dapo"
    ratio: RatioLevel = "token"
    implementation: Implementation = "auto"
    fused_head: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.clip_low <= 1:
            raise ValueError(f"loss.clip_low is {self.clip_low}; it must lie in (0, 1]")
        if self.clip_high <= 0:
            raise ValueError(f"loss.clip_high is {self.clip_high}; it must be positive")
        if self.kl_coef < 0:
            raise ValueError(f"loss.kl_coef is {self.kl_coef}; it must be 0 or more")
        one_of("loss.implementation", self.implementation, Implementation)
        try:
            LossSettings(**{name: value for name, value in self.arguments.items() if name != "implementation"})
        except ValueError as error:
            raise ValueError(f"loss.{error}") from None

    @property
    def arguments(self) -> dict[str, Any]:
        """As keyword arguments of :func:`grpo_rank_loss` and :func:`linear_grpo_rank_loss`."""
        return {name: value for name, value in vars(self).items() if name != "fused_head"}
