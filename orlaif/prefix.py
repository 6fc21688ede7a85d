"""A group in one row: the layout of a prompt followed by its G completions.

    row p = [ prompt (S, padded left) | completion 1 (T) | ... | completion G (T) ]      L = S + G * T

A completion attends to the prompt and, causally, to itself, never to its siblings; it carries the positions that it
would have had alone. So the vision tower and the prompt run once for the group, and log-probs and gradients equal those
of the duplicated batch. The mask is an explicit 4-D one, which every attention implementation that takes masks
understands; padding attends to itself only, so that no row of the softmax is empty.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class GroupRow:
    """Inputs of one forward pass over groups in rows.

    Args:
        input_ids: i64[P, L].
        attention_mask: bool[P, 1, L, L], True where the query (second to last) sees the key (last).
        position_ids: i64[P, L], or i64[3, P, L] for multimodal RoPE.
        keep: i64[1 + G * (T - 1)], the positions that predict completion tokens: the end of the prompt, which all G
            share, then every completion token but the last.
        pick: i64[G, T], index into ``keep`` for each completion token.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    keep: Tensor
    pick: Tensor


def completion_positions(prompt_positions: Tensor, length: int) -> Tensor:
    """Positions of a completion of ``length`` tokens: it goes on after the prompt's largest position.

    Args:
        prompt_positions: i64[P, S], or i64[3, P, S] for multimodal RoPE.
        length: T.

    Returns:
        i64[P, T] or i64[3, P, T].
    """
    largest = prompt_positions.amax(-1, keepdim=True)
    if prompt_positions.ndim == 3:  # text after a video starts behind the largest of its three coordinates
        largest = largest.amax(0, keepdim=True).expand(prompt_positions.shape[0], -1, -1)
    return largest + 1 + torch.arange(length, device=prompt_positions.device)


def group_row(
    input_ids: Tensor, prompt_mask: Tensor, prompt_positions: Tensor, completion_ids: Tensor, completion_mask: Tensor
) -> GroupRow:
    """Lay out groups in rows.

    Args:
        input_ids: i64[P, S], padded on the left.
        prompt_mask: i64 or bool[P, S].
        prompt_positions: i64[P, S] or i64[3, P, S].
        completion_ids: i64[P, G, T]; masked places must hold a token the model can embed.
        completion_mask: bool[P, G, T].

    Returns:
        The row, its mask and positions, and where to take logits.
    """
    p, g, t = completion_ids.shape
    s = input_ids.shape[1]
    device = input_ids.device
    valid = torch.cat([prompt_mask.bool(), completion_mask.reshape(p, g * t)], 1)
    segment = torch.cat([torch.zeros(s, dtype=torch.long), torch.arange(1, g + 1).repeat_interleave(t)]).to(device)
    order = torch.arange(s + g * t, device=device)
    # The prompt is segment 0 and visible to all; a completion is visible to itself; nothing sees what comes later.
    same_or_prompt = (segment[:, None] == segment[None, :]) | (segment[None, :] == 0)
    causal = order[:, None] >= order[None, :]
    mask = (same_or_prompt & causal)[None] & valid[:, None, :]
    mask = mask | torch.eye(s + g * t, dtype=torch.bool, device=device)

    ahead = completion_positions(prompt_positions, t)
    repeats = (1,) * (ahead.ndim - 1) + (g,)
    starts = s + torch.arange(g, device=device)[:, None] * t
    keep = torch.cat([torch.tensor([s - 1], device=device), (starts + torch.arange(t - 1, device=device)).flatten()])
    inner = 1 + torch.arange(g * (t - 1), device=device).view(g, t - 1)
    return GroupRow(
        input_ids=torch.cat([input_ids, completion_ids.reshape(p, g * t)], 1),
        attention_mask=mask.unsqueeze(1),
        position_ids=torch.cat([prompt_positions, ahead.repeat(repeats)], -1),
        keep=keep,
        pick=torch.cat([torch.zeros(g, 1, dtype=torch.long, device=device), inner], 1),
    )
