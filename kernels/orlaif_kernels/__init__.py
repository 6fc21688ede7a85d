"""GRPO_rank operations that need torch and triton only, importable without orlaif."""

from orlaif_kernels.reference import grpo_rank_loss, token_logps

__all__ = ["grpo_rank_loss", "token_logps"]
