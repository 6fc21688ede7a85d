"""Batches of prompts about clips of noise: what a model is given where decoding is not what is measured."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from lightning import LightningDataModule

from orlaif.data.loader import Sealed, followed
from orlaif.policy import Policy
from orlaif.policy.encoding import ProcessorEncoder
from orlaif.types import Delivery, PromptBatch, VideoClip, VideoPrompt


class _Loader:
    """Deliveries, each with ``lookahead`` of those behind it."""

    def __init__(self, batches: list[PromptBatch], lookahead: int) -> None:
        self.batches, self.lookahead = batches, lookahead

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Sealed]:
        yield from followed((Sealed(Delivery(batch=batch)) for batch in self.batches), self.lookahead)


class MadeFrames(LightningDataModule):
    """New prompts about clips of noise at each step.

    Args:
        policy: whose processor is used.
        steps: batches.
        batch_size: P.
        frames: of a clip.
        height: of a frame, pixels.
        width: of a frame, pixels.
    """

    def __init__(self, policy: Policy, steps: int, batch_size: int, frames: int, height: int, width: int) -> None:
        super().__init__()
        self.policy, self.shape = policy, (frames, 3, height, width)
        self.batch_size = batch_size
        self.batches = [self.batch(step) for step in range(steps)]

    def batch(self, step: int) -> PromptBatch:
        """The batch of a step."""
        generator = torch.Generator().manual_seed(step)
        times = torch.arange(self.shape[0], dtype=torch.float64) / 2
        clips = [
            VideoClip(
                frames=torch.randint(0, 256, self.shape, generator=generator, dtype=torch.uint8),
                pts_s=times,
                duration_s=self.shape[0] / 2,
                path="made",
            )
            for _ in range(self.batch_size)
        ]
        prompts = [VideoPrompt(id=f"{step}-{i}", video="made", question="what is this") for i in range(self.batch_size)]
        return ProcessorEncoder(self.policy.processor, family=self.policy.family)(prompts, clips)

    def train_dataloader(self) -> _Loader:
        """All batches."""
        return _Loader(self.batches, getattr(self.trainer.lightning_module, "batches_ahead", 0))  # type: ignore[union-attr]

    def on_before_batch_transfer(self, batch: Sealed, dataloader_idx: int) -> Delivery:
        """Open the delivery."""
        return batch.open()
