"""The first prompts of the validation data, which some callbacks ask about at every validation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning import Trainer
from torch import Tensor

from orlaif.distributed.sync import num_processes, process_index
from orlaif.stages import told
from orlaif.training.base import PolicyModule
from orlaif.types import AsksQuestions, Picture, PromptBatch


class FixedPrompts:
    """The first prompts of the validation data, decoded and encoded once.

    Args:
        whose: name of the callback, for errors.
        num_prompts: how many, of all processes together.
        batch_size: prompts in a batch.
        keep_mb: most memory of the CPU, on each process, for batches that are kept; the others are decoded anew.

    Raises:
        ValueError: a setting out of its range.
    """

    def __init__(self, whose: str, num_prompts: int, batch_size: int, keep_mb: int) -> None:
        for name, value in (("num_prompts", num_prompts), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{whose}.{name} is {value}; it must be 1 or more")
        if keep_mb < 0:
            raise ValueError(f"{whose}.keep_mb is {keep_mb}; it must be 0 (keep nothing) or more")
        self.num_prompts, self.batch_size, self.keep_bytes = num_prompts, batch_size, keep_mb * 10**6
        self._kept: dict[int, PromptBatch] = {}

    def forget(self) -> None:
        """Keep nothing any more: the data may be other."""
        self._kept = {}

    def batches(self, trainer: Trainer, module: PolicyModule, what: str) -> Iterator[PromptBatch]:
        """This process's share of the prompts, on its device.

        Args:
            trainer: of the run.
            module: of the run.
            what: they are asked for, as it is shown.
        """
        data: AsksQuestions = trainer.datamodule  # type: ignore[attr-defined]
        questions = data.questions("val")
        mine = range(process_index(), min(self.num_prompts, len(questions)), num_processes())
        for start in told(range(0, len(mine), self.batch_size), what, "batches"):
            batch = self._kept.get(start)
            if batch is None:
                batch = data.collator([questions[i] for i in mine[start : start + self.batch_size]]).batch
                if sum(map(num_bytes, (*self._kept.values(), batch))) <= self.keep_bytes:
                    self._kept[start] = batch
            if len(batch):
                yield batch.to(module.device)


def num_bytes(batch: PromptBatch) -> int:
    """Bytes of a batch's tensors: tokens, the processor's inputs, and frames."""
    tensors = [batch.input_ids, batch.attention_mask, *_tensors(list(batch.mm_inputs.values()))]
    for item in (item for seen in batch.clips for item in seen.items):
        tensors.append(item.pixels if isinstance(item, Picture) else item.frames)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
