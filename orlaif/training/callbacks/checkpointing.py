"""Checkpoints to go on from, safe against being killed at any moment."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy

from orlaif.distributed.checkpoint_io import clear_unfinished, is_sharded_checkpoint
from orlaif.distributed.fsdp2 import FSDP2Strategy


class Checkpointing(ModelCheckpoint):
    """Lightning's ModelCheckpoint, safe against being killed at any moment.

    A checkpoint has its name only when it is complete, and the one before is deleted only then. ``--ckpt_path last``
    goes on from the newest; where there is none yet it starts from the beginning, so that a job that is queued again
    can always use it.

    Args:
        every_n_train_steps: how often to save, in steps of the optimizer, and after the last of ``max_steps``; None: at
            the end of each epoch.
        save_top_k: how many to keep: the newest, or the best by ``monitor``; -1 keeps all.
        kwargs: of ModelCheckpoint.
    """

    def __init__(self, every_n_train_steps: int | None = None, save_top_k: int = 1, **kwargs: Any) -> None:
        super().__init__(every_n_train_steps=every_n_train_steps, save_top_k=save_top_k, **kwargs)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Clear away what a killed run left unfinished."""
        if isinstance(trainer.strategy, ModelParallelStrategy) and not isinstance(trainer.strategy, FSDP2Strategy):
            raise ValueError(
                "trainer.strategy is ModelParallelStrategy; use orlaif.distributed.fsdp2.FSDP2Strategy ('fsdp2')"
            )
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and trainer.is_global_zero and self.dirpath is not None:
            clear_unfinished(Path(self.dirpath))

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Save where it is time, and after the last of ``max_steps``."""
        super().on_train_batch_end(trainer, *args, **kwargs)
        ends = trainer.global_step == trainer.max_steps
        if ends and self._every_n_train_steps and self._last_global_step_saved != trainer.global_step:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def _should_remove_checkpoint(self, trainer: Trainer, previous: str, current: str) -> bool:
        """As Lightning has it, but also the one that this run went on from: resumed often, a run would fill a disk."""
        own = self.dirpath is not None and Path(self.dirpath).absolute() in Path(previous).absolute().parents
        return own and previous != current

    def _find_last_checkpoints(self, trainer: Trainer) -> set[str]:
        """The complete checkpoint with the most steps; what Lightning takes ``last`` to be."""
        folder = Path(self.dirpath or os.path.join(trainer.default_root_dir, "checkpoints"))
        found = [path for path in folder.glob("*.ckpt") if path.is_file() or is_sharded_checkpoint(path)]
        return {str(max(found, key=_age))} if found else set()


def _age(path: Path) -> tuple[int, float]:
    """Steps by the name, else by the clock."""
    steps = re.search(r"step=(\d+)", path.name)
    return int(steps[1]) if steps else -1, path.stat().st_mtime
