"""Going on: limits, batches of another size, metrics that schedulers and callbacks look at, changed settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.cli import ReduceLROnPlateau

from orlaif.distributed.checkpoint_io import newest_checkpoint
from orlaif.training.callbacks import Checkpointing
from orlaif.training.resume import stated_settings, use_stated
from tests.training.test_resume_matrix import BATCHES, BrokenOffError, Lab, Watch, lab  # noqa: F401  (a fixture)
from tests.training.test_rlaif import weights

SFT: dict[str, Any] = {"stage": "sft", "data": "map", "accumulate": 1, "validate": None}


def same(one: Any, other: Any) -> bool:
    a, b = weights(one), weights(other)
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kind", ["map", "stream"])
@pytest.mark.parametrize(
    "limits",
    [
        {"limit_train_batches": 4},
        {"limit_train_batches": 4, "accumulate_grad_batches": 3},
        {"overfit_batches": 2},
        {"max_steps": 8, "max_epochs": -1},
        {"val_check_interval": 4, "check_val_every_n_epoch": None, "limit_val_batches": 1},
    ],
    ids=["limited", "limited-accumulated", "overfit", "steps", "across-epochs"],
)
def test_limits(lab: Lab, tmp_path: Path, kind: str, limits: dict[str, Any]) -> None:  # noqa: F811
    """Broken off within the second epoch, by a checkpoint in it and by that of its beginning."""
    if kind == "stream" and "overfit_batches" in limits:
        limits = {**limits, "limit_train_batches": 2}  # Lightning cannot take a share of what has no length
    case, whole = {**SFT, "data": kind}, Watch()
    expected = lab.run(case, whole, [], **limits)
    for every in (None, 1):
        folder = tmp_path / str(every)
        with pytest.raises(BrokenOffError):
            lab.run(case, Watch("epoch", (1, 1)), [Checkpointing(every, dirpath=str(folder))], **limits)
        rest = Watch()
        module = lab.run(case, rest, [], resume=newest_checkpoint(folder), **limits)
        assert rest.rows == whole.rows[-len(rest.rows) :]
        assert len(whole.rows) / 3 - 2 <= len(rest.rows) < len(whole.rows)
        assert same(expected, module)
        assert module.totals == expected.totals
        assert rest.marks.items() <= whole.marks.items()


def test_overfitting_takes_the_first_rows_in_every_epoch(lab: Lab) -> None:  # noqa: F811
    watch = Watch()
    lab.run(SFT, watch, [], overfit_batches=2)
    epochs = [[ids for epoch, _, _, ids in watch.rows if epoch == e] for e in range(3)]
    assert epochs[0] == epochs[1] == epochs[2] == [("train-00000", "train-00001"), ("train-00002", "train-00003")]


@pytest.mark.parametrize("kind", ["map", "stream"])
@pytest.mark.parametrize(("size", "left"), [(1, 8), (4, 2), (8, 1)])
def test_batches_of_another_size(lab: Lab, tmp_path: Path, kind: str, size: int, left: int) -> None:  # noqa: F811
    """Two batches of two rows, then the other eight rows of the epoch, each once, and whole epochs behind it."""
    case, whole = {**SFT, "data": kind}, Watch()
    lab.run(case, whole, [])
    with pytest.raises(BrokenOffError):
        lab.run(case, Watch("steps", (0, 2)), [Checkpointing(1, dirpath=str(tmp_path))])
    rest = Watch()
    lab.run(case, rest, [], resume=newest_checkpoint(tmp_path), batch_size=size)
    first = [ids for epoch, _, _, ids in rest.rows if epoch == 0]
    assert len(first) == left
    assert [i for ids in first for i in ids] == [i for epoch, _, _, ids in whole.rows for i in ids if epoch == 0][4:]
    assert len([1 for epoch, *_ in rest.rows if epoch == 1]) == 2 * BATCHES // size


def test_rows_that_would_be_left_out_are_refused(lab: Lab, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(BrokenOffError):
        lab.run(SFT, Watch("steps", (0, 2)), [Checkpointing(1, dirpath=str(tmp_path))])
    path = newest_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r"processes is 3, but 8 rows remain .*; resume with a divisor of 8"):
        lab.run(SFT, Watch(), [], resume=path, batch_size=3)
    with pytest.raises(ValueError, match=r"8 batches of 1 rows remain .*limited to 7 \(trainer.limit_train_batches\)"):
        lab.run(SFT, Watch(), [], resume=path, batch_size=1, limit_train_batches=7)


@pytest.mark.parametrize("way", ["epoch", "steps", "validation"])
def test_what_looks_at_metrics_sees_those_of_before(lab: Lab, tmp_path: Path, way: str) -> None:  # noqa: F811
    """A plateau's scheduler and early stopping: the same rates and the same end, wherever the run was broken off."""
    case = {**SFT, "validate": 1.0}
    make = lab.make

    def with_plateau(stage: str) -> Any:
        module = make(stage)
        module.lr_scheduler = lambda optimizer: ReduceLROnPlateau(optimizer, "val/accuracy", "max", 0.5, patience=0)
        return module

    lab.make = with_plateau  # type: ignore[method-assign]
    saves = {
        "epoch": {},
        "steps": {"every_n_train_steps": BATCHES},
        "validation": {"save_on_train_epoch_end": False},
    }[way]
    stopping = {"monitor": "val/accuracy", "mode": "max", "patience": 3}
    try:
        expected = lab.run(case, Watch(), [EarlyStopping(**stopping)], max_epochs=8, enable_checkpointing=False)
        whole = lab.last
        callbacks = [EarlyStopping(**stopping), Checkpointing(dirpath=str(tmp_path), **saves)]
        with pytest.raises(BrokenOffError):
            lab.run(case, Watch("epoch", (2, 1)), callbacks, max_epochs=8)
        path = newest_checkpoint(tmp_path)
        more = {"max_epochs": 8, "enable_checkpointing": False}
        module = lab.run(case, Watch(), [EarlyStopping(**stopping)], resume=path, **more)
    finally:
        lab.make = make  # type: ignore[method-assign]
    assert lab.last.optimizers[0].param_groups[0]["lr"] == whole.optimizers[0].param_groups[0]["lr"] < 0.01
    assert lab.last.current_epoch == whole.current_epoch
    assert same(expected, module)


