"""A run that was broken off and went on is the run that was not, to the bit.

The matrix: how the checkpoint came to be written x stage x data x accumulation x validation x where the run was broken
off. Every pair of two values is tried; the whole of it is marked slow.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer

from orlaif import VideoDataModule
from orlaif.data.datasets import JsonlDataset, StreamingDataset
from orlaif.data.video import UniformSampling
from orlaif.demo.shapes import ShapesDataset
from orlaif.distributed.checkpoint_io import newest_checkpoint
from orlaif.training.callbacks import Checkpointing, StopSignals
from orlaif.training.rlaif import Reference
from tests.training.test_rlaif import rlaif, sft, trainer, weights

#: Batches of two rows in an epoch, and epochs.
BATCHES, EPOCHS = 6, 3
VALUES: dict[str, tuple[Any, ...]] = {
    "way": ("epoch", "steps", "monitor", "exception", "in_step", "sigterm", "sigterm_in_step", "sigint", "by_hand"),
    "stage": ("sft", "rlaif", "num_updates"),
    "data": ("map", "stream"),
    "accumulate": (1, 4),
    "validate": (None, 1.0, 3),
    "cut": ((1, 0), (1, 1), (1, 3), (2, 0), (2, 5)),
}


class BrokenOffError(Exception):
    """On purpose."""


@dataclass
class Watch(Callback):
    """Notes what a run is given and finds, and breaks it off.

    Args:
        way: how, as in the matrix; None never.
        cut: epoch and batch.
        folder: for a checkpoint by hand.
    """

    way: str | None = None
    cut: tuple[int, int] = (-1, -1)
    folder: str = ""

    def __post_init__(self) -> None:
        self.rows: list[tuple[int, int, int, tuple[str, ...]]] = []
        self.marks: dict[int, float] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        here = (trainer.current_epoch, batch_idx) == self.cut
        if here and self.way not in (None, "sigterm", "sigterm_in_step", "sigint", "in_step"):
            raise BrokenOffError
        ids = tuple(prompt.id for prompt in batch.batch.prompts)
        self.rows.append((trainer.current_epoch, batch_idx, trainer.global_step, ids))

    def on_after_backward(self, trainer: Trainer, pl_module: Any) -> None:
        here = (trainer.current_epoch, trainer.fit_loop.batch_idx) == self.cut
        if here and self.way == "in_step":
            raise BrokenOffError
        if here and self.way == "sigterm_in_step":
            os.kill(os.getpid(), signal.SIGTERM)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx + 1) == self.cut and self.way == "by_hand":
            trainer.save_checkpoint(os.path.join(self.folder, "by-hand.ckpt"))
        if (trainer.current_epoch, batch_idx) == self.cut and self.way in ("sigterm", "sigint"):
            os.kill(os.getpid(), signal.SIGTERM if self.way == "sigterm" else signal.SIGINT)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.marks[trainer.global_step] = float(trainer.callback_metrics["val/accuracy"])


@contextmanager
def heeding_ctrl_c() -> Iterator[None]:
    """As in a terminal: jobs in the background of a script have Ctrl-C ignored, and runs respect that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Lab:
    """Runs of one tiny model on twelve rows; those that nothing breaks off are kept."""

    def __init__(self, model: str, root: str, folder: Path) -> None:
        self.model, self.root, self.folder = model, root, folder
        self.path = ShapesDataset(root, "train", size=64).path
        self.whole: dict[Any, Any] = {}
        self.number = 0

    def make(self, stage: str) -> Any:
        if stage == "sft":
            return sft(self.model, eval_max_new_tokens=2)
        several = {"num_updates": 2, "reference": Reference(refresh="epoch")} if stage == "num_updates" else {}
        return rlaif(self.model, eval_max_new_tokens=2, **several)

    def data(self, kind: str, batch_size: int = 2) -> VideoDataModule:
        rows = JsonlDataset(self.path)
        rows.load()
        rows._prompts = rows.prompts[: 2 * BATCHES]
        train: Any = rows
        if kind == "stream":
            short = self.folder / "short.jsonl"
            short.write_text("".join(Path(self.path).read_text().splitlines(True)[: 2 * BATCHES]))
            train = StreamingDataset(JsonlDataset(str(short), os.path.dirname(self.path)), shuffle_buffer=5, seed=2)
        else:
            rows.load = lambda: None  # type: ignore[method-assign]
        val = ShapesDataset(self.root, "validation", size=10)
        return VideoDataModule(train, val, sampling=UniformSampling(2), batch_size=batch_size, seed=3, ahead=1)

    def run(self, case: dict[str, Any], watch: Watch, callbacks: Any, resume: Any = None, **more: Any) -> Any:
        module = self.make(case["stage"])
        settings: dict[str, Any] = {
            "max_epochs": EPOCHS,
            "accumulate_grad_batches": case["accumulate"],
            "callbacks": [watch, *callbacks],
            "limit_val_batches": 0 if case["validate"] is None else 1,
        }
        if case["validate"] is not None:
            settings["val_check_interval"] = case["validate"] if case["data"] == "map" or case["validate"] == 3 else 1.0
        if callbacks:
            settings["enable_checkpointing"] = True
        size = more.pop("batch_size", 2)
        self.last = trainer(self.folder, **{**settings, **more})
        self.last.fit(module, self.data(case["data"], size), ckpt_path=resume)
        return module

    def uninterrupted(self, case: dict[str, Any]) -> Any:
        key = tuple(case[name] for name in ("stage", "data", "accumulate", "validate"))
        if key not in self.whole:
            watch = Watch()
            module = self.run(case, watch, [])
            self.whole[key] = watch, weights(module), dict(module.totals)
        return self.whole[key]

    def check(self, case: dict[str, Any]) -> None:
        whole, expected, totals = self.uninterrupted(case)
        self.number += 1
        folder = self.folder / str(self.number)
        how: dict[str, Any] = {"dirpath": str(folder), "save_top_k": -1}
        if case["way"] == "steps":
            how["every_n_train_steps"] = 2
        elif case["way"] == "monitor":
            how |= {"monitor": "val/accuracy", "mode": "max", "filename": "{step}-{val/accuracy:.2f}"}
        elif case["way"] in ("exception", "in_step"):
            how |= {"save_on_exception": True, "every_n_train_steps": 1000}
        elif case["way"] in ("sigterm", "sigterm_in_step", "sigint", "by_hand"):
            how["every_n_train_steps"] = 1000
        watch = Watch(case["way"], case["cut"], str(folder))
        with heeding_ctrl_c(), pytest.raises((BrokenOffError, SystemExit)) as ended:
            self.run(case, watch, [Checkpointing(**how), StopSignals()])
        if isinstance(ended.value, SystemExit):
            assert ended.value.code == (130 if case["way"] == "sigint" else 143)
        path = newest_checkpoint(folder)
        assert path is not None
        rest = Watch()
        module = self.run(case, rest, [], resume=path)
        assert rest.rows == whole.rows[-len(rest.rows) :]
        assert len(rest.rows) < len(whole.rows)
        found = weights(module)
        assert all(torch.equal(found[name], weight) for name, weight in expected.items())
        assert module.totals == totals
        assert rest.marks.items() <= whole.marks.items()
        missed = {step for step in whole.marks if step > rest.rows[0][2]}
        assert missed <= rest.marks.keys()


