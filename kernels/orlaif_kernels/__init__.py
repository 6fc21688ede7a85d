"""GRPO_rank operations that need torch and triton only, importable without orlaif."""

from orlaif_kernels.advantage import rank_advantage
from orlaif_kernels.loss import grpo_rank_loss, linear_grpo_rank_loss, linear_policy_loss, policy_loss
from orlaif_kernels.statistics import TokenStatistics, linear_logps, linear_token_statistics, token_statistics

__all__ = [
    "TokenStatistics",
    "grpo_rank_loss",
    "linear_grpo_rank_loss",
    "linear_logps",
    "linear_policy_loss",
    "linear_token_statistics",
    "policy_loss",
    "rank_advantage",
    "token_statistics",
]
