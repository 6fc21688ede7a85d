"""How far a run is, on a line (``orlaif.status_line``): steps, what is awaited, metrics, time to the end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, Timer

from orlaif.stages import forget
from orlaif.status_line import Head, StatusLine, duration
from orlaif.training.callbacks.pace import Pace, validations_ahead

#: Seconds between two looks at the metrics, which wait for a GPU.
_METRICS_EVERY_S = 1.0


def place(trainer: Trainer, batches: int) -> tuple[str, float | None]:
    """Where a training is, in words, and what share of it is done, if it has an end.

    Args:
        trainer: of the run.
        batches: done in this epoch.
    """
    step, max_steps, epochs = trainer.global_step, trainer.max_steps, trainer.max_epochs or -1
    in_epoch, epoch = trainer.num_training_batches, trainer.current_epoch
    shares = [step / max_steps] if max_steps > 0 else []
    if epochs > 0 and math.isfinite(in_epoch) and in_epoch:
        shares.append((epoch * in_epoch + batches) / (epochs * in_epoch))
    words = []
    if epochs > 1 or max_steps <= 0:
        words.append(f"epoch {epoch + 1}" + (f" of {epochs}" if epochs > 0 else ""))
    if max_steps > 0:
        words.append(f"step {min(step + 1, max_steps)} of {max_steps}")
    if max_steps <= 0 or trainer.accumulate_grad_batches > 1:
        words.append(f"batch {batches + 1}" + (f" of {int(in_epoch)}" if math.isfinite(in_epoch) else ""))
    return ", ".join(words), max(shares, default=None)


class Progress(ProgressBar):
    """The progress bar of ``orlaif fit | validate | test | predict``: one line, also while nothing moves.

    It says where the run is, what it waits for (``judge 12 of 32 groups, 4 of 9 s``: the seconds are those of the last
    time), the metrics that are logged with ``prog_bar``, and the time to the end. Where there is no terminal, it writes
    a line at most every 10 s, and none when nothing has changed. Another progress bar in ``trainer.callbacks`` takes
    its place.
    """

    #: Seconds.
    clock: Callable[[], float] = staticmethod(time.monotonic)

    def __init__(self) -> None:
        super().__init__()
        self._enabled, self._own = True, ExitStack()
        self._line: StatusLine | None = None
        self._before: Callable[[float], Head] | None = None
        self._clear()

    def _clear(self) -> None:
        #: Where the training is, what else goes on, that in fewer words, and what is awaited where no stage says so.
        self._text, self._doing, self._doing_brief, self._waits = "", "", "", ""
        self._pace, self._eval_pace = Pace(), Pace()
        self._metrics: list[tuple[str, str]] = []
        self._metrics_at = -math.inf
        self._began, self._has_trained = self.clock(), False

    # ------------------------------------------------------------------------------------------------- the line

    def disable(self) -> None:
        """Show nothing."""
        self._enabled = False
        self._let_go()

    def enable(self) -> None:
        """Show the line again."""
        self._enabled = True

    def head(self, now: float) -> Head:
        """What the line says of this moment."""
        trainer, timers = self.trainer, [c for c in self.trainer.callbacks if isinstance(c, Timer)]  # type: ignore[attr-defined]
        doing = "" if trainer.state.fn is None else trainer.state.fn.value
        training = doing == "fit"
        left = self._pace.left_s(now) if training else self._eval_pace.left_s(now)
        limits = [timer.time_remaining() for timer in timers] if training and self._text else []
        known = [one for one in (left, *limits) if one]  # a limit that is reached says nothing of what still comes
        text = ", ".join(part for part in (self._text, self._doing) if part)
        steps = [part for part in self._text.split(", ") if not part.startswith("epoch")]
        return Head(
            text=text or f"orlaif {doing}",
            metrics=self._metrics,
            left_s=min(known, default=None),
            brief=", ".join(part for part in (*steps, self._doing_brief) if part),
            waits=self._waits,
        )

    def _let_go(self) -> None:
        if self._line is not None and self._before is not None:
            self._line.head = self._before
        self._line = None
        self._own.close()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the line that is there, or a new one."""
        super().setup(trainer, pl_module, stage)
        if not self._enabled or self._line is not None:
            return
        self._clear()
        self._line = StatusLine.current or self._own.enter_context(StatusLine(clock=self.clock).running())
        self._waits = "setting up the run"
        self._before, self._line.head, self._line.speaks = self._line.head, self.head, True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Say how long it took, and let go of the line."""
        if self._line is not None and self._has_trained:
            took = f"{trainer.global_step} steps, {duration(self.clock() - self._began)} in this run"
            self._line.keep(Head(text=took, metrics=self._metrics))
        self._let_go()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let go of the line, and of the stages that were broken off."""
        self._let_go()
        forget()

    def _look_at_metrics(self, at_once: bool = False) -> None:
        now = self.clock()
        if not at_once and now - self._metrics_at < _METRICS_EVERY_S:
            return
        self._metrics_at = now
        known = self.get_metrics(self.trainer, self.trainer.lightning_module)
        shown = {name: value for name, value in known.items() if name != "v_num"}
        ordered = sorted(shown, key=lambda name: (not name.startswith("val/"), name != "val/win_rate"))
        self._metrics = [(_short(name), _written(shown[name])) for name in ordered]

    # ------------------------------------------------------------------------------------------------- training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first batch is awaited."""
        self._text = place(trainer, trainer.fit_loop.epoch_loop.batch_progress.current.completed)[0]
        self._does("", "first batch")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """A batch begins."""
        self._pace.trains(self.clock())
        self._text = place(trainer, batch_idx)[0]
        self._waits = "model"

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gradients are there, of this process."""
        self._waits = "gradients"

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Gradients are there, of all processes."""
        self._waits = "optimizer"

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A batch is done."""
        self._has_trained = True
        if (share := place(trainer, batch_idx + 1)[1]) is not None:
            self._pace.reached(share, self.clock(), validations_ahead(trainer, batch_idx + 1))
        self._look_at_metrics()
        self._waits = "next batch"

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What comes now is export and the last checkpoint."""
        self._look_at_metrics(at_once=True)
        self._does("ending")

    # ------------------------------------------------------------------------------------------------ evaluation

    def _does(self, doing: str, waits: str = "", brief: str | None = None) -> None:
        self._doing, self._doing_brief, self._waits = doing, doing if brief is None else brief, waits

    def _evaluate(self, number: int, of: float, waits: str) -> None:
        trainer = self.trainer
        what = {"validate": "validating", "test": "testing", "predict": "predicting"}.get(str(trainer.state.fn.value))  # type: ignore[union-attr]
        if trainer.state.fn == "fit":
            what = "trying validation" if trainer.sanity_checking else "validating"
        doing = f"{what} {number}" + (f" of {int(of)}" if math.isfinite(of) else "")
        self._does(doing, waits, what if of == 1 else doing)

    def _evaluated(self, batch_idx: int, of: float) -> None:
        if self.trainer.state.fn != "fit" and math.isfinite(of) and of:
            self._eval_pace.reached((batch_idx + 1) / of, self.clock())

    def _eval_batches(self) -> float:
        trainer = self.trainer
        if trainer.sanity_checking:
            counts: Any = trainer.num_sanity_val_batches
        elif trainer.state.fn == "test":
            counts = trainer.num_test_batches
        elif trainer.state.fn == "predict":
            counts = trainer.num_predict_batches
        else:
            counts = trainer.num_val_batches
        return float(sum(counts)) if isinstance(counts, list) else float(counts)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first batch is awaited."""
        if not trainer.sanity_checking:
            self._pace.validates(self.clock())
        self._evaluate(1, self._eval_batches(), "first batch")

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """A batch begins."""
        self._evaluate(batch_idx + 1, self._eval_batches(), "model")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """A batch is done."""
        self._evaluated(batch_idx, self._eval_batches())
        self._waits = "next batch" if batch_idx + 1 < self._eval_batches() else "results"

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show what it gave."""
        self._does("", "next batch" if trainer.state.fn == "fit" else "results")
        if not trainer.sanity_checking:
            self._look_at_metrics(at_once=True)

    on_test_start = on_predict_start = on_validation_start
    on_test_batch_start = on_predict_batch_start = on_validation_batch_start
    on_test_batch_end = on_predict_batch_end = on_validation_batch_end
    on_test_end = on_predict_end = on_validation_end


def _short(name: str) -> str:
    return name.removeprefix("train/").removeprefix("oracle/")


def _written(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, (int, float)) else str(value)
