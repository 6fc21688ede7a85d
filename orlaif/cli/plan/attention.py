"""Attention on the meta device: the tensors that real ones make and keep, and the products that no operation shows.

Without a mask that is one without a matrix of scores. With a mask (of a window, behind a cache, of short rows) PyTorch
makes numbers of it, in each layer, which its backward pass reads; and heads of keys and values are repeated for their
queries.

Shapes: R rows, H query heads, K key heads, N queries, M keys, D head size.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend
from transformers import AttentionInterface, AttentionMaskInterface

from orlaif.cli.plan.live_bytes import note_flops
from orlaif.policy.prefix.masks import CHUNK, is_causal

#: Under this name transformers finds it.
NAME = "orlaif_plan"
#: An operator, so that selective recomputation sees it as it sees PyTorch's.
_OPERATORS = torch.library.Library("orlaif_plan", "DEF")
_OPERATORS.define("attention(Tensor query, Tensor key, Tensor value) -> (Tensor, Tensor)")
OPERATOR = torch.ops.orlaif_plan.attention


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What rows hold that a decoder reads.

    Args:
        groups: a prompt and its completions, so that masks are made by a rule for each query and key.
        blocks: frames whose tokens see one another both ways.
        on_cpu: where PyTorch has attention without a matrix of scores for fewer shapes.
    """

    groups: bool = False
    blocks: bool = False
    on_cpu: bool = False


_READING: ContextVar[Reading] = ContextVar("orlaif_plan_reading", default=Reading())  # noqa: B039 (it is frozen)


@contextmanager
def reading(rows: Reading) -> Iterator[None]:
    """A context in which masks are those of such rows."""
    token = _READING.set(rows)
    try:
        yield
    finally:
        _READING.reset(token)


@torch.library.impl(_OPERATORS, "attention", "Meta")
def _attend(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    out = query.new_empty(*query.shape[:-1], value.shape[-1])
    note_flops(_attention_flops(query, key, value), out)
    return out, query.new_empty(query.shape[:-1], dtype=torch.float32)


class _Attention(torch.autograd.Function):
    """The tensors that an attention without a matrix of scores makes and keeps."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        out, sums = OPERATOR(query, key, value)
        ctx.save_for_backward(query, key, value, out, sums, bias)
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        query, key, value, *_ = ctx.saved_tensors
        note_flops(2.5 * _attention_flops(query, key, value), query)  # five products for two
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def _attention_flops(query: Tensor, key: Tensor, value: Tensor) -> float:
    """Of both products, each query looking at half of its row's own keys and at all before those."""
    rows, heads, new, size = query.shape
    seen = key.shape[2] - new / 2
    return 2.0 * rows * heads * new * seen * (size + value.shape[-1])


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, *_: Any, **__: Any
) -> Any:
    bias, (new, keys) = None, (query.shape[2], key.shape[2])
    # Behind a cache there is always a mask.
    if keys != new or (isinstance(attention_mask, Tensor) and attention_mask.shape[-1] > 1):
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        bias = query.new_empty(query.shape[0], 1, new, keys)
    if _READING.get().on_cpu and makes_scores(query.shape[-1], value.shape[-1], query.dtype):
        made = torch.ops.aten._scaled_dot_product_attention_math(query, key, value, bias, is_causal=bias is None)
        return made[0].transpose(1, 2).contiguous(), None
    return _Attention.apply(query, key, value, bias).transpose(1, 2).contiguous(), None


@cache
def makes_scores(size: int, of_values: int, dtype: torch.dtype) -> bool:
    """Whether PyTorch's attention makes the matrix of scores on a CPU, for heads of these sizes; asked of it."""
    query, value = (torch.empty(1, 1, 2, each, dtype=dtype) for each in (size, of_values))
    return torch._fused_sdp_choice(query, query, value) == SDPBackend.MATH.value


def _mask(
    *_: Any,
    mask_function: Any,
    batch_size: int,
    q_length: int,
    kv_length: int,
    local_size: int | None = None,
    **__: Any,
) -> Tensor:
    """bool[R, 1, N, M] of a rule that is more than causal, made as ``orlaif.policy.prefix.masks`` does.

    Of one place, which :func:`_attention` takes for none, where attention needs no more than to be causal.
    """
    rows = _READING.get()
    fits = not rows.groups and local_size is not None and kv_length < local_size
    if not rows.blocks and (fits or is_causal(mask_function)):
        return torch.empty(1, 1, 1, 1, dtype=torch.bool, device="meta")
    parts: list[Tensor] = []
    for start in range(0, q_length, CHUNK):
        shape = batch_size, 1, min(CHUNK, q_length - start), kv_length
        # Of each query and key, the key's place without the completions between, and that within the row.
        numbers = [torch.empty(shape, dtype=torch.long, device="meta") for _ in range(2 * rows.groups)]
        # Whether both are of a frame, and of the same: four answers on the way to one.
        answers = [torch.empty(shape, dtype=torch.bool, device="meta") for _ in range(4 * rows.blocks)]
        parts.append(torch.empty(shape, dtype=torch.bool, device="meta"))
        del numbers, answers
    return torch.cat(parts, 2)


def has_windows(config: Any) -> bool:
    """Whether some layers of a decoder see a window only."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return "sliding_attention" in kinds
    return bool(getattr(config, "sliding_window", None)) and bool(getattr(config, "use_sliding_window", True))


def has_blocks(base: Any) -> bool:
    """Whether the tokens of a frame see one another: a model that makes its masks from the kinds of tokens."""
    makes = getattr(type(base), "create_masks_for_generate", None)
    if makes is None or "mm_token_type_ids" not in inspect.signature(makes).parameters:
        return False
    return getattr(base.config.get_text_config(decoder=True), "use_bidirectional_attention", "vision") is not None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)
