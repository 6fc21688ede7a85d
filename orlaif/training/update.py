"""A pass over a rollout, all of its parts together: what is left of it for the optimizer and the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Update:
    """A pass over a rollout.

    Args:
        last_loss: 0-dim, undivided, of the last part, which has not gone backward yet.
        metrics: 0-dim each, of the whole.
        tokens: 0-dim, how many count.
    """

    last_loss: Tensor
    metrics: dict[str, Tensor]
    tokens: Tensor


def sum_of(values: Sequence[Tensor]) -> Tensor:
    """The 0-dim sum of 0-dim tensors, which stays on their device."""
    return torch.stack(list(values)).sum()


def merged(parts: list[dict[str, Tensor]], tokens: Tensor) -> dict[str, Tensor]:
    """Metrics of a whole batch: the loss is a sum, all others are means over ``tokens`` i64[parts]."""
    share = tokens / tokens.sum().clamp(min=1)
    whole = {}
    for name in parts[0]:
        values = torch.stack([metrics[name] for metrics in parts])
        whole[name] = values.sum() if name == "loss" else (values * share).sum()
    return whole
