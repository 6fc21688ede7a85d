"""What statistics are taken of: logits that exist (``logits.py``), or hidden states and an LM head (``linear.py``).

Shapes: N completions, T tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from orlaif_kernels.arguments import LossSettings
from orlaif_kernels.rows import STATE_SLOTS, Rows, wide


@dataclass(frozen=True)
class Source:
    """As an operator's schema can hold it.

    Args:
        x: logits [N, T, V], or hidden states [N, T, H].
        weight: the head [V, H], or None.
        bias: its bias [V], or None.
        how: the implementation, and what else it is told, by words.
    """

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    how: str

    @property
    def tensors(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """x, weight, bias."""
        return self.x, self.weight, self.bias

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.x.shape[-1] if self.weight is None else self.weight.shape[0]

    @property
    def implementation(self) -> str:
        """``torch`` or ``triton``."""
        return self.how.split()[0]

    @property
    def wanted(self) -> list[bool]:
        """Which of the tensors a gradient is asked of."""
        learning = torch.is_grad_enabled()
        return [learning and x is not None and x.requires_grad for x in self.tensors]

    def rows(
        self,
        token_ids: Tensor,
        mask: Tensor,
        settings: LossSettings,
        state: Tensor | None = None,
        slots: int = STATE_SLOTS,
    ) -> Rows:
        """Of all tokens, their state given, or 0."""
        if state is None:
            state = torch.zeros(slots, token_ids.numel(), dtype=wide(self.x), device=mask.device)
        return Rows(token_ids, mask, settings, self.implementation, state)
