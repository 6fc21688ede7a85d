"""The time to the end of a run, from how far it was when and from how long its validations take."""

from __future__ import annotations

import math

from lightning import Trainer


class Pace:
    """The time to the end, from how far the whole was when.

    The first part of a run, which compiles and warms up, is left out, and so is what was done before it went on. What
    lies between the ends of two parts counts with the second, such as a checkpoint; a validation counts by itself.
    """

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None
        self._share, self._part, self._parts_s = 0.0, 0.0, 0.0  # what is done, the last part of it, since the first
        self._changed = 0.0  # when what is under way began
        self._ahead, self._validation_s, self._apart_s = 0, 0.0, 0.0
        self._validating = self._has_validated = False

    def reached(self, share: float, now: float, validations_ahead: int = 0) -> None:
        """A part is done, and ``share`` of the whole with it; so many validations come from here to the end."""
        if self._first is None:
            self._first, self._apart_s = (share, now), 0.0
        self._part, self._share = share - self._share, share
        self._parts_s = now - self._first[1] - self._apart_s
        self._changed, self._ahead = now, validations_ahead

    def validates(self, now: float) -> None:
        """A validation begins. One that was not announced counts with the part that comes."""
        if self._ahead:
            self._changed, self._validating = now, True

    def trains(self, now: float) -> None:
        """A part begins; a validation before it is at its end."""
        if self._validating:
            self._validation_s = now - self._changed
            self._apart_s += self._validation_s
            self._ahead -= 1
            self._changed, self._validating, self._has_validated = now, False, True

    def left_s(self, now: float) -> float | None:
        """Seconds to the end, above 0; None where it is not known: before the second part, before the end of the first
        of the validations, and where nothing is left that has a pace."""
        if self._first is None or self._share <= self._first[0] or (self._ahead and not self._has_validated):
            return None
        per_share = self._parts_s / (self._share - self._first[0])
        left = (1 - self._share) * per_share + self._ahead * self._validation_s
        # What takes longer than expected uses up its own time, not that of what comes behind it.
        left -= min(now - self._changed, self._validation_s if self._validating else self._part * per_share)
        return left if left > 1e-6 else None


def validations_ahead(trainer: Trainer, batches: int) -> int:
    """How many validations come in a training from here to its end, one that is due now among them.

    Args:
        trainer: of the run.
        batches: done in this epoch, at the end of the last one of them.

    Returns:
        Their number; 0 as well where it is not known, as of a run without end or with ``val_check_interval`` as a time.
    """
    every, of_epochs = trainer.val_check_batch, trainer.check_val_every_n_epoch
    in_epoch, epochs = trainer.num_training_batches, trainer.max_epochs or -1
    accumulated = trainer.accumulate_grad_batches
    if not trainer.enable_validation or not every or not math.isfinite(every):
        return 0
    left: list[float] = []
    if trainer.max_steps > 0:
        left.append((trainer.max_steps - trainer.global_step) * accumulated - batches % accumulated)
    if epochs > 0 and math.isfinite(in_epoch):
        left.append((epochs - trainer.current_epoch) * in_epoch - batches)
    if not left or (not math.isfinite(in_epoch) and of_epochs is not None):
        return 0

    def until(batch: float) -> int:
        if of_epochs is None:
            return int(batch // every)
        epoch, rest = divmod(batch, in_epoch)
        in_this = rest // every if (epoch + 1) % of_epochs == 0 else 0
        return int(epoch // of_epochs * (in_epoch // every) + in_this)

    so_far = trainer.current_epoch * in_epoch + batches if of_epochs else trainer.fit_loop.total_batch_idx + 1
    return until(so_far + max(0, min(left))) - until(so_far - 1)
