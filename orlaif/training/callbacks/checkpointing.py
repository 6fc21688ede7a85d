"""Checkpoints to go on from, safe against being killed at any moment."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy

from orlaif.distributed.checkpoint_io import clear_unfinished, newest_checkpoint
from orlaif.distributed.fsdp2 import FSDP2Strategy

log = logging.getLogger(__name__)


class Checkpointing(ModelCheckpoint):
    """Lightning's ModelCheckpoint, safe against being killed at any moment.

    A checkpoint has its name only when it is complete, and the one before is deleted only then. ``--ckpt_path last``
    goes on from the newest; where there is none yet it starts from the beginning, so that a job that is queued again
    can always use it. A run that ends has a checkpoint of its end.

    Args:
        every_n_train_steps: how often to save, in steps of the optimizer; None: at the end of each epoch.
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

    def save_now(self, trainer: Trainer) -> str | None:
        """Save, whatever the interval, what has not been saved; its path, or None for a run that saves nothing.

        With ``monitor`` it is ``stopped.ckpt``, which does not compete with the best ones.
        """
        if trainer.fast_dev_run or not trainer.global_step:  # type: ignore[attr-defined]
            return None
        if self._last_global_step_saved != trainer.global_step:
            if self.monitor is None and self.save_top_k:
                self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
            else:
                self._save_checkpoint(trainer, os.path.join(self.dirpath or "", f"stopped{self.FILE_EXTENSION}"))
        return self._last_checkpoint_saved

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Save where it is time, and after the last of ``max_steps``."""
        super().on_train_batch_end(trainer, *args, **kwargs)
        ends = trainer.global_step == trainer.max_steps
        if ends and self._every_n_train_steps and self._last_global_step_saved != trainer.global_step:
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of a run; among the best of a ``monitor`` only where nothing was saved at all."""
        is_saved = self._last_global_step_saved == trainer.global_step
        is_run = trainer.global_step and not trainer.fast_dev_run  # type: ignore[attr-defined]
        if is_run and self.save_top_k and not is_saved:
            candidates = self._monitor_candidates(trainer)
            if self.monitor is None:
                self._save_topk_checkpoint(trainer, candidates)
                self._save_last_checkpoint(trainer, candidates)
            elif not self._last_checkpoint_saved and not self.best_model_path:
                self._save_checkpoint(trainer, self.format_checkpoint_name(candidates))
        super().on_train_end(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """As Lightning has it, but not where the weights are those of no step of the optimizer."""
        if not self._should_save_on_exception(trainer):
            return
        if getattr(pl_module, "is_between_updates", False):
            log.warning("no checkpoint of this moment, between the updates of a rollout; the last one stands")
            return
        super().on_exception(trainer, pl_module, exception)

    def _format_checkpoint_name(self, filename: str | None, metrics: dict[str, Any], *args: Any, **kwargs: Any) -> str:
        """A metric's slash is no folder: ``val/accuracy`` is written ``val_accuracy``."""
        written = str(super()._format_checkpoint_name(filename, metrics, *args, **kwargs))
        for name in re.findall(r"{([^:}]*/[^:}]*)", filename or ""):
            written = written.replace(f"{name}{self.CHECKPOINT_EQUALS_CHAR}", f"{name.replace('/', '_')}=")
        return written

    def _should_remove_checkpoint(self, trainer: Trainer, previous: str, current: str) -> bool:
        """As Lightning has it, but also the one that this run went on from: resumed often, a run would fill a disk."""
        is_ours = self.dirpath is not None and Path(self.dirpath).absolute() in Path(previous).absolute().parents
        return is_ours and previous != current

    def _find_last_checkpoints(self, trainer: Trainer) -> set[str]:
        """The newest complete checkpoint; what Lightning takes ``last`` to be."""
        newest = newest_checkpoint(self.dirpath or os.path.join(trainer.default_root_dir, "checkpoints"))
        return {str(newest)} if newest is not None else set()
