"""GRPO_rank operations that need torch and triton only, importable without orlaif."""

from orlaif_kernels.advantage import rank_advantage
from orlaif_kernels.linear import linear_grpo_rank_loss, linear_logps
from orlaif_kernels.loss import grpo_rank_loss

__all__ = ["grpo_rank_loss", "linear_grpo_rank_loss", "linear_logps", "rank_advantage"]
