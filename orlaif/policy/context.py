"""Prompts that leave no room for an answer: the model has positions for so many tokens, and for no more."""

from __future__ import annotations

from typing import Any

from orlaif.types import PromptBatch


def context_limit(config: Any) -> int | None:
    """Tokens that a model of this transformers ``config`` has positions for; None where it names no limit."""
    return getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)


def check_context(config: Any, batch: PromptBatch, length: int) -> None:
    """Refuse prompts that the model has no positions for.

    Args:
        config: of transformers.
        batch: P prompts.
        length: most tokens of a completion behind them.

    Raises:
        ValueError: the prompts by their ids, with their lengths.
    """
    limit = context_limit(config)
    if limit is None or batch.input_ids.shape[1] + length <= limit:
        return
    lengths = zip(batch.prompts, batch.attention_mask.sum(-1).tolist(), strict=True)
    long = [f"{prompt.id!r} ({n} tokens)" for prompt, n in lengths if n + length > limit]
    if long:
        raise ValueError(
            f"prompts longer than the context: {', '.join(long[:5])}{', ...' if len(long) > 5 else ''}, with up to "
            f"{length} tokens of an answer, and the model has {limit} positions; sample fewer or smaller frames "
            "(data.sampling, data.budget), or leave these rows out"
        )
