"""How Lightning is to step a recipe's learning-rate scheduler."""

from __future__ import annotations

from typing import Any

from lightning import Trainer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from orlaif.types import AsksQuestions


def scheduled(scheduler: LRScheduler, trainer: Trainer) -> dict[str, Any]:
    """Lightning's settings for a scheduler: once per step of the optimizer, or as :func:`plateau` says.

    Raises:
        ValueError: it watches a metric which the recipe does not name, or which no validation gives.
    """
    if isinstance(scheduler, ReduceLROnPlateau):
        return plateau(scheduler, trainer)
    return {"scheduler": scheduler, "interval": "step"}


def plateau(scheduler: ReduceLROnPlateau, trainer: Trainer) -> dict[str, Any]:
    """How Lightning is to step a plateau's scheduler: once an epoch, as LightningCLI does, when its metric is there.

    Args:
        scheduler: of ``lightning.pytorch.cli``, which knows what it watches.
        trainer: of the run.

    Raises:
        ValueError: it does not know, or watches what no validation will give.
    """
    monitor = getattr(scheduler, "monitor", None)
    if monitor is None:
        raise ValueError(
            "lr_scheduler is torch's ReduceLROnPlateau, which does not say what it watches; "
            "use lightning.pytorch.cli.ReduceLROnPlateau with monitor, such as val/accuracy"
        )
    if not monitor.startswith("val/"):
        return {"scheduler": scheduler, "monitor": monitor}
    data = getattr(trainer, "datamodule", None)
    if not trainer.limit_val_batches:
        raise ValueError(
            f"lr_scheduler.monitor is {monitor!r}, but trainer.limit_val_batches is 0; watch train/ metrics"
        )
    if isinstance(data, AsksQuestions):
        try:
            data.questions("val")
        except ValueError as error:
            raise ValueError(f"lr_scheduler.monitor is {monitor!r}, but nothing is validated: {error}") from None
    return {"scheduler": scheduler, "monitor": monitor, "frequency": trainer.check_val_every_n_epoch or 1}
