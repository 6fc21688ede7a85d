"""The losses that a recipe names: what a token adds to the loss, and the settings of that.

A :class:`Loss` is a class with its settings and one function of per-token log-probs. All else is not its business:
accumulation, microbatches, what the sum is divided by, metrics, the fused head. The arithmetic of GRPO_rank is in
``orlaif_kernels``, once in PyTorch and once in Triton; the others differ from it by a few lines, and are taken through
the same kernels (``policy_loss``, ``linear_policy_loss``).
"""

from orlaif_kernels import grpo_rank_loss, linear_grpo_rank_loss
from orlaif_kernels.objective import loss_weights

from orlaif.losses.base import Loss
from orlaif.losses.clipped import GSPO, DrGRPO, GRPORankLoss
from orlaif.losses.weighted import CISPO, SAPO

__all__ = [
    "CISPO",
    "GSPO",
    "SAPO",
    "DrGRPO",
    "GRPORankLoss",
    "Loss",
    "grpo_rank_loss",
    "linear_grpo_rank_loss",
    "loss_weights",
]
