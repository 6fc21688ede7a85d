"""Decoding a batch of groups, one token of every unfinished completion at a time.

:class:`SharedDecoder` keeps the keys and values of a prompt once per group: attention reads them once for all its
completions, whose keys and values lie in separate buffers. :class:`ExpandedDecoder` repeats the prompt's cache
for every completion, which works for any cache of transformers (windows, linear attention). A compiled step lies in
``orlaif.rollout.compiled``.

Rows whose completion has ended are dropped when that makes the batch clearly smaller, so that they stop costing.

Shapes: P prompts of S tokens, G completions of at most T tokens, K key heads, H = K * n query heads, D head size.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from orlaif.policy.prefix.decode import expanded_step, shared_step
from orlaif.policy.prefix.group_cache import GroupCache, padding_bias, prefilled
from orlaif.types import PromptBatch

#: Finished rows are dropped when at most this share of the rows would be left.
SHRINK_AT = 0.75


class Decoder(Protocol):
    """Steps a batch of completions.

    ``rows``, i64[N], says which completion (of P * G) each row of the batch is. Some may be there twice, to fill the
    batch up; ``real``, i64[M], are the places of those that count, each completion once.
    """

    rows: Tensor
    real: Tensor

    def advance(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits [M, V] that follow ``tokens`` i64[N] at ``positions`` i64[N, 1] or i64[3, N, 1]."""

    def drop(self, alive: Tensor) -> bool:
        """Leave out completions that are not ``alive`` bool[P * G], where it is worth it; whether it was."""


class ExpandedDecoder:
    """Every row has its cache, with the prompt repeated.

    Args:
        model: of transformers, or PEFT's around one.
        cache: after the prefill, P rows.
        batch: the P prompts.
        group_size: G.
    """

    def __init__(self, model: Any, cache: Any, batch: PromptBatch, group_size: int) -> None:
        self.model, self.cache = model, cache
        rows = torch.arange(len(batch) * group_size, device=batch.input_ids.device)
        cache.reorder_cache(rows // group_size)
        self.attention = batch.attention_mask[rows // group_size]
        self.rows = self.real = rows

    def advance(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits [M, V] that follow ``tokens``, one forward over all rows, as :meth:`Decoder.advance`."""
        self.attention = torch.nn.functional.pad(self.attention, (0, 1), value=1)
        return expanded_step(self.model, self.cache, tokens, positions, self.attention)

    def drop(self, alive: Tensor) -> bool:
        """Take ended completions out of the cache where enough of them have ended, as :meth:`Decoder.drop`."""
        kept = alive[self.rows].nonzero().squeeze(-1)
        if len(kept) > SHRINK_AT * len(self.rows):
            return False
        self.cache.reorder_cache(kept)
        self.attention, self.rows = self.attention[kept], self.rows[kept]
        self.real = torch.arange(len(kept), device=kept.device)
        return True


class SharedDecoder:
    """The rows of a group read its prompt's cache together.

    Args:
        model: of transformers, or PEFT's around one, with ``orlaif.policy.prefix.attention.enable_grouping``.
        cache: after the prefill, P rows, full attention in every layer.
        batch: the P prompts.
        group_size: G.
        max_new_tokens: T.
    """

    def __init__(
        self, model: Any, cache: DynamicCache, batch: PromptBatch, group_size: int, max_new_tokens: int
    ) -> None:
        self.model = model
        self.cache = self.first_cache(prefilled(cache), padding_bias(batch.attention_mask), group_size, max_new_tokens)
        self.shape = (len(batch), group_size)
        self.rows = self.real = torch.arange(len(batch) * group_size, device=batch.input_ids.device)
        self.mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=batch.input_ids.device)

    def first_cache(
        self, prompts: list[tuple[Tensor, Tensor]], bias: Tensor, group_size: int, max_new_tokens: int
    ) -> GroupCache:
        """What the completions start from: keys and values of the prompts, and empty places behind."""
        return GroupCache(prompts, bias, group_size, max_new_tokens)

    def advance(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits [M, V] that follow ``tokens``, over one prompt's cache per group, as :meth:`Decoder.advance`."""
        logits = self.one_step(tokens, positions)
        self.cache.advance()
        return logits if len(self.real) == len(self.rows) else logits.index_select(0, self.real)

    def one_step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits [N, V] behind one token of each row."""
        return shared_step(self.model, self.cache, tokens, positions, self.mask)

    def new_shape(self, prompts: int, width: int) -> tuple[int, int] | None:
        """What the batch becomes when this many prompts with up to this many rows are unfinished; None: it stays."""
        return (prompts, width) if prompts * width <= SHRINK_AT * len(self.rows) else None

    def drop(self, alive: Tensor) -> bool:
        """See :class:`Decoder`; prompts keep equally many rows, so an unfinished row may be there twice."""
        table = torch.zeros(len(self.rows), dtype=torch.bool, device=alive.device)
        table[self.real] = alive[self.rows[self.real]]
        table = table.view(self.shape)
        widths = table.sum(-1)
        prompts = widths.nonzero().squeeze(-1)
        shape = self.new_shape(len(prompts), int(widths.max()))
        if shape is None:
            return False
        extra = shape[0] - len(prompts)
        kept_prompts = torch.cat([prompts, prompts[:1].expand(extra)])
        # Unfinished rows first; where a prompt has fewer than others, its first one again.
        order = torch.argsort(table[kept_prompts].int(), dim=-1, descending=True, stable=True)[:, : shape[1]]
        spare = torch.arange(shape[1], device=order.device) >= widths[kept_prompts][:, None]
        order = order.where(~spare, order[:, :1])
        spare[len(prompts) :] = True
        kept = (kept_prompts[:, None] * self.shape[1] + order).flatten()
        self.shrink(kept_prompts, kept, shape)
        self.rows, self.shape = self.rows[kept], shape
        self.real = (~spare).flatten().nonzero().squeeze(-1)
        return True

    def shrink(self, prompts: Tensor, rows: Tensor, shape: tuple[int, int]) -> None:
        """Go on with these ``prompts`` and ``rows`` of the cache, which make ``shape``."""
        self.cache.keep(None if len(prompts) == self.shape[0] else prompts, rows)
