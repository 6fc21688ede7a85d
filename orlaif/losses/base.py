"""The seam of losses: :class:`Loss`, and how the kernels take one.

Shapes: M tokens that count; or [N, T], N completions of T tokens, for a loss whose ``level`` is ``sequence``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from orlaif_kernels import linear_policy_loss, policy_loss
from orlaif_kernels.arguments import Implementation, KLEstimator, LossSettings, LossType, RatioLevel, one_of
from orlaif_kernels.objective import GRPORank
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Loss(ABC):
    """The seam a recipe fills: per-token terms from log-probs; a subclass is a dataclass that adds its settings.

    Args:
        kl_coef: weight of the KL to the frozen reference, added to each token's term; 0 means that no reference is
            loaded.
        kl_estimator: ``k1``, ``k2`` or ``k3``. In the loss the gradient of k1 ignores the reference.
        entropy_coef: weight of the exact entropy over the vocabulary, subtracted from each token's term.
        loss_type: what the sum of terms is divided by: ``grpo`` (mean per completion, then mean), ``dapo`` (all tokens
            alike) or ``dr_grpo`` (constant length).
        implementation: ``torch``, ``triton``, or ``auto``: triton on CUDA, else torch.
        fused_head: take the loss from hidden states and the LM head, a chunk of tokens at a time, so that the logits
            of a batch never exist at once. The same loss; less memory, and no gradient work for a head that is frozen.

    Raises:
        ValueError: a setting is out of its range.
    """

    kl_coef: float = 0.0
    kl_estimator: KLEstimator = "k3"
    entropy_coef: float = 0.0
    loss_type: LossType = "dapo"
    implementation: Implementation = "auto"
    fused_head: bool = False

    def __post_init__(self) -> None:
        if self.kl_coef < 0:
            raise ValueError(f"loss.kl_coef is {self.kl_coef}; it must be 0 or more")
        one_of("loss.implementation", self.implementation, Implementation)
        try:
            _ = self.settings
        except ValueError as error:
            raise ValueError(f"loss.{error}") from None

    @property
    def level(self) -> RatioLevel:
        """``token``; ``sequence`` for a loss that needs all tokens of a completion at once, [N, T] instead of [M]."""
        return "token"

    @abstractmethod
    def __call__(
        self, logp: Tensor, old: Tensor, reference: Tensor | None, entropy: Tensor, advantage: Tensor, mask: Tensor
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """What each token adds to the loss, to be minimised, before KL and entropy.

        Args:
            logp: f32[M], log-probs under the policy, with gradient.
            old: f32[M], under the policy that sampled; equal to ``logp``, without gradient, at the first update.
            reference: f32[M], under the frozen reference; None where ``kl_coef`` is 0.
            entropy: f32[M], of the distribution each token was drawn from, with gradient.
            advantage: f32[M].
            mask: bool[M], the tokens that count: all of [M], not all of [N, T], which hold 0 elsewhere.

        Returns:
            terms, shaped like ``logp``; or terms and a dict of per-token values, whose means are logged.
        """

    @property
    def settings(self) -> LossSettings:
        """What the kernels take of these."""
        return LossSettings(
            kl_coef=self.kl_coef,
            kl_estimator=self.kl_estimator,
            entropy_coef=self.entropy_coef,
            loss_type=self.loss_type,
        )

    def of_logits(self, logits: Tensor, token_ids: Tensor, **tokens: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics from logits, which may be overwritten; see :func:`orlaif_kernels.policy_loss`."""
        return policy_loss(logits, token_ids, Complete(self), inplace=True, **self._of_any, **tokens)

    def of_hidden(
        self, hidden: Tensor, weight: Tensor, token_ids: Tensor, **tokens: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics from hidden states and LM head; see :func:`orlaif_kernels.linear_policy_loss`."""
        return linear_policy_loss(hidden, weight, token_ids, Complete(self), **self._of_any, **tokens)

    @property
    def _of_any(self) -> dict[str, Any]:
        return {"loss_type": self.loss_type, "implementation": self.implementation}


@dataclass(frozen=True)
class Complete:
    """A loss with KL and entropy: what the kernels call an objective."""

    loss: Loss

    @property
    def level(self) -> str:
        """``token`` or ``sequence``."""
        return self.loss.level

    def __call__(self, *, advantage: Tensor, **values: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Terms and metrics, from the arguments of :meth:`Loss.__call__`."""
        made = self.loss(advantage=advantage, **values)
        terms, metrics = made if isinstance(made, tuple) else (made, {})
        # KL and entropy are what GRPO_rank has left where nothing is to be gained.
        rest, more = GRPORank(self.loss.settings)(advantage=torch.zeros_like(advantage), **values)
        return terms + rest, {name: more[name] for name in ("kl",) if name in more} | metrics
