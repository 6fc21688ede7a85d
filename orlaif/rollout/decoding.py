"""Decoding a batch of groups, one token of every unfinished completion at a time.

:class:`SharedDecoder` keeps the keys and values of a prompt once per group: attention reads them once for all its
completions, whose own keys and values lie in buffers of their own. :class:`ExpandedDecoder` repeats the prompt's cache
for every completion, which works for any cache of transformers (windows, linear attention).

:class:`CompiledDecoder` is the same with caches of fixed size and address and a compiled step, which on a GPU becomes a
CUDA graph: one launch per token instead of hundreds. Prompts are padded to a multiple of :data:`BUCKET`, batches shrink
to powers of two, and caches are used again, so that few graphs serve a whole run.

Rows whose completion has ended are dropped when that makes the batch clearly smaller, so that they stop costing.

Shapes: P prompts of S tokens, G completions of at most T tokens, K key heads, H = K * n query heads, D head size.
"""

from __future__ import annotations

from functools import cache as cached
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from orlaif.types import PromptBatch

#: Finished rows are dropped when at most this share of the rows would be left.
SHRINK_AT = 0.75
#: The same for a compiled step, where every size is another graph.
SHRINK_COMPILED_AT = 0.5
#: Prompts of a compiled step are padded to a multiple of this.
BUCKET = 256


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
    hands its work to (:meth:`attend`; see ``orlaif.policy.prefix.attention``).

    Args:
        prompts: keys and values [P, K, S, D] of every layer.
        bias: f32[P, 1, 1, S], added to the scores of the prompt: -inf at padding.
        group_size: G.
        max_new_tokens: T.
        fixed: :meth:`update` and :meth:`attend` work on whole buffers, with the place in a tensor, so that nothing but
            their content changes from token to token.
    """

    def __init__(
        self,
        prompts: list[tuple[Tensor, Tensor]],
        bias: Tensor,
        group_size: int,
        max_new_tokens: int,
        fixed: bool = False,
    ) -> None:
        self.prompts, self.bias, self.fixed = prompts, bias, fixed
        self.own: list[tuple[Tensor, Tensor]] = []
        for keys, values in prompts:
            shape = (keys.shape[0] * group_size, keys.shape[1], max_new_tokens)
            self.own.append((keys.new_zeros(*shape, keys.shape[-1]), values.new_zeros(*shape, values.shape[-1])))
        self.prompt_length = int(bias.shape[-1])
        self.step = 0
        #: i64[1], the same as ``step``, for ``fixed``.
        self.position = torch.zeros(1, dtype=torch.long, device=bias.device)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens so far, padding included."""
        return self.prompt_length + self.step

    def advance(self) -> None:
        """The next token is the next."""
        if self.fixed:  # a number that changes would be compiled into another graph
            self.position += 1
        else:
            self.step += 1

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take in one token per row, [P * G, K, 1, D]; returns the completions' own, [P * G, K, t, D]."""
        own_key, own_value = self.own[layer_idx]
        if self.fixed:
            own_key.index_copy_(2, self.position, key)
            own_value.index_copy_(2, self.position, value)
            return own_key, own_value
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
            return x.reshape(p, g, k, n, -1).transpose(1, 2).reshape(p, k, g * n, -1)

        def by_row(x: Tensor) -> Tensor:
            return x.reshape(p, k, g, n, -1).transpose(1, 2).reshape(p * g, k, n, -1)

        grouped = query.reshape(p * g, k, n, d)
        scores = (by_prompt(grouped) @ prompt_key.mT).to(exact) * scale + self.bias.to(exact)
        own_scores = by_prompt(grouped @ key.mT).to(exact) * scale
        if self.fixed:
            later = torch.arange(key.shape[2], device=key.device) > self.position
            own_scores = own_scores.masked_fill(later, -torch.inf)
        weights = torch.cat([scores, own_scores], -1).softmax(-1).to(value.dtype)
        out = by_row(weights[..., :s] @ prompt_value) + by_row(weights[..., s:]) @ value
        return out.reshape(query.shape[0], query.shape[1], 1, -1)

    def keep(self, prompts: Tensor | None, rows: Tensor) -> None:
        """Go on with ``rows`` of the completions, whose prompts are ``prompts`` (None: all of them)."""
        self.own = [(keys.index_select(0, rows), values.index_select(0, rows)) for keys, values in self.own]
        if prompts is not None:
            self.prompts = [
                (keys.index_select(0, prompts), values.index_select(0, prompts)) for keys, values in self.prompts
            ]
            self.bias = self.bias.index_select(0, prompts)

    def tensors(self) -> list[Tensor]:
        """All that it holds."""
        return [self.bias, self.position, *(x for pair in (*self.prompts, *self.own) for x in pair)]


