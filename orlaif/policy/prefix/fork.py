"""The second exact way for a group: the prompt once, its cache forked, the completions in a pass behind it.

    pass 1   [ prompt ]                                  fills a cache that gradients flow through
    fork     each of its rows, G times
    pass 2   [ completion 1 ], ..., [ completion G ]     a row each, behind the prompt's cache

Whatever a layer keeps of the prompt for decoding is what the completions need of it: keys and values, those of a window
alone, the state of a recurrent layer or a convolution. So it serves models that one row does not, and costs what the
row does but for keys and values, of which there are G copies. The first token of a completion is predicted at the
prompt's last place, the others in the second pass; the LM head works once, on both.

Not under gradient checkpointing: layers of transformers drop the cache there, and completions lose their prompt.

Shapes: P prompts of S tokens (padded left), G completions of T tokens (padded right), V vocabulary, H hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from orlaif.policy.asking import base_of, per_token
from orlaif.policy.families import Family
from orlaif.policy.prefix.forward import run
from orlaif.policy.prefix.states import differentiable_cache
from orlaif.types import Completions, PromptBatch

#: Why not under gradient checkpointing.
CHECKPOINTING = "under gradient checkpointing transformers drops the cache that 'fork' runs behind"


def fork_forward(
    model: Any,
    batch: PromptBatch,
    completions: Completions,
    positions: Tensor,
    pad_id: int,
    family: Family,
    hidden: bool = False,
) -> Tensor:
    """Completions behind the prompt's cache: each prompt, with its video, goes through the model once.

    There are always two passes, since processes that share a model's weights must make equally many.

    Args:
        model: a video-language model of transformers, or PEFT's around one.
        batch: P prompts.
        completions: their P x G completions.
        positions: of the prompts, i64[P, S] or i64[3, P, S].
        pad_id: a token that the model can embed.
        family: of the model.
        hidden: hidden states instead of logits.

    Returns:
        [P * G, T, V] or [P * G, T, H] at the positions that predict completion tokens.

    Raises:
        ValueError: a model in training that recomputes its activations.
    """
    base = base_of(model)
    if base.training and base.is_gradient_checkpointing:
        raise ValueError(f"policy.prefix is 'fork': {CHECKPOINTING}")
    (p, g, t), s, device = completions.ids.shape, batch.input_ids.shape[1], batch.input_ids.device
    head, given = family.head(model), family.inputs(model, batch)
    cache: Any = differentiable_cache(base.config.get_text_config(decoder=True))
    inputs = given | {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "position_ids": positions,
        "past_key_values": cache,
    }
    ends = torch.arange(1, p + 1, device=device)[:, None] * s - 1
    at_end = run(model, head, ends, True, inputs).repeat_interleave(g, 0)
    cache.reorder_cache(torch.arange(p, device=device).repeat_interleave(g))

    n = max(t - 1, 2)  # layers take a single token for decoding, and write their state in place
    ids = completions.ids.masked_fill(~completions.mask, pad_id).flatten(0, 1)[:, : t - 1]
    mask = completions.mask.flatten(0, 1)[:, : t - 1].to(batch.attention_mask.dtype)
    padding = (0, n - (t - 1))
    none = batch.input_ids.new_zeros(p * g, n)
    inputs = {
        "input_ids": nn.functional.pad(ids, padding, value=pad_id),
        "attention_mask": torch.cat(
            [batch.attention_mask.repeat_interleave(g, 0), nn.functional.pad(mask, padding)], 1
        ),
        "position_ids": family.completion_positions(positions, n).repeat_interleave(g, -2),
        "past_key_values": cache,
        **{name: none.to(value.dtype) for name, value in per_token(batch, given).items()},
    }
    places = torch.arange(p * g, device=device)[:, None] * n + torch.arange(t - 1, device=device)
    return run(model, head, places, hidden, inputs, before=at_end)
