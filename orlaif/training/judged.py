"""A batch behind its oracle, as callbacks are shown it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from orlaif.oracles import Exchange
from orlaif.types import Completions, PromptBatch, Ranking

if TYPE_CHECKING:
    from orlaif.training.rlaif import OracleRLAIF


@dataclass(frozen=True, kw_only=True)
class JudgedBatch:
    """The groups of one process and one batch, ranked and weighed, before the policy learns from them.

    Args:
        batch: P prompts.
        completions: their groups [P, G, T].
        ranking: of them.
        advantages: f32[P, G] or f32[P, G, T].
        step: of the optimizer, that these groups are for.
        epoch: of the batch.
        batch_idx: of the batch in its epoch.
        reference: f32[P, G, T], log-probs by the frozen reference, where the loss has a KL term; not with dynamic
            sampling, which computes none for groups that it may set aside.
        trainer: f32[P, G, T], the trainer's log-probs of what was sampled, where they were computed.
        exchanges: what a judge was asked and replied about them.
        seconds: that a stage took for the whole batch, by its name.
    """

    batch: PromptBatch
    completions: Completions
    ranking: Ranking
    advantages: Tensor
    step: int
    epoch: int
    batch_idx: int
    reference: Tensor | None = None
    trainer: Tensor | None = None
    exchanges: Sequence[Exchange] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)


@runtime_checkable
class WatchesGroups(Protocol):
    """A callback that sees the groups of every training step; each process shows it its own."""

    def on_groups(self, trainer: Trainer, pl_module: LightningModule, judged: JudgedBatch) -> None:
        """Called once for each batch; stand-ins of no weight are not shown."""


def whole(parts: list[Tensor | None]) -> Tensor | None:
    """f32[P, G, T] of f32[P, g, T] in parts of the groups; None where they are not known."""
    known = [part for part in parts if part is not None]
    return torch.cat(known, 1) if known else None


def of_answers(advantages: Tensor, completions: Completions) -> Tensor:
    """f32[P, G] of advantages f32[P, G], or of f32[P, G, T]: the sum over the tokens of an answer, on its device."""
    return advantages if advantages.ndim == 2 else advantages.masked_fill(~completions.mask, 0.0).sum(-1)


def show(module: OracleRLAIF, judged: JudgedBatch) -> None:
    """Show a batch to all callbacks that watch groups."""
    for callback in module.trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WatchesGroups):
            callback.on_groups(module.trainer, module, judged)
