"""SIGTERM, as schedulers send it to a job that they preempt, and Ctrl-C: a checkpoint, and the signal's exit status.

A run of several processes heeds a signal between two batches, where they can agree on it; it may reach only one. A run
of one does so within a step as well, as long as no weights have changed: a rollout may take longer than a scheduler
waits. A second Ctrl-C ends a run at once, without a checkpoint of that moment. Validation is broken off, and done again
by the run that goes on. ``orlaif test`` and ``predict``, which write what they have as they go, end at once.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.environments import LightningEnvironment

from orlaif.distributed.sync import exchange, process_index
from orlaif.training.callbacks.checkpointing import Checkpointing

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals(Callback):
    """Ends a run that is told to stop, with a checkpoint and exit status 143 (SIGTERM) or 130 (Ctrl-C).

    Every recipe has it; a Trainer that is made in Python is given it as a callback.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._at_once = False
        self._trainer: Trainer | None = None

    # Lightning sets handlers behind setup, which are replaced here, and puts the old ones back at the end.
    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen for signals: a lone process stops at once, several stop together at the first step."""
        self._listen(at_once=trainer.world_size == 1)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen for signals, which from here on end the run behind the step under way."""
        self._listen(at_once=False)
        self._trainer = trainer

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen, where this is no validation while training."""
        if trainer.state.fn == "validate":
            self._listen(at_once=True)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen for signals, which stop a test at once."""
        self._listen(at_once=True)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen for signals, which stop a prediction at once."""
        self._listen(at_once=True)

    def _listen(self, at_once: bool) -> None:
        self._at_once, self._received = at_once, None
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:  # as of a job in the background of a script
                    signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self._at_once:
            raise SystemExit(128 + number)
        if self._received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        is_first, self._received = self._received is None, number
        trainer = self._trainer
        if not is_first or trainer is None or trainer.world_size > 1 or not trainer.training:
            return
        if getattr(trainer.lightning_module, "is_interruptible", False):
            self._heed(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Stop here, if any process was told to."""
        self._heed(trainer)

    def on_validation_batch_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Stop here as well, where this is a validation while training."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._heed(trainer)

    def _heed(self, trainer: Trainer) -> None:
        received = [number for number in exchange(self._received) if number is not None]
        if not received:
            return
        number = max(received)
        path = _save(trainer)
        where = f"checkpoint {path}" if path else "without a checkpoint"
        log.warning("stopped by %s after %d steps: %s", signal.Signals(number).name, trainer.global_step, where)
        # Lightning's launcher kills the first process when it sees another one fail; that one tells the status.
        environment = trainer.strategy.cluster_environment if trainer.world_size > 1 else None  # type: ignore[attr-defined]
        launched = isinstance(environment, LightningEnvironment) and process_index() > 0
        raise SystemExit(0 if launched else 128 + number)


def _save(trainer: Trainer) -> str | None:
    """A checkpoint of this moment, by the recipe's callbacks; its path."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, Checkpointing):
            return callback.save_now(trainer)
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath and trainer.global_step:
            path = os.path.join(callback.dirpath, "stopped.ckpt")
            trainer.save_checkpoint(path)
            return path
    return None
