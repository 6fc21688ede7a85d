"""Losses with a clipped ratio: GRPO_rank, the default, and two that choose otherwise among its settings.

Shapes: those of :class:`orlaif.losses.Loss`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from orlaif_kernels import grpo_rank_loss, linear_grpo_rank_loss
from orlaif_kernels.arguments import KLPlace, LossSettings, LossType, RatioLevel
from orlaif_kernels.objective import GRPORank
from torch import Tensor

from orlaif.losses.base import Loss


@dataclass(frozen=True, kw_only=True)
class GRPORankLoss(Loss):
    """The GRPO_rank loss (Oracle-RLAIF, arXiv 2510.02561): GRPO's clipped objective with ranks behind its advantages.

    ``min(w A, clip(w, 1 - clip_low, 1 + clip_high) A)``, ``w = exp(logp - old)`` (GRPO, 2402.03300; DAPO, 2503.14476).

    Args:
        clip_low: the ratio is clipped at ``1 - clip_low``.
        clip_high: and at ``1 + clip_high``.
        delta: upper bound of the unclipped ratio (INTELLECT-2, 2505.07291), or None.
        kl_in: ``loss``, or ``advantage``: ``A - kl_coef KL`` per token, of the log-probs when sampled.
        ratio: ``token``, or ``sequence`` for one ratio per completion.
        max_log_ratio: log-ratios beyond this count as this and have no gradient, so that one runaway token makes no
            inf (``train/clip_ratio/runaway_mean`` counts them); None = no bound.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    delta: float | None = None
    kl_in: KLPlace = "loss"
    ratio: RatioLevel = "token"
    max_log_ratio: float | None = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.clip_low <= 1:
            raise ValueError(f"loss.clip_low is {self.clip_low}; it must lie in (0, 1]")
        if self.clip_high <= 0:
            raise ValueError(f"loss.clip_high is {self.clip_high}; it must be positive")
        super().__post_init__()
        if self.kl_in == "advantage" and not self.is_fused:
            raise ValueError("loss.kl_in is 'advantage', which GRPO_rank's own terms have alone; set it to 'loss'")

    @property
    def level(self) -> RatioLevel:
        """That of the ratio."""
        return self.ratio

    @property
    def is_fused(self) -> bool:
        """Whether the kernels have these terms themselves: not those of a class that changes them."""
        return type(self).__call__ is GRPORankLoss.__call__

    @property
    def settings(self) -> LossSettings:
        """All of these but how they are computed."""
        return LossSettings(**self._stated)

    @property
    def _stated(self) -> dict[str, Any]:
        how = ("implementation", "fused_head")
        return {one.name: getattr(self, one.name) for one in fields(GRPORankLoss) if one.name not in how}

    def __call__(
        self, logp: Tensor, old: Tensor, reference: Tensor | None, entropy: Tensor, advantage: Tensor, mask: Tensor
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """:class:`orlaif_kernels.objective.GRPORank`, but for KL and entropy."""
        bare = GRPORank(replace(self.settings, kl_coef=0.0, entropy_coef=0.0))
        return bare(logp, old, None, entropy, advantage, mask)

    def of_logits(self, logits: Tensor, token_ids: Tensor, **tokens: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """By the fused kernel, where it has these terms; see :func:`orlaif_kernels.grpo_rank_loss`."""
        if not self.is_fused:
            return super().of_logits(logits, token_ids, **tokens)
        how = self._stated | {"implementation": self.implementation}
        return grpo_rank_loss(logits, token_ids, inplace=True, **how, **tokens)

    def of_hidden(
        self, hidden: Tensor, weight: Tensor, token_ids: Tensor, **tokens: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """By the fused kernel, where it has these terms; see :func:`orlaif_kernels.linear_grpo_rank_loss`."""
        if not self.is_fused:
            return super().of_hidden(hidden, weight, token_ids, **tokens)
        how = self._stated | {"implementation": self.implementation}
        return linear_grpo_rank_loss(hidden, weight, token_ids, **how, **tokens)


@dataclass(frozen=True, kw_only=True)
class DrGRPO(GRPORankLoss):
    """Dr. GRPO (Liu et al. 2025, arXiv 2503.20783): a constant in place of each completion's length.

    ``sum_t min(w_t A, clip(w_t) A) / L``, so that a long wrong answer is not punished less per token; ``L`` is
    ``rollout.sampling.max_new_tokens``. Its other half, no division by a group's standard deviation, is the mapping's:
    none of orlaif's but ``ZScore`` divides.
    """

    loss_type: LossType = "dr_grpo"


@dataclass(frozen=True, kw_only=True)
class GSPO(GRPORankLoss):
    """GSPO (Zheng et al. 2025, arXiv 2507.18071): one ratio per completion, the geometric mean of its tokens'.

    ``min(s A, clip(s) A)``, ``s = exp(mean_t (logp_t - old_t))``; equation 13, GSPO-token, has the same ratio with the
    gradient of one token each, ``s_t = sg[s] pi_t / sg[pi_t]``, for advantages that differ within a completion.

    Args:
        clip_low: as the paper's: a mean over tokens moves less than a token.
        clip_high: likewise.
        ratio: ``sequence``, or ``token`` for GSPO-token.
    """

    clip_low: float = 3e-4
    clip_high: float = 4e-4
    loss_type: LossType = "grpo"
    ratio: RatioLevel = "sequence"

    @property
    def level(self) -> RatioLevel:
        """Both need a completion's every token."""
        return "sequence"

    @property
    def is_fused(self) -> bool:
        """Not GSPO-token."""
        return type(self).__call__ is GSPO.__call__ and self.ratio == "sequence"

    def __call__(
        self, logp: Tensor, old: Tensor, reference: Tensor | None, entropy: Tensor, advantage: Tensor, mask: Tensor
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """As GRPO_rank, from another ``old`` for GSPO-token."""
        if self.ratio == "token":
            difference = (logp - old).detach().masked_fill(~mask, 0.0)
            mean = difference.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
            old = logp.detach() - mean
        return super().__call__(logp, old, reference, entropy, advantage, mask)
