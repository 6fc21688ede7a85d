"""The LM head as a fused loss takes it: weights, bias and soft cap, in place of logits.

Shapes: N rows, T completion tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from orlaif.policy.asking import base_of
from orlaif.policy.prefix.fused import Head


def plain_head(model: Any, head: nn.Module, seen: Head) -> nn.Linear:
    """``head`` where it may be fused with the loss.

    Args:
        model: that it belongs to.
        head: its LM head.
        seen: what the check at load saw of it.

    Raises:
        ValueError: a model whose logits are more than its LM head makes, or LoRA on the LM head.
    """
    if seen.reason is not None:
        raise ValueError(
            f"loss.fused_head: not for model type {base_of(model).config.model_type!r}: {seen.reason}; set it to false"
        )
    if type(head) is not nn.Linear:
        raise ValueError(
            f"loss.fused_head: the LM head is a {type(head).__name__}, not a plain nn.Linear; set it to false"
        )
    return head


def fused(hidden: Tensor, head: nn.Linear, seen: Head, excluded: list[int]) -> tuple[Tensor, dict[str, Any]]:
    """Hidden states and LM head of which a fused loss makes the logits.

    Args:
        hidden: f[N, T, H], last hidden states.
        head: the LM head.
        seen: what the check at load saw of it.
        excluded: tokens that are never sampled.

    Returns:
        ``hidden``, times the scale of the logits, and ``weight`` [V, H], ``bias`` [V] (-inf at ``excluded``) and
        ``softcap``.
    """
    bias: Tensor | None = head.bias
    if excluded:
        bias = torch.zeros_like(head.weight[:, 0]) if bias is None else bias
        bias = bias.index_fill(0, torch.tensor(excluded, device=bias.device), -torch.inf)
    if seen.scale != 1.0:
        hidden = hidden * seen.scale
        bias = None if bias is None else bias * seen.scale
    return hidden, {"weight": head.weight, "bias": bias, "softcap": seen.softcap}
