"""Decoding a batch of groups, one token of every unfinished completion at a time.

:class:`SharedDecoder` keeps the keys and values of a prompt once per group: attention reads them once for all its
completions, whose own keys and values lie in buffers of their own. :class:`ExpandedDecoder` repeats the prompt's cache
for every completion, which works for any cache of transformers (windows, linear attention).

Rows whose completion has ended are dropped when that makes the batch clearly smaller, so that they stop costing.

Shapes: P prompts of S tokens, G completions of at most T tokens, K key heads, H = K * n query heads, D head size.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

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
    """Every row has a cache of its own.

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
        """See :class:`Decoder`."""
        self.attention = torch.nn.functional.pad(self.attention, (0, 1), value=1)
        return self.model(
            input_ids=tokens[:, None],
            attention_mask=self.attention,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]

    def drop(self, alive: Tensor) -> bool:
        """See :class:`Decoder`."""
        kept = alive[self.rows].nonzero().squeeze(-1)
        if len(kept) > SHRINK_AT * len(self.rows):
            return False
        self.cache.reorder_cache(kept)
        self.attention, self.rows = self.attention[kept], self.rows[kept]
        self.real = torch.arange(len(kept), device=kept.device)
        return True


class GroupCache:
    """Keys and values of P prompts, and of the G completions behind each: a cache and a ``grouping`` in one.

    It is what transformers calls as ``past_key_values`` (:meth:`update`), and what the registered attention function
    hands its work to (:meth:`attend`; see ``orlaif.prefix_attention``).

    Args:
        cache: after the prefill, full attention in every layer.
        prompt_mask: i64 or bool[P, S].
        group_size: G.
        max_new_tokens: T.
    """

    def __init__(self, cache: DynamicCache, prompt_mask: Tensor, group_size: int, max_new_tokens: int) -> None:
        self.prompts: list[tuple[Tensor, Tensor]] = []
        self.own: list[tuple[Tensor, Tensor]] = []
        for layer in cache.layers:
            assert isinstance(layer, DynamicLayer)
            keys, values = layer.keys, layer.values
            assert keys is not None
            assert values is not None
            self.prompts.append((keys, values))
            shape = (keys.shape[0] * group_size, keys.shape[1], max_new_tokens)
            self.own.append((keys.new_empty(*shape, keys.shape[-1]), values.new_empty(*shape, values.shape[-1])))
        #: [P, 1, 1, S], added to the scores of the prompt.
        self.bias = torch.zeros(prompt_mask.shape, device=prompt_mask.device)
        self.bias = self.bias.masked_fill(~prompt_mask.bool(), -torch.inf)[:, None, None]
        self.prompt_length = int(prompt_mask.shape[1])
        self.step = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens so far, padding included."""
        return self.prompt_length + self.step

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take in one token per row, [P * G, K, 1, D]; returns the completions' own, [P * G, K, t, D]."""
        own_key, own_value = self.own[layer_idx]
        own_key[:, :, self.step : self.step + 1] = key
        own_value[:, :, self.step : self.step + 1] = value
        return own_key[:, :, : self.step + 1], own_value[:, :, : self.step + 1]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """One query per row, [P * G, H, 1, D], over the prompt of its group and its own tokens.

        The G * n queries that share a prompt and a key head are one matrix, so that keys and values of the prompt are
        read once; one softmax covers both parts.
        """
        prompt_key, prompt_value = self.prompts[layer]
        p, k, s, d = prompt_key.shape
        g = query.shape[0] // p
        n = query.shape[1] // k
        exact = torch.promote_types(query.dtype, torch.float32)

        def by_prompt(x: Tensor) -> Tensor:
            """[P * G, K, n, X] to [P, K, G * n, X]."""
            return x.view(p, g, k, n, -1).transpose(1, 2).reshape(p, k, g * n, -1)

        def by_row(x: Tensor) -> Tensor:
            return x.view(p, k, g, n, -1).transpose(1, 2).reshape(p * g, k, n, -1)

        grouped = query.view(p * g, k, n, d)
        scores = (by_prompt(grouped) @ prompt_key.mT).to(exact) * scale + self.bias.to(exact)
        own_scores = by_prompt(grouped @ key.mT).to(exact) * scale
        weights = torch.cat([scores, own_scores], -1).softmax(-1).to(value.dtype)
        out = by_row(weights[..., :s] @ prompt_value) + by_row(weights[..., s:]) @ value
        return out.view(query.shape[0], query.shape[1], 1, -1)

    def keep(self, prompts: Tensor | None, rows: Tensor) -> None:
        """Go on with ``rows`` of the completions, whose prompts are ``prompts`` (None: all of them)."""
        self.own = [(keys.index_select(0, rows), values.index_select(0, rows)) for keys, values in self.own]
        if prompts is not None:
            self.prompts = [
                (keys.index_select(0, prompts), values.index_select(0, prompts)) for keys, values in self.prompts
            ]
            self.bias = self.bias.index_select(0, prompts)


class SharedDecoder:
    """The rows of a group read its prompt's cache together.

    Args:
        model: of transformers, or PEFT's around one, with ``orlaif.prefix_attention.enable_grouping``.
        cache: after the prefill, P rows, full attention in every layer.
        batch: the P prompts.
        group_size: G.
        max_new_tokens: T.
    """

    def __init__(
        self, model: Any, cache: DynamicCache, batch: PromptBatch, group_size: int, max_new_tokens: int
    ) -> None:
        self.model = model
        self.cache = GroupCache(cache, batch.attention_mask, group_size, max_new_tokens)
        self.shape = (len(batch), group_size)
        self.rows = self.real = torch.arange(len(batch) * group_size, device=batch.input_ids.device)
        self.mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=batch.input_ids.device)

    def advance(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """See :class:`Decoder`."""
        logits = self.model(
            input_ids=tokens[:, None],
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            grouping=self.cache,
        ).logits[:, -1]
        self.cache.step += 1
        return logits if len(self.real) == len(self.rows) else logits.index_select(0, self.real)

    def drop(self, alive: Tensor) -> bool:
        """See :class:`Decoder`; prompts keep equally many rows, so an unfinished row may be there twice."""
        table = torch.zeros(len(self.rows), dtype=torch.bool, device=alive.device)
        table[self.real] = alive[self.rows[self.real]]
        table = table.view(self.shape)
        widths = table.sum(-1)
        prompts, width = widths.nonzero().squeeze(-1), int(widths.max())
        if len(prompts) * width > SHRINK_AT * table.numel():
            return False
        # Unfinished rows first; where a prompt has fewer than others, its first one again.
        order = torch.argsort(table[prompts].int(), dim=-1, descending=True, stable=True)[:, :width]
        spare = torch.arange(width, device=order.device) >= widths[prompts][:, None]
        order = order.where(~spare, order[:, :1])
        kept = (prompts[:, None] * self.shape[1] + order).flatten()
        self.cache.keep(None if len(prompts) == self.shape[0] else prompts, kept)
        self.rows, self.shape = self.rows[kept], (len(prompts), width)
        self.real = (~spare).flatten().nonzero().squeeze(-1)
        return True
