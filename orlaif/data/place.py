"""Where a run stands in its data, and how Lightning's loops are put back there.

What a checkpoint holds (weights, optimizer, schedulers) is as it was behind the last step of the optimizer. The
place is therefore that of the last step as well, however the checkpoint came to be written: within a window of
accumulated batches, by an exception, behind a validation or an epoch. A run that goes on takes the batches behind it
again, and so loses no gradient. Lightning counts what its loops have begun, which is another thing at each of these
moments; its counters are written here, not read, but for the number of steps and the epoch.

Written for Lightning 2.6 (``loops/fit_loop.py``, ``loops/training_epoch_loop.py``).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loops.evaluation_loop import RestartStage as EvaluationStage
from lightning.pytorch.loops.training_epoch_loop import RestartStage as EpochStage


@dataclass(frozen=True, kw_only=True)
class Place:
    """Behind a step of the optimizer.

    Args:
        epoch: of the next batch.
        batches: of this epoch before it.
        samples: rows of this epoch before it, of all processes.
        batch_size: rows of all processes in a batch.
        epoch_samples: rows that this epoch uses in all; None: as many as the stream has.
        is_last: these were all batches of the epoch, whose end is still to come.
        total_batches: of all epochs.
        steps: of the optimizer.
        validated: the validation that is due here has been.
        plateau_due: schedulers that look at a metric have not seen the epoch before.
        metrics: what callbacks and schedulers may look at, by name.
    """

    epoch: int = 0
    batches: int = 0
    samples: int = 0
    batch_size: int = 1
    epoch_samples: int | None = None
    is_last: bool = False
    total_batches: int = 0
    steps: int = 0
    validated: bool = False
    plateau_due: bool = False
    metrics: dict[str, float] = field(default_factory=dict)

    def on_batches_of(self, batch_size: int) -> Place:
        """The same place where batches have another number of rows.

        Args:
            batch_size: rows in a batch of all processes.

        Raises:
            ValueError: the rows that remain of the epoch are not a whole number of batches.
        """
        if batch_size == self.batch_size or not self.batches:
            return self
        if self.epoch_samples is not None and (rest := self.epoch_samples - self.samples) % batch_size:
            raise ValueError(
                f"data.batch_size x processes is {batch_size}, but {rest} rows remain of the epoch that the checkpoint "
                f"was written in, by batches of {self.batch_size}, and some would be left out; resume with a divisor "
                f"of {rest}"
            )
        return Place(**{**asdict(self), "batch_size": batch_size, "batches": self.samples // batch_size})


class PlaceKeeper(Callback):
    """Follows a run, and takes Lightning's loops to where a checkpoint was; the DataModule makes one.

    Args:
        batch_size: rows of all processes in a batch.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.place = Place(batch_size=batch_size)
        self._open = 0  # batches behind the place
        self._validated: tuple[int, int] | None = None
        self._going_on = self._resized = False

    # ------------------------------------------------------------- following

    def opened(self, trainer: Trainer) -> bool:
        """A batch is about to be trained on; whether it is the first since the last step."""
        self.settle(trainer)
        if trainer.current_epoch != self.place.epoch:
            self._set(epoch=trainer.current_epoch, batches=0, samples=0, is_last=False, batch_size=self.batch_size)
            self._open = 0
        if not self.place.samples:
            number = trainer.num_training_batches
            self._set(epoch_samples=None if number == float("inf") else int(number) * self.batch_size)
        self._open += 1
        return self._open == 1

    @property
    def is_within_step(self) -> bool:
        """Whether batches have been opened since the last step that was noticed."""
        return self._open > 0

    def settle(self, trainer: Trainer) -> bool:
        """Notice a step of the optimizer; whether there was one."""
        if trainer.global_step == self.place.steps:
            return False
        done, self._open = self._open, 0
        self._set(
            steps=trainer.global_step,
            batches=self.place.batches + done,
            samples=self.place.samples + done * self.batch_size,
            total_batches=self.place.total_batches + done,
        )
        return True

    def _set(self, **changes: Any) -> None:
        self.place = Place(**{**asdict(self.place), **changes})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember at which place of the training data the validation took place."""
        if not trainer.sanity_checking:
            self.settle(trainer)
            self._validated = self.place.epoch, self.place.batches + self._open

    def now(self, trainer: Trainer) -> Place:
        """The place of a checkpoint that is written at this moment."""
        self.settle(trainer)
        place, fit = self.place, trainer.fit_loop
        progress = fit.epoch_loop.batch_progress
        is_last = (
            not self._open
            and place.batches > 0
            and (place.is_last or progress.is_last_batch or place.batches >= fit.max_batches)
        )
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        values = {**asdict(place), "is_last": is_last, "metrics": metrics}
        values["validated"] = self._open > 0 or self._validated == (place.epoch, place.batches)
        epochs: Any = fit.epoch_progress.current
        if is_last and epochs.processed > place.epoch:  # the epoch is over, but for what looks at its metrics
            due = epochs.completed <= place.epoch
            values |= {"epoch": place.epoch + 1, "batches": 0, "samples": 0, "is_last": False, "plateau_due": due}
        return Place(**values)

    # -------------------------------------------------------------- going on

    def go_on(self, trainer: Trainer, place: Place) -> None:
        """Put the loops there, once Lightning has restored its idea of it and before it asks for data."""
        self._resized = place.batches > 0 and place.batch_size != self.batch_size
        place = place.on_batches_of(self.batch_size)
        self.place, self._going_on, self._open = place, True, 0
        self._validated = (place.epoch, place.batches) if place.validated else None
        fit = trainer.fit_loop
        loop, within = fit.epoch_loop, place.batches > 0
        for epochs in (fit.epoch_progress.total, fit.epoch_progress.current):
            _count(epochs, place.epoch, begun=place.epoch + within)
        _count(loop.batch_progress.total, place.total_batches)
        _count(loop.batch_progress.current, place.batches)
        loop.batch_progress.is_last_batch = place.is_last
        steps = loop.automatic_optimization.optim_progress.optimizer.step
        steps.total.ready = steps.total.completed = place.steps
        steps.current.ready = steps.current.completed
        loop.val_loop.batch_progress.reset()
        loop.val_loop._has_run = False
        fit.restarting = True  # or not, between two epochs: Lightning's setter decides, by the numbers above

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The rest, for which the loops must know how many batches an epoch has.

        Raises:
            ValueError: an epoch has fewer batches of the present size than the rows that remain of this one make.
        """
        if not self._going_on:
            return
        self._going_on = False
        fit, loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
        known = {name: torch.tensor(value) for name, value in self.place.metrics.items()}
        trainer._logger_connector._callback_metrics.update(known)
        if self._resized:
            self._align(trainer)
        place = self.place
        if not place.batches:
            loop.restarting = False
            loop._batches_that_stepped = place.steps
            if place.plateau_due:
                _step_plateaus(trainer, place.epoch)
        else:
            assert fit._data_fetcher is not None
            checks = loop._should_check_val_fx(fit._data_fetcher)
            if checks and not place.validated:
                loop.val_loop._restart_stage = EvaluationStage.RESTARTED_MID_EVALUATION
            loop._restart_stage = EpochStage.RESTARTED_ON_LAST
            # Before its next batch the loop passes the end of the one before again, and counts a step.
            loop._batches_that_stepped = place.steps - int(checks and not loop._should_accumulate())
        fit._restarting = False  # else schedulers that look at metrics would miss the end of this epoch

    def _align(self, trainer: Trainer) -> None:
        """Count batches of another size from the end of the epoch, where it is known."""
        place, number = self.place, trainer.num_training_batches
        if place.epoch_samples is None or number == float("inf"):
            return
        rest = (place.epoch_samples - place.samples) // self.batch_size
        if rest > number:
            raise ValueError(
                f"{rest} batches of {self.batch_size} rows remain of the checkpoint's epoch, but an epoch is now "
                f"limited to {number} (trainer.limit_train_batches); resume with the batch size of then"
            )
        self._set(batches=int(number) - rest)
        _count(trainer.fit_loop.epoch_loop.batch_progress.current, self.place.batches)


def _count(tracker: Any, done: int, begun: int | None = None) -> None:
    """Have one of Lightning's counters say that so many are done, and so many begun."""
    tracker.ready = tracker.started = done if begun is None else begun
    tracker.processed = tracker.completed = done


def _step_plateaus(trainer: Trainer, epoch: int) -> None:
    """Schedulers that look at a metric at the end of an epoch, which the checkpoint was written before."""
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau and config.interval == "epoch" and epoch % config.frequency == 0:
            value = trainer.callback_metrics.get(config.monitor or "")
            if value is not None:
                trainer.lightning_module.lr_scheduler_step(config.scheduler, value)
