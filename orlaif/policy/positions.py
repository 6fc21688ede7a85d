"""Position ids of a batch's prompts, computed once for rollout, reference and policy.

Shapes: P prompts of S tokens.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from orlaif.policy.prefix.forward import prompt_positions
from orlaif.types import PromptBatch


class PromptPositions:
    """The positions of the last batch that was asked for."""

    def __init__(self) -> None:
        self._last: tuple[PromptBatch, Tensor] | None = None

    def of(self, model: Any, batch: PromptBatch) -> Tensor:
        """Position ids i64[P, S], or i64[3, P, S] for models with multimodal RoPE.

        Args:
            model: the policy's.
            batch: compared by identity.
        """
        if self._last is None or self._last[0] is not batch:
            self._last = (batch, prompt_positions(model, batch))
        return self._last[1]

    def forget(self) -> None:
        """Drop what is kept."""
        self._last = None
