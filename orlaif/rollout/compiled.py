"""Decoding by a compiled step, which on a GPU becomes a CUDA graph: one launch per token instead of hundreds.

The same as :class:`~orlaif.rollout.decoding.SharedDecoder` over caches of fixed size and address. Prompts are padded to
a multiple of :data:`BUCKET`, batches shrink to powers of two, and caches are used again, so that few graphs serve a
whole run.

Shapes: P prompts of S tokens, G completions of at most T tokens.
"""

from __future__ import annotations

from functools import cache as cached
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from orlaif.policy.prefix.decode import shared_step
from orlaif.policy.prefix.group_cache import GroupCache
from orlaif.rollout.decoding import SharedDecoder
from orlaif.types import PromptBatch

#: Finished rows are dropped when at most this share of the rows would be left; every size is another graph.
SHRINK_COMPILED_AT = 0.5
#: Prompts are padded to a multiple of this.
BUCKET = 256


@cached
def _compiled_decode() -> Any:
    """Compiled once per process; a graph for each size of a batch."""
    return torch.compile(shared_step, mode="reduce-overhead", dynamic=False)


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

    def first_cache(
        self, prompts: list[tuple[Tensor, Tensor]], bias: Tensor, group_size: int, max_new_tokens: int
    ) -> GroupCache:
        """The same, copied into a cache of fixed size."""
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

    def one_step(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Logits behind ``tokens`` as of :meth:`SharedDecoder.one_step`, by the compiled graph."""
        with torch._dynamo.config.patch(recompile_limit=64):  # one for each size; the default gives up at 8
            # The next replay of a CUDA graph overwrites its outputs.
            return _compiled_decode()(self.model, self.cache, tokens, positions, self.mask).clone()

    def new_shape(self, prompts: int, width: int) -> tuple[int, int] | None:
        """The next smaller cache in powers of two, so that few graphs are compiled; None where it saves too little."""
        shape = _power_of_two(prompts, self.shape[0]), _power_of_two(width, self.shape[1])
        return shape if shape[0] * shape[1] <= SHRINK_COMPILED_AT * len(self.rows) else None

    def shrink(self, prompts: Tensor, rows: Tensor, shape: tuple[int, int]) -> None:
        """Copy them into a smaller cache of fixed size."""
        smaller = self._fixed(self.cache.prompts, shape, self.cache.prompt_length)
        for new, old in zip(smaller.prompts, self.cache.prompts, strict=True):
            for buffer, values in zip(new, old, strict=True):
                buffer.copy_(values.index_select(0, prompts))
        for new, old in zip(smaller.completions, self.cache.completions, strict=True):
            for buffer, values in zip(new, old, strict=True):
                buffer.copy_(values.index_select(0, rows))
        smaller.bias.copy_(self.cache.bias.index_select(0, prompts))
        smaller.position.copy_(self.cache.position)
        self.cache = smaller
