"""Attention of groups in rows, behind one function that transformers calls by name.

What to do reaches it as the keyword argument ``grouping`` of the model's forward pass; without one it is ordinary
``sdpa``. The ways to the same numbers:

- ``mask``: ``sdpa`` or ``eager`` with an explicit 4-D mask. Runs everywhere; its cost is that of L x L.
- ``split``: never an L x L mask (``orlaif.policy.prefix.split``).
- ``flex``: FlexAttention with a block mask, compiled once for all lengths. CUDA.
- one new token per completion, against the prompt's cache, once per group, and its own: ``orlaif.rollout.decoding``.

Shapes: B rows, H query heads, K key heads (H = K * n), N queries, M keys, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from orlaif.policy.prefix.divided import Division
from orlaif.policy.prefix.divided_attention import divided_attention
from orlaif.policy.prefix.layout import GroupRows
from orlaif.policy.prefix.masks import row_mask
from orlaif.policy.prefix.split import split_runs_on

#: Under this name transformers finds :func:`prefix_attention`.
NAME = "orlaif_prefix"
PrefixAttention = Literal["auto", "mask", "split", "flex"]
#: Tokens of the longest group from which ``auto`` takes ``split`` instead of ``mask``; measured by
#: ``benchmarks/step.py`` ("choices").
SPLIT_FROM = 384
aten = torch.ops.aten


def autocast_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """What attention computes in: autocast's dtype where it is on, as for PyTorch's own attention, else ``dtype``."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else dtype


def same_dtype(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All in the dtype that attention computes in; under autocast norms may leave value in another than the others."""
    dtype = autocast_dtype(query.device, query.dtype)
    return query.to(dtype), key.to(dtype), value.to(dtype)


# ---------------------------------------------------------------------- flex


def _block_mask(rows: GroupRows) -> Any:
    """The rule of ``GroupRows.mask`` for FlexAttention, which works it out block by block."""
    from torch.nn.attention.flex_attention import create_block_mask

    group, segment = rows.group, rows.segment

    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        mine = (segment[b, k] == 0) | (segment[b, k] == segment[b, q])
        return (group[b, k] == group[b, q]) & mine & (q >= k)

    r, length = rows.shape
    return create_block_mask(visible, r, None, length, length, device=str(group.device))


@cache
def _flex(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if compiled else flex_attention


def flex_attention(query: Tensor, key: Tensor, value: Tensor, rows: GroupRows, scale: float) -> Tensor:
    """As :func:`split_attention`, by FlexAttention: compiled on CUDA, once for all lengths; plain PyTorch elsewhere."""
    return by_blocks(query, key, value, rows.memo("block_mask", _block_mask), scale)


def by_blocks(query: Tensor, key: Tensor, value: Tensor, mask: Any, scale: float) -> Tensor:
    """FlexAttention [B, H, L, D] under a block mask, of the shapes that :func:`flex_attention` takes."""
    compiled = query.device.type == "cuda"
    return _flex(compiled)(query, key, value, block_mask=mask, scale=scale, enable_gqa=key.shape[1] != query.shape[1])


# ------------------------------------------------------------- registration


class Grouping(Protocol):
    """What takes the place of ordinary attention."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attention of one layer: [B, H, N, D], [B, K, M, D], [B, K, M, D] to [B, H, N, D]."""


@dataclass(frozen=True, kw_only=True)
class RowAttention:
    """Groups in rows, by ``split`` or ``flex``."""

    rows: GroupRows
    function: Callable[[Tensor, Tensor, Tensor, GroupRows, float], Tensor]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """See :class:`Grouping`."""
        return self.function(*same_dtype(query, key, value), self.rows, scale)


@dataclass(frozen=True, kw_only=True)
class DividedAttention:
    """Groups whose prompts are divided among processes."""

    division: Division

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """See :class:`Grouping`."""
        return divided_attention(*same_dtype(query, key, value), self.division, scale)


def prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    grouping: Grouping | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """An attention function of transformers: ordinary ``sdpa``, or what ``grouping`` says.

    Args:
        module: the attention layer.
        query: [B, H, N, D].
        key: [B, K, M, D].
        value: [B, K, M, D].
        attention_mask: of this kind of layers. Where there is a ``grouping``, it serves layers whose mask is no more
            than one place, and the others attend by their mask.
        dropout: of the probabilities.
        scaling: of the scores.
        grouping: of this forward pass.
        kwargs: whatever else the model says.

    Returns:
        [B, N, H, D], and no weights.

    Raises:
        ValueError: dropout, a window, sinks or a soft cap, which a ``grouping`` does not know.
    """
    if grouping is None or (isinstance(attention_mask, Tensor) and attention_mask.shape[-1] > 1):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    layer = module.layer_idx
    assert isinstance(layer, int)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if attention_mask is not None and not isinstance(attention_mask, Tensor):
        query, key, value = same_dtype(query, key, value)
        return by_blocks(query, key, value, attention_mask, scale).transpose(1, 2), None
    extras = [name for name in ("sliding_window", "softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
    if dropout or extras:
        what = ", ".join([*extras, *(["attention dropout"] if dropout else [])])
        raise ValueError(f"policy.prefix: a shared prefix does not know this model's {what}; use prefix: duplicate")
    return grouping.attend(layer, query, key, value, scale).transpose(1, 2), None


AttentionInterface.register(NAME, prefix_attention)
AttentionMaskInterface.register(NAME, row_mask)


# -------------------------------------------------------------------- choice


def choose_attention(
    prompt_mask: Tensor,
    completion_mask: Tensor,
    attentions: tuple[str, ...],
    device: torch.device,
    dtype: torch.dtype,
) -> str:
    """The implementation for groups of this size.

    With one to choose from, that one. With ``mask`` and ``split`` to choose from, ``split`` when the longest group has
    :data:`SPLIT_FROM` tokens or more. Groups of different lengths cost ``split`` three calls each, which short ones do
    not repay; from there on it is the faster one, ragged or not, on two models whose hidden sizes differ five-fold.

    Args:
        prompt_mask: [P, S].
        completion_mask: bool[P, G, T].
        attentions: names to choose from.
        device: of the model.
        dtype: of the model.

    Returns:
        One of ``attentions``.

    Raises:
        ValueError: none of them runs there.
    """
    names = [name for name in attentions if name != "split" or split_runs_on(device, dtype)]
    if not names:
        raise ValueError(
            f"policy.prefix_attention is 'split', which runs on a CPU, and on CUDA in 16 bits; this is {device.type} "
            f"in {str(dtype).removeprefix('torch.')}: use 'auto'"
        )
    if len(names) == 1 or "split" not in names:
        return names[0]
    lengths = prompt_mask.sum(-1) + completion_mask.sum((1, 2))
    return "split" if int(lengths.max()) >= SPLIT_FROM else names[0]


def enable_grouping(model: Any) -> None:
    """Let the decoder of ``model`` look for :func:`prefix_attention`; without a ``grouping`` nothing changes."""
    model.get_decoder().set_attn_implementation(NAME)
