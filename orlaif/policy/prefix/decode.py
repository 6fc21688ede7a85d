"""A pass over prompts that fills a cache, and one token behind it: what decoding and the check at load have in common.

Shapes: P prompts of S tokens, N rows, V vocabulary.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache

from orlaif.policy.asking import base_of
from orlaif.policy.families import Family
from orlaif.policy.prefix.group_cache import GroupCache
from orlaif.types import PromptBatch


def prefill(
    model: Any, batch: PromptBatch, positions: Tensor, family: Family, cache: DynamicCache | None = None
) -> tuple[Tensor, Any]:
    """Logits [P, V] behind the prompts, and the cache of transformers with P rows.

    Args:
        model: of transformers, or PEFT's around one.
        batch: P prompts.
        positions: of the prompts, i64[P, S] or i64[3, P, S].
        family: of the model.
        cache: an empty one, by default of the layers that the model's config asks for.
    """
    if cache is None:
        cache = DynamicCache(config=base_of(model).config.get_text_config(decoder=True))
    first = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        **family.inputs(model, batch),
    )
    return first.logits[:, -1], first.past_key_values


def expanded_step(model: Any, cache: Any, tokens: Tensor, positions: Tensor, attention: Tensor) -> Tensor:
    """Logits [N, V] behind one token per row, each row with its cache.

    Args:
        model: of transformers, or PEFT's around one.
        cache: of transformers, N rows.
        tokens: i64[N].
        positions: i64[N, 1] or i64[3, N, 1].
        attention: [N, tokens so far, these included], 0 at padding.
    """
    return _step(model, cache, tokens, positions, attention)


def shared_step(model: Any, cache: GroupCache, tokens: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
    """Logits [N, V] behind one token per row, the rows of a group over its prompt's keys and values.

    Args:
        model: of transformers, or PEFT's around one, with ``orlaif.policy.prefix.attention.enable_grouping``.
        cache: of the groups, which is also the grouping.
        tokens: i64[N].
        positions: i64[N, 1] or i64[3, N, 1].
        mask: bool[1, 1, 1, 1], which goes through transformers as it is, and is not read.
    """
    return _step(model, cache, tokens, positions, mask, grouping=cache)


def _step(model: Any, cache: Any, tokens: Tensor, positions: Tensor, mask: Tensor, **grouping: GroupCache) -> Tensor:
    return model(
        input_ids=tokens[:, None],
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        **grouping,
    ).logits[:, -1]
