"""The Hugging Face export at the end of training."""

from __future__ import annotations

import logging
import os
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging

from orlaif.distributed.sync import raise_together
from orlaif.policy.export import check_export

log = logging.getLogger(__name__)


class ExportHuggingFace(Callback):
    """At the end of training, write the policy (or the ranker) for the rest of the ecosystem.

    It comes behind all other callbacks, wherever the recipe lists it: averaged weights (``WeightAveraging``) are in
    place then, and the last checkpoint is written, from which a lost export can be made again (``orlaif export``, or
    ``fit --ckpt_path last``). A ``fast_dev_run`` exports nothing.

    Args:
        dirpath: folder; by default ``<run_dir>/export``. An earlier export there is replaced as a whole.
        merge: with LoRA, a whole model with the adapter merged into it, instead of an adapter.

    Raises:
        ValueError: before training, a folder that holds something else than an export, or what the run starts from.
    """

    def __init__(self, dirpath: str | None = None, merge: bool = False) -> None:
        self.dirpath, self.merge = dirpath, merge
        self._written = False

    def _folder(self, trainer: Trainer) -> str:
        return self.dirpath or os.path.join(trainer.default_root_dir, "export")

    def _check(self, trainer: Trainer, pl_module: Any) -> None:
        """On all processes, whether process 0 could write."""
        error: Exception | None = None
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            try:
                check_export(pl_module.policy, self._folder(trainer), self.merge)
            except (ValueError, OSError) as wrong:
                error = wrong
        raise_together(error)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look at the folder before anything is loaded."""
        if stage == "fit":
            self._check(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go behind all other callbacks, and see whether what is about to be trained can be written."""
        self._written = False
        others = [callback for callback in trainer.callbacks if callback is not self]  # type: ignore[attr-defined]
        trainer.callbacks = [*others, self]  # type: ignore[attr-defined]  # another list: this one is being gone through
        self._check(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export; where weights are sharded all processes take part, and process 0 writes."""
        self._written = True
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        policy = getattr(pl_module, "policy", None)
        if trainer.is_global_zero or getattr(policy, "is_sharded", False):
            pl_module.export(self._folder(trainer), merge=self.merge)  # type: ignore[operator]
            log.info("exported to %s", self._folder(trainer))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export a run that had ended before it was resumed: for it the end of training does not come again."""
        if self._written or not trainer.ckpt_path or not trainer.fit_loop.done:
            return
        pl_module.to(trainer.strategy.root_device)  # from where Lightning has put it by now
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, WeightAveraging):
                callback.on_train_end(trainer, pl_module)
        self.on_train_end(trainer, pl_module)
