"""One forward pass over prompts and completions: what goes into the model, and logits at the completions alone.

The pass goes through the model's own ``forward``, so that whatever wraps it (PEFT, FSDP2, hooks) sees an ordinary call.
A hook on the LM head keeps the positions that predict completion tokens and drops the rest before the head works.

Shapes: P prompts of S tokens, G completions of T tokens, V vocabulary, H hidden size; R rows of L tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from orlaif.distributed.sequence import SequenceGroup
from orlaif.distributed.sharding import compute_dtype
from orlaif.policy.asking import base_of, per_token
from orlaif.policy.families import Family
from orlaif.policy.prefix.attention import (
    DividedAttention,
    RowAttention,
    autocast_dtype,
    choose_attention,
    flex_attention,
)
from orlaif.policy.prefix.current import Laid, laid
from orlaif.policy.prefix.divided import Division, decoder_keeps, divide
from orlaif.policy.prefix.layout import GroupRows, group_rows
from orlaif.policy.prefix.masks import nothing_to_read
from orlaif.policy.prefix.prepare import has_own_masks
from orlaif.policy.prefix.split import split_attention
from orlaif.types import Completions, PromptBatch


@contextmanager
def _head_at(
    head: nn.Module, places: Tensor, taken: list[Tensor] | None, before: Tensor | None, division: Division | None
) -> Iterator[None]:
    """Let ``head`` see hidden states at ``places`` [B, T] of [R * L] only; with ``taken``, hand them over instead."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states = inputs[0].flatten(0, 1)
        hidden = states.index_select(0, places.flatten()).view(*places.shape, states.shape[-1])
        hidden = hidden if division is None else division.with_ends(states, hidden)
        hidden = hidden if before is None else torch.cat([before, hidden], 1)
        if taken is None:
            return hidden, *inputs[1:]
        taken.append(hidden)
        return hidden[:0], *inputs[1:]

    handle = head.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def run(
    model: Any,
    head: nn.Module,
    places: Tensor,
    hidden: bool,
    inputs: dict[str, Any],
    before: Tensor | None = None,
    division: Division | None = None,
) -> Tensor:
    """One pass of a model, its outputs where they are wanted.

    Args:
        model: of transformers, or PEFT's around one.
        head: its LM head, which works at these places alone.
        places: i64[B, T], into the tokens [R * L] of the pass.
        hidden: last hidden states instead of logits.
        inputs: of the pass; with ``past_key_values`` it fills that cache.
        before: hidden states [B, N, H] of an earlier pass, which the head takes first.
        division: of the prompts among processes, if they are divided; ``places`` are then of what this one has.

    Returns:
        [B, N + T, V] or [B, N + T, H].
    """
    taken: list[Tensor] | None = [] if hidden else None
    with _head_at(head, places, taken, before, division), decoder_keeps(model, division):
        logits = model(use_cache="past_key_values" in inputs, **inputs).logits
    return logits if taken is None else taken[0]