@pytest.mark.parametrize("kind", [ModelCheckpoint, OnExceptionCheckpoint])
def test_lightnings_own_callbacks_write_what_can_be_gone_on_from(lab: Lab, tmp_path: Path, kind: Any) -> None:  # noqa: F811
    whole, rest, folder = Watch(), Watch(), str(tmp_path)
    expected = lab.run({**SFT, "accumulate": 4}, whole, [])
    callback = kind(folder, save_on_exception=True) if kind is ModelCheckpoint else kind(folder)
    with pytest.raises(BrokenOffError):
        lab.run({**SFT, "accumulate": 4}, Watch("exception", (1, 5)), [callback])
    module = lab.run({**SFT, "accumulate": 4}, rest, [], resume=newest_checkpoint(folder))
    assert rest.rows == whole.rows[-len(rest.rows) :]
    assert rest.rows[0][:2] == (1, 4)
    assert same(expected, module)


def test_a_run_shorter_than_its_interval_has_a_checkpoint(lab: Lab, tmp_path: Path) -> None:  # noqa: F811
    lab.run(SFT, Watch(), [Checkpointing(1000, dirpath=str(tmp_path / "a"))], max_epochs=1)
    assert [path.name for path in (tmp_path / "a").iterdir()] == [f"epoch=1-step={BATCHES}.ckpt"]
    best = {"monitor": "val/accuracy", "mode": "max", "every_n_train_steps": 1000}
    lab.run(SFT, Watch(), [Checkpointing(dirpath=str(tmp_path / "b"), **best)], max_epochs=1)
    assert len(list((tmp_path / "b").iterdir())) == 1


def test_a_metric_with_a_slash_makes_no_folder(lab: Lab, tmp_path: Path) -> None:  # noqa: F811
    best = {"monitor": "val/accuracy", "mode": "max", "filename": "{step}-{val/accuracy:.2f}-{epoch}"}
    lab.run({**SFT, "validate": 1.0}, Watch(), [Checkpointing(dirpath=str(tmp_path), **best)], max_epochs=1)
    (path,) = tmp_path.iterdir()
    assert path.name.startswith(f"step={BATCHES}-val_accuracy=0.")
    assert path.name.endswith("-epoch=0.ckpt")


def test_stated_settings_are_in_use() -> None:
    """Step 3 of 10 of a line from 1 to 0: at 0.7 of the rate, whichever is stated."""

    def made(rate: float, decay: float) -> tuple[Any, Any]:
        optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=rate, weight_decay=decay)
        line = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=10)
        return optimizer, line

    old, old_line = made(0.1, 0.01)
    before = stated_settings(old, old_line)
    for _ in range(3):
        old.step()
        old_line.step()
    new, new_line = made(0.5, 0.2)
    now = stated_settings(new, new_line)
    new.load_state_dict(old.state_dict())
    new_line.load_state_dict(old_line.state_dict())
    assert new.param_groups[0]["lr"] == pytest.approx(0.07)
    said = use_stated(now, before, new, new_line)
    assert said == ["lr: 0.1 -> 0.5", "weight_decay: 0.01 -> 0.2"]
    assert new.param_groups[0]["lr"] == pytest.approx(0.35)
    assert new.param_groups[0]["weight_decay"] == 0.2
    new.step()
    new_line.step()
    assert new.param_groups[0]["lr"] == pytest.approx(0.3)
    assert use_stated(now, now, new, new_line) == []


def test_weights_alone_cannot_be_gone_on_from(lab: Lab, tmp_path: Path) -> None:  # noqa: F811
    lab.run(SFT, Watch(), [Checkpointing(dirpath=str(tmp_path), save_weights_only=True)], max_epochs=1)
    with pytest.raises(ValueError, match="holds weights only"):
        lab.run(SFT, Watch(), [], resume=newest_checkpoint(tmp_path))
