"""Position ids of a batch's prompts, computed once for rollout, reference and policy.

Shapes: P prompts of S tokens.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from orlaif.policy.families import Family
from orlaif.types import PromptBatch


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
        """Drop what is kept."""
        self._kept = {}