def shared_forward(
    model: Any,
    batch: PromptBatch,
    completions: Completions,
    positions: Tensor,
    attentions: tuple[str, ...],
    family: Family,
    hidden: bool = False,
    sequence: SequenceGroup | None = None,
) -> Tensor:
    """Groups in rows: each prompt, with its video, goes through the model once.

    Args:
        model: a video-language model of transformers, or PEFT's around one.
        batch: P prompts.
        completions: their P x G completions.
        positions: of the prompts, i64[P, S] or i64[3, P, S].
        attentions: the implementations to choose from, by size (``orlaif.policy.prefix.attention.choose_attention``).
        family: of the model.
        hidden: hidden states instead of logits.
        sequence: processes that the prompts are divided among; ``completions`` are then this process's own.

    Returns:
        [P * G, T, V] or [P * G, T, H] at the positions that predict completion tokens.
    """
    device, dtype = batch.input_ids.device, compute_dtype(model)
    computed = autocast_dtype(device, dtype)
    own_masks, division = has_own_masks(model), None
    if sequence is None:
        name = choose_attention(batch.attention_mask, completions.mask, attentions, device, computed)
        rows = group_rows(batch.attention_mask, completions.mask, one_row=name != "mask" and not own_masks)
    else:
        name = choose_attention(batch.attention_mask, completions.mask, ("split",), device, computed)
        division = divide(batch.attention_mask, completions.mask, sequence)
        rows = division.whole
    _, g, t = completions.ids.shape
    ahead = family.completion_positions(positions, t).unsqueeze(-2)
    none = torch.zeros_like(completions.ids)
    given = family.inputs(model, batch)
    inputs = given | {
        "input_ids": rows.lay(batch.input_ids, completions.ids),
        "position_ids": rows.lay(positions, ahead.expand(*ahead.shape[:-2], g, t)),
        **{key: rows.lay(value, none.to(value.dtype)) for key, value in per_token(batch, given).items()},
        **_attention_inputs(model, rows, name, dtype, own_masks, division),
    }
    mine = rows if division is None else division.rows
    with laid(Laid(rows=mine, attention=name, division=division)):
        return run(model, family.head(model), mine.predict.flatten(0, 1), hidden, inputs, division=division)


def _attention_inputs(
    model: Any, rows: GroupRows, name: str, dtype: torch.dtype, own_masks: bool, division: Division | None
) -> dict[str, Any]:
    if division is not None:
        return {"attention_mask": nothing_to_read(rows), "grouping": DividedAttention(division=division)}
    if own_masks:  # built by the model, from a mask of two dimensions
        given = torch.ones_like(rows.source)
    elif name != "mask":
        given = nothing_to_read(rows)
    else:  # one of four dimensions goes through transformers as it is
        given = rows.mask
        if base_of(model).get_decoder().config._attn_implementation == "eager":  # which adds its mask to the scores
            given = torch.zeros_like(given, dtype=dtype).masked_fill(~given, torch.finfo(dtype).min)
    if name == "mask":
        return {"attention_mask": given}
    function = {"split": split_attention, "flex": flex_attention}[name]
    return {"attention_mask": given, "grouping": RowAttention(rows=rows, function=function)}


def duplicate_forward(
    model: Any,
    batch: PromptBatch,
    completions: Completions,
    positions: Tensor,
    pad_id: int,
    family: Family,
    hidden: bool = False,
) -> Tensor:
    """The prompt again for each of the G completions, one completion of each prompt at a time.

    Args:
        model: a video-language model of transformers, or PEFT's around one.
        batch: P prompts.
        completions: their P x G completions.
        positions: of the prompts, i64[P, S] or i64[3, P, S].
        pad_id: a token that the model can embed.
        family: of the model.
        hidden: hidden states instead of logits.

    Returns:
        As :func:`shared_forward`.
    """
    p, g, t = completions.ids.shape
    s = batch.input_ids.shape[1]
    starts = torch.arange(p, device=batch.input_ids.device)[:, None] * (s + t)
    places = starts + s - 1 + torch.arange(t, device=batch.input_ids.device)
    ids = completions.ids.masked_fill(~completions.mask, pad_id)
    given = family.inputs(model, batch)
    inputs = given | {
        "position_ids": torch.cat([positions, family.completion_positions(positions, t)], -1),
        **{key: nn.functional.pad(value, (0, t)) for key, value in per_token(batch, given).items()},
    }
    outputs = []
    for i in range(g):
        mask = torch.cat([batch.attention_mask, completions.mask[:, i].to(batch.attention_mask.dtype)], 1)
        inputs |= {"input_ids": torch.cat([batch.input_ids, ids[:, i]], 1), "attention_mask": mask}
        outputs.append(run(model, family.head(model), places, hidden, inputs))
    return torch.stack(outputs, 1).flatten(0, 1)
