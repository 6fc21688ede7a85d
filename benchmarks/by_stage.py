"""Bytes of tensors that are alive in a run, and the most of each of its stages."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch._library.custom_ops import OPDEFS

from orlaif.cli.plan.live_bytes import LiveBytes
from orlaif.stages import under_way


def current_stage() -> str:
    """What the main thread is doing, in the run's own words."""
    for stages in under_way():
        if stages[0].is_main:
            return stages[-1].name
    return "between stages"


class ByStage(LiveBytes):
    """A context that counts, inside the operators of the loss as well.

    Args:
        known: tensors that do not count.

    Attributes:
        peaks: the most bytes of each stage.
        name: of the stage under way, where the run itself has none for it.
    """

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__(known)
        self.peaks: dict[str, int] = defaultdict(int)
        self.name: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "orlaif_kernels":  # operation by operation, where the plan goes by what they say
            with self:
                return OPDEFS[func.name()]._init_fn(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)

    def add(self, tensors: Iterable[torch.Tensor]) -> None:
        """Count tensors that are there already."""
        for tensor in tensors:
            self._see(tensor)

    def _see(self, tensor: torch.Tensor) -> torch.Tensor:
        seen = super()._see(tensor)
        name = self.name or current_stage()
        self.peaks[name] = max(self.peaks[name], self.now)
        return seen
