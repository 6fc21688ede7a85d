"""Position ids: of a batch's prompts, computed once for rollout, reference and policy, and of completions behind them.

Shapes: P prompts of S tokens.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from orlaif.types import PromptBatch

if TYPE_CHECKING:
    from orlaif.policy.families import Family


def in_order(batch: PromptBatch) -> Tensor:
    """Position ids i64[P, S] of prompts: one for each token, padding aside."""
    return (batch.attention_mask.long().cumsum(-1) - 1).clamp(min=0)


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


def behind_the_largest(positions: Tensor, vision: Tensor, mask: Tensor) -> Tensor:
    """Number anew, so that whatever follows a run of vision tokens starts behind its largest coordinate.

    Args:
        positions: i64[3, P, S], in which a run of vision tokens starts with the same number in all three.
        vision: bool[P, S], vision tokens.
        mask: bool[P, S], False at padding.

    Returns:
        i64[3, P, S].
    """
    positions = positions.clone()
    for p in range(positions.shape[1]):
        places = mask[p].nonzero().squeeze(-1)
        kinds = vision[p, places].int()
        starts = [0, *((kinds.diff() != 0).nonzero().squeeze(-1) + 1).tolist(), len(places)]
        following = int(positions[0, p, places[0]]) if len(places) else 0
        for start, end in itertools.pairwise(starts):
            run = places[start:end]
            positions[:, p, run] += following - positions[:, p, run[:1]]
            following = int(positions[:, p, run].max()) + 1
    return positions


class PromptPositions:
    """The positions of a batch and of its parts, until :meth:`forget`."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[PromptBatch, Tensor]] = {}

    def of(self, family: Family, model: Any, batch: PromptBatch) -> Tensor:
        """Position ids i64[P, S], or i64[3, P, S] for models with multimodal RoPE.

        Args:
            family: of the model.
            model: the policy's.
            batch: compared by identity.
        """
        if id(batch) not in self._kept:
            self._kept[id(batch)] = (batch, family.prompt_positions(model, batch))
        return self._kept[id(batch)][1]

    def forget(self) -> None:
        """Drop the positions that are kept for the batches of a step."""
        self._kept = {}
