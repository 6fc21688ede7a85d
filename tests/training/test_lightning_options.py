"""What a recipe may say of Lightning's Trainer and schedulers means what it means there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.cli import ReduceLROnPlateau

from tests.training.test_rlaif import data, rlaif, sft, trainer


class Seen(Callback):
    """Ids of every training batch, by epoch, and the learning rate after each epoch."""

    def __init__(self) -> None:
        self.ids: list[tuple[int, list[str]]] = []
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.ids.append((trainer.current_epoch, [prompt.id for prompt in batch.batch.prompts]))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_a_plateau_scheduler_steps_once_an_epoch_on_its_metric(tiny_model: str, data_root: str, tmp_path: Path) -> None:
    """A metric that never gets better: after one epoch of patience 0 the rate is halved, epoch for epoch."""
    seen = Seen()
    module = sft(
        tiny_model,
        eval_max_new_tokens=1,
        lr_scheduler=lambda o: ReduceLROnPlateau(o, "val/accuracy", mode="min", factor=0.5, patience=0, threshold=10.0),
    )
    settings: dict[str, Any] = {"limit_val_batches": 1, "limit_train_batches": 1, "max_epochs": 4}
    run = trainer(tmp_path, callbacks=[seen], **settings)
    run.fit(module, data(data_root, 4, eval_batch_size=2))
    assert seen.rates == [1e-2, 5e-3, 2.5e-3, 1.25e-3]
    (config,) = run.lr_scheduler_configs
    assert (config.monitor, config.interval, config.frequency) == ("val/accuracy", "epoch", 1)


def test_a_plateau_scheduler_waits_for_validations_that_are_rare(
    tiny_model: str, data_root: str, tmp_path: Path
) -> None:
    module = sft(tiny_model, eval_max_new_tokens=1, lr_scheduler=lambda o: ReduceLROnPlateau(o, "val/accuracy"))
    settings: dict[str, Any] = {"limit_val_batches": 1, "limit_train_batches": 1, "max_epochs": 4}
    run = trainer(tmp_path, check_val_every_n_epoch=2, **settings)
    run.fit(module, data(data_root, 4, eval_batch_size=2))
    assert run.lr_scheduler_configs[0].frequency == 2
    assert run.global_step == 4


@pytest.mark.parametrize(
    ("scheduler", "settings", "message"),
    [
        (torch.optim.lr_scheduler.ReduceLROnPlateau, {}, r"lr_scheduler is torch's ReduceLROnPlateau, which does not"),
        (
            lambda o: ReduceLROnPlateau(o, "val/accuracy"),
            {},
            r"monitor is 'val/accuracy', but trainer.limit_val_batches",
        ),
        (
            lambda o: ReduceLROnPlateau(o, "val/accuracy"),
            {"limit_val_batches": 1.0},
            r"monitor is 'val/accuracy', but nothing is validated: data.val is missing",
        ),
    ],
)
def test_a_plateau_scheduler_that_would_never_step_is_refused(
    scheduler: Any, settings: dict[str, Any], message: str, tiny_model: str, data_root: str, tmp_path: Path
) -> None:
    source = data(data_root, 4)
    source.datasets["val"] = None
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, max_steps=1, **settings).fit(sft(tiny_model, lr_scheduler=scheduler), source)


def test_a_plateau_scheduler_may_watch_training(tiny_model: str, data_root: str, tmp_path: Path) -> None:
    module = sft(tiny_model, lr_scheduler=lambda o: ReduceLROnPlateau(o, "train/loss"))
    run = trainer(tmp_path, max_epochs=2, limit_train_batches=1)
    run.fit(module, data(data_root, 4))
    assert run.global_step == 2


@pytest.mark.parametrize("make", [sft, rlaif], ids=["sft", "rlaif"])
def test_a_fast_dev_run_goes_through_everything_once(
    make: Any, tiny_model: str, data_root: str, tmp_path: Path
) -> None:
    seen = Seen()
    run = trainer(tmp_path, callbacks=[seen], fast_dev_run=True, limit_val_batches=None)
    module, source = make(tiny_model, eval_max_new_tokens=1), data(data_root, 4)
    run.fit(module, source)
    assert (len(seen.ids), run.global_step) == (1, 1)
    assert "val/accuracy" in run.callback_metrics
    run.test(module, source, verbose=False)
    assert "test/accuracy" in run.callback_metrics


@pytest.mark.parametrize("make", [sft, rlaif], ids=["sft", "rlaif"])
def test_overfit_batches_are_the_same_in_every_epoch(
    make: Any, tiny_model: str, data_root: str, tmp_path: Path
) -> None:
    seen = Seen()
    run = trainer(tmp_path, callbacks=[seen], overfit_batches=2, max_epochs=3, limit_val_batches=None)
    run.fit(make(tiny_model, eval_max_new_tokens=1), data(data_root, 4))
    epochs = [[ids for epoch, ids in seen.ids if epoch == n] for n in range(3)]
    assert epochs[0] == epochs[1] == epochs[2]
    assert [len(epoch) for epoch in epochs] == [2, 2, 2]
    assert "val/accuracy" in run.callback_metrics


def test_settings_that_an_optimizer_refuses_are_named(tiny_model: str) -> None:
    module = sft(tiny_model)
    module.optimizer = lambda parameters: torch.optim.AdamW(parameters, lr=-1.0)
    module.configure_model()
    with pytest.raises(ValueError, match=r"model.optimizer refuses its settings: Invalid learning rate: -1.0"):
        module.configure_optimizers()