def _prefilled(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of every layer."""
    found = []
    for layer in cache.layers:
        assert isinstance(layer, DynamicLayer)
        assert layer.keys is not None
        assert layer.values is not None
        found.append((layer.keys, layer.values))
    return found


def _bias(prompt_mask: Tensor) -> Tensor:
    bias = torch.zeros(prompt_mask.shape, dtype=torch.float32, device=prompt_mask.device)
    return bias.masked_fill(~prompt_mask.bool(), -torch.inf)[:, None, None]


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
        self.cache = self._first_cache(_prefilled(cache), _bias(batch.attention_mask), group_size, max_new_tokens)
        self.shape = (len(batch), group_size)
        self.rows = self.real = torch.arange(len(batch) * group_size, device=batch.input_ids.device)
        self.mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=batch.input_ids.device)

    def _first_cache(
        self, prompts: list[tuple[Tensor, Tensor]], bias: Tensor, group_size: int, max_new_tokens: int
    ) -> GroupCache:
        return GroupCache(prompts, bias, group_size, max_new_tokens)

    def advance(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """See :class:`Decoder`."""
        logits = self._step(tokens, positions)
        self.cache.advance()
        return logits if len(self.real) == len(self.rows) else logits.index_select(0, self.real)

    def _step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        return _decode(self.model, self.cache, tokens, positions, self.mask)

    def _new_shape(self, prompts: int, width: int) -> tuple[int, int] | None:
        """What the batch becomes when this many prompts with up to this many rows are unfinished; None: it stays."""
        return (prompts, width) if prompts * width <= SHRINK_AT * len(self.rows) else None

    def drop(self, alive: Tensor) -> bool:
        """See :class:`Decoder`; prompts keep equally many rows, so an unfinished row may be there twice."""
        table = torch.zeros(len(self.rows), dtype=torch.bool, device=alive.device)
        table[self.real] = alive[self.rows[self.real]]
        table = table.view(self.shape)
        widths = table.sum(-1)
        prompts = widths.nonzero().squeeze(-1)
        shape = self._new_shape(len(prompts), int(widths.max()))
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
        self._shrink(kept_prompts, kept, shape)
        self.rows, self.shape = self.rows[kept], shape
        self.real = (~spare).flatten().nonzero().squeeze(-1)
        return True

    def _shrink(self, prompts: Tensor, rows: Tensor, shape: tuple[int, int]) -> None:
        self.cache.keep(None if len(prompts) == self.shape[0] else prompts, rows)


def _decode(model: Any, cache: GroupCache, tokens: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
    """Logits [N, V] behind one token per row."""
    return model(
        input_ids=tokens[:, None],
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        grouping=cache,
    ).logits[:, -1]


@cached
def _compiled_decode() -> Any:
    """Compiled once per process; a graph for each size of a batch."""
    return torch.compile(_decode, mode="reduce-overhead", dynamic=False)


def _power_of_two(n: int, limit: int) -> int:
    return min(limit, 1 << (n - 1).bit_length())


class CompiledDecoder(SharedDecoder):
    """As :class:`SharedDecoder`, with a compiled step over caches of fixed size.

    Args:
        model: of transformers, or PEFT's around one, with ``orlaif.policy.prefix.attention.enable_grouping``.
        cache: after the prefill, P rows, full attention in every layer.
        batch: the P prompts.
        group_size: G.
        max_new_tokens: T.
        pool: the caches of earlier rollouts, by size; it is added to.
    """

    def __init__(
        self,
        model: Any,
        cache: DynamicCache,
        batch: PromptBatch,
        group_size: int,
        max_new_tokens: int,
        pool: dict[tuple[int, ...], GroupCache],
    ) -> None:
        self.pool, self.max_new_tokens = pool, max_new_tokens
        super().__init__(model, cache, batch, group_size, max_new_tokens)

    def _fixed(self, prompts: list[tuple[Tensor, Tensor]], shape: tuple[int, int], length: int) -> GroupCache:
        """A cache of this size, used before or new, with layers like those of ``prompts``."""
        key = (*shape, length, self.max_new_tokens)
        if key not in self.pool:
            buffers = [
                (
                    keys.new_zeros(shape[0], keys.shape[1], length, keys.shape[-1]),
                    values.new_zeros(shape[0], values.shape[1], length, values.shape[-1]),
                )
                for keys, values in prompts
            ]
            bias = torch.zeros(shape[0], 1, 1, length, dtype=torch.float32, device=buffers[0][0].device)
            self.pool[key] = GroupCache(buffers, bias, shape[1], self.max_new_tokens, fixed=True)
            for tensor in self.pool[key].tensors():  # graphs may be recorded over these very addresses
                torch._dynamo.mark_static_address(tensor)
        return self.pool[key]

    def _first_cache(
        self, prompts: list[tuple[Tensor, Tensor]], bias: Tensor, group_size: int, max_new_tokens: int
    ) -> GroupCache:
        s = bias.shape[-1]
        length = -(-s // BUCKET) * BUCKET
        cache = self._fixed(prompts, (len(bias), group_size), length)
        for old, new in zip(cache.prompts, prompts, strict=True):
            for buffer, values in zip(old, new, strict=True):
                buffer[:, :, :s] = values
        cache.bias.fill_(-torch.inf)
        cache.bias[..., :s] = bias
        cache.position.zero_()
        return cache

    def _step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        with torch._dynamo.config.patch(recompile_limit=64):  # one for each size; the default gives up at 8
            # The next replay of a CUDA graph overwrites its outputs.
            return _compiled_decode()(self.model, self.cache, tokens, positions, self.mask).clone()

    def _new_shape(self, prompts: int, width: int) -> tuple[int, int] | None:
        shape = _power_of_two(prompts, self.shape[0]), _power_of_two(width, self.shape[1])
        return shape if shape[0] * shape[1] <= SHRINK_COMPILED_AT * len(self.rows) else None

    def _shrink(self, prompts: Tensor, rows: Tensor, shape: tuple[int, int]) -> None:
        smaller = self._fixed(self.cache.prompts, shape, self.cache.prompt_length)
        for new, old in zip(smaller.prompts, self.cache.prompts, strict=True):
            for buffer, values in zip(new, old, strict=True):
                buffer.copy_(values.index_select(0, prompts))
        for new, old in zip(smaller.own, self.cache.own, strict=True):
            for buffer, values in zip(new, old, strict=True):
                buffer.copy_(values.index_select(0, rows))
        smaller.bias.copy_(self.cache.bias.index_select(0, prompts))
        smaller.position.copy_(self.cache.position)
        self.cache = smaller
