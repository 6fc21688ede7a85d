"""A cache that keeps the keys and values of a prompt once, and of the G completions behind it.

Shapes: P prompts of S tokens, G completions of at most T tokens, K key heads, H = K * n query heads, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


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
        #: Keys and values [P * G, K, T, D] of the completions' tokens, of every layer.
        self.completions: list[tuple[Tensor, Tensor]] = []
        for keys, values in prompts:
            shape = (keys.shape[0] * group_size, keys.shape[1], max_new_tokens)
            self.completions.append(
                (keys.new_zeros(*shape, keys.shape[-1]), values.new_zeros(*shape, values.shape[-1]))
            )
        self.prompt_length = int(bias.shape[-1])
        self.step = 0
        #: i64[1], the same as ``step``, for ``fixed``.
        self.position = torch.zeros(1, dtype=torch.long, device=bias.device)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens in the cache so far, those of padding included."""
        return self.prompt_length + self.step

    def advance(self) -> None:
        """The next token is the next."""
        if self.fixed:  # a number that changes would be compiled into another graph
            self.position += 1
        else:
            self.step += 1

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take in one token per row, [P * G, K, 1, D]; returns those of the completions, [P * G, K, t, D]."""
        all_keys, all_values = self.completions[layer_idx]
        if self.fixed:
            all_keys.index_copy_(2, self.position, key)
            all_values.index_copy_(2, self.position, value)
            return all_keys, all_values
        all_keys[:, :, self.step : self.step + 1] = key
        all_values[:, :, self.step : self.step + 1] = value
        return all_keys[:, :, : self.step + 1], all_values[:, :, : self.step + 1]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """One query per row, [P * G, H, 1, D], over the prompt of its group and the tokens of its row.

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
        completion_scores = by_prompt(grouped @ key.mT).to(exact) * scale
        if self.fixed:
            later = torch.arange(key.shape[2], device=key.device) > self.position
            completion_scores = completion_scores.masked_fill(later, -torch.inf)
        weights = torch.cat([scores, completion_scores], -1).softmax(-1).to(value.dtype)
        out = by_row(weights[..., :s] @ prompt_value) + by_row(weights[..., s:]) @ value
        return out.reshape(query.shape[0], query.shape[1], 1, -1)

    def keep(self, prompts: Tensor | None, rows: Tensor) -> None:
        """Go on with ``rows`` of the completions, whose prompts are ``prompts`` (None: all of them)."""
        self.completions = [
            (keys.index_select(0, rows), values.index_select(0, rows)) for keys, values in self.completions
        ]
        if prompts is not None:
            self.prompts = [
                (keys.index_select(0, prompts), values.index_select(0, prompts)) for keys, values in self.prompts
            ]
            self.bias = self.bias.index_select(0, prompts)

    def tensors(self) -> list[Tensor]:
        """Every tensor of the cache, in a fixed order."""
        return [self.bias, self.position, *(x for pair in (*self.prompts, *self.completions) for x in pair)]


def prefilled(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    """Keys and values [P, K, S, D] of every layer of a cache.

    Raises:
        ValueError: a layer that keeps something else, or not all of the prompt.
    """
    pairs = []
    for number, layer in enumerate(cache.layers):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if type(layer) is not DynamicLayer or keys is None or values is None:
            raise ValueError(f"layer {number} keeps no keys and values of all tokens ({type(layer).__name__})")
        pairs.append((keys, values))
    return pairs


def padding_bias(prompt_mask: Tensor) -> Tensor:
    """f32[P, 1, 1, S] to add to scores: 0 at the tokens of ``prompt_mask`` [P, S], -inf at padding."""
    bias = torch.zeros(prompt_mask.shape, dtype=torch.float32, device=prompt_mask.device)
    return bias.masked_fill(~prompt_mask.bool(), -torch.inf)[:, None, None]