def cases() -> list[dict[str, Any]]:
    """All of the matrix that makes sense."""
    everything = [dict(zip(VALUES, values, strict=True)) for values in itertools.product(*VALUES.values())]
    return [case for case in everything if is_possible(case)]


def is_possible(case: dict[str, Any]) -> bool:
    if case["way"] == "monitor" and case["validate"] is None:
        return False
    if case["way"] == "by_hand" and case["cut"][1] == 0:
        return False
    if case["way"] == "sigterm_in_step" and case["stage"] == "num_updates" and case["cut"] == (2, 5):
        return False  # heeded behind the updates, when the run is over
    if case["way"] == "in_step" and case["stage"] == "num_updates":
        return False  # between two updates, where nothing is saved
    return not (case["way"] in ("sigterm", "sigint") and case["cut"] == (2, 5))  # the run is over


def every_pair() -> list[dict[str, Any]]:
    """A part of the matrix that has each pair of values of two of its sides."""

    def pairs(case: dict[str, Any]) -> set[Any]:
        return set(itertools.combinations(case.items(), 2))

    left, chosen = set().union(*map(pairs, cases())), []
    while left:
        best = max(cases(), key=lambda case: len(pairs(case) & left))
        chosen.append(best)
        left -= pairs(best)
    return chosen


def name(case: dict[str, Any]) -> str:
    return "-".join(str(value).replace(" ", "") for value in case.values())


@pytest.fixture(scope="module")
def lab(tiny_model: str, data_root: str, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tiny_model, data_root, tmp_path_factory.mktemp("matrix"))


@pytest.mark.parametrize("case", every_pair(), ids=name)
def test_every_pair(case: dict[str, Any], lab: Lab) -> None:
    lab.check(case)


def test_nothing_is_saved_between_two_updates_of_a_rollout(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    """The weights are those of no step, so that no run could go on from them."""
    case = {"way": "in_step", "stage": "num_updates", "data": "map", "accumulate": 1, "validate": None}
    saves = Checkpointing(dirpath=str(lab.folder / "between"), save_on_exception=True, every_n_train_steps=1000)
    with pytest.raises(BrokenOffError), caplog.at_level("WARNING"):
        lab.run(case, Watch("in_step", (0, 3)), [saves])
    assert newest_checkpoint(lab.folder / "between") is None
    assert "between the updates of a rollout" in caplog.text
    with pytest.raises(RuntimeError, match="no checkpoint can be written between the updates"):
        lab.last.save_checkpoint(str(lab.folder / "between" / "by-hand.ckpt"))


@pytest.mark.slow
@pytest.mark.parametrize("case", cases(), ids=name)
def test_the_whole_matrix(case: dict[str, Any], lab: Lab) -> None:
    lab.check(case)
