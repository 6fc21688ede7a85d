"""The progress bar: where a run is, what it waits for, and when it ends, by a clock that is set."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning import Callback
from lightning.pytorch.callbacks import TQDMProgressBar

from orlaif.cli.recipe import OrlaifCLI
from orlaif.oracles import ScoreOracle
from orlaif.status_line import CLEAR, StatusLine
from orlaif.training.callbacks import Progress
from orlaif.training.callbacks.pace import Pace, validations_ahead
from orlaif.training.callbacks.progress import place
from tests.cli.test_cli import small
from tests.training.test_rlaif import data, rlaif, sft, trainer


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def rows(self) -> list[str]:
        return [one.strip("\r") for one in self.getvalue().split(CLEAR) if one]


def test_the_time_to_the_end_leaves_out_the_first_part_and_what_was_done_before() -> None:
    pace = Pace()
    assert pace.left_s(5.0) is None
    pace.reached(0.5, 30.0)  # of a run that went on at 0.4: 30 s of loading and compiling
    assert pace.left_s(31.0) is None
    pace.reached(0.6, 40.0)
    assert pace.left_s(40.0) == pytest.approx(40.0)
    assert pace.left_s(44.0) == pytest.approx(36.0)
    assert pace.left_s(100.0) == pytest.approx(30.0)  # this part is late; what comes behind it is not done for that
    pace.reached(1.0, 110.0)
    assert pace.left_s(110.0) is None


def test_the_time_to_the_end_has_a_validation_every_4_of_20_steps() -> None:
    """A step takes 1 s, a validation 6 s, and 2 s of them lie behind its last batch: 50 s together."""
    pace, now = Pace(), 0.0
    seen: list[float | None] = []
    for step in range(1, 21):
        pace.trains(now)
        now += 1.0
        pace.reached(step / 20, now, 5 - (step - 1) // 4)
        seen.append(pace.left_s(now))
        if step % 4 == 0:
            pace.validates(now)
            assert step == 4 or pace.left_s(now + 2.0) == pytest.approx(50 - now - 2)
            assert step != 20 or pace.left_s(now + 9.0) is None  # nothing is said of what takes longer than expected
            now += 6.0
    assert seen[:4] == [None] * 4
    ends = [step + 6 * ((step - 1) // 4) for step in range(5, 21)]
    assert seen[4:] == pytest.approx([50 - end for end in ends])


@pytest.mark.parametrize(
    ("settings", "number"),
    [
        ({"max_steps": 20, "check_val_every_n_epoch": None, "val_check_batch": 4}, 5),  # this one too
        ({"max_steps": 20, "check_val_every_n_epoch": None, "val_check_batch": 4, "accumulate_grad_batches": 2}, 9),
        ({"max_steps": 20, "check_val_every_n_epoch": None, "val_check_batch": 100}, 0),
        ({"max_epochs": 3}, 3),
        ({"max_epochs": 3, "val_check_batch": 2}, 11),
        ({"max_epochs": 5, "check_val_every_n_epoch": 2}, 2),
        ({"max_epochs": 5, "check_val_every_n_epoch": 2, "current_epoch": 1}, 2),
        ({"max_epochs": 5, "max_steps": 10}, 1),
        ({"max_steps": 7}, 0),
        ({}, 0),  # a run without an end
        ({"max_epochs": 3, "enable_validation": False}, 0),
        ({"max_steps": 9, "num_training_batches": float("inf"), "val_check_batch": float("inf")}, 0),
        ({"max_steps": 9, "val_check_batch": None}, 0),
    ],
)
def test_how_many_validations_come(settings: dict[str, Any], number: int) -> None:
    """Four batches of this epoch's eight are done, and as many steps."""
    run = {"global_step": 4, "max_steps": -1, "max_epochs": -1, "current_epoch": 0, "num_training_batches": 8}
    run |= {"accumulate_grad_batches": 1, "enable_validation": True, "check_val_every_n_epoch": 1, "val_check_batch": 8}
    run |= {"fit_loop": SimpleNamespace(total_batch_idx=3), **settings}
    assert validations_ahead(SimpleNamespace(**run), 4) == number  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "words", "share"),
    [
        ({"max_steps": 100}, "step 4 of 100", 0.03),
        ({"max_steps": 100, "max_epochs": 1, "num_training_batches": 6}, "step 4 of 100", 0.5),
        ({"max_steps": 10, "max_epochs": 2, "num_training_batches": 30}, "epoch 1 of 2, step 4 of 10", 0.3),
        ({"max_epochs": 2, "num_training_batches": 6, "current_epoch": 1}, "epoch 2 of 2, batch 4 of 6", 0.75),
        ({"max_steps": 10, "accumulate_grad_batches": 4}, "step 4 of 10, batch 4 of 8", 0.3),
        ({}, "epoch 1, batch 4 of 8", None),  # an unlimited number of epochs
        ({"num_training_batches": float("inf")}, "epoch 1, batch 4", None),
        ({"max_steps": 3}, "step 3 of 3", 1.0),
    ],
)
def test_where_a_training_is(settings: dict[str, Any], words: str, share: float | None) -> None:
    """Three steps are done, each of a batch."""
    run = {"global_step": 3, "max_steps": -1, "max_epochs": -1, "current_epoch": 0, "num_training_batches": 8}
    run |= {"accumulate_grad_batches": 1, **settings}
    assert place(SimpleNamespace(**run), 3) == (words, share)  # type: ignore[arg-type]


class Ticks(Callback):
    """Each batch takes 10 s; looks at the line at the beginning of each."""

    def __init__(self, line: StatusLine, now: list[float]) -> None:
        self.line, self.now, self.seen = line, now, list[tuple[str, float | None]]()

    def on_train_batch_end(self, *args: Any) -> None:
        self.now[0] += 10.0

    def on_validation_batch_end(self, *args: Any) -> None:
        self.now[0] += 50.0

    def on_train_batch_start(self, *args: Any) -> None:
        head = self.line.head(self.now[0])
        self.seen.append((head.text, head.left_s))


def go(tmp_path: Path, module: Any, root: str, ckpt: Path | None = None, **settings: Any) -> tuple[Any, list[Any]]:
    now = [0.0]
    line = StatusLine(io.StringIO(), clock=lambda: now[0])
    bar, ticks = Progress(), Ticks(line, now)
    bar.clock = line.clock
    run = trainer(tmp_path, enable_progress_bar=True, callbacks=[ticks, bar], **settings)
    with line.running():
        run.fit(module, data(root, 8), ckpt_path=ckpt, weights_only=False)
    seen = [(text, left and round(left, 6)) for text, left in ticks.seen]
    return run, [(seen[0][0], seen[0][1]), *seen[1:]]


def test_the_time_to_the_end_of_steps_of_epochs_and_of_a_run_that_goes_on(
    tmp_path: Path, tiny_model: str, data_root: str
) -> None:
    run, seen = go(tmp_path, sft(tiny_model), data_root, max_steps=3)
    # Progress comes behind this look, so that a step's own text is there at the next.
    assert [left for _, left in seen] == [None, None, 10.0]
    assert seen[0][0] == "step 1 of 3"
    run.save_checkpoint(tmp_path / "three.ckpt")

    _, seen = go(tmp_path, sft(tiny_model), data_root, tmp_path / "three.ckpt", max_steps=7)
    assert [left for _, left in seen] == [None, None, 20.0, 10.0]
    assert seen[0][0] == "step 4 of 7"

    _, seen = go(tmp_path, sft(tiny_model), data_root, max_epochs=2, limit_train_batches=2)
    assert [left for _, left in seen] == [None, None, 20.0, 10.0]


def test_the_time_to_the_end_of_a_run_that_validates(tmp_path: Path, tiny_model: str, data_root: str) -> None:
    every = {"limit_val_batches": 1, "val_check_interval": 2, "check_val_every_n_epoch": None}
    _, seen = go(tmp_path, sft(tiny_model), data_root, max_steps=6, **every)
    # A look at the beginning of step 3, before Progress knows that the first validation is over.
    assert [left for _, left in seen] == [None, None, None, 130.0, 70.0, 60.0]


def test_what_is_awaited_has_a_name_where_no_stage_says_it() -> None:
    bar, no = Progress(), SimpleNamespace()
    run = {"global_step": 3, "max_steps": 9, "max_epochs": 4, "current_epoch": 0, "num_training_batches": 8}
    state = SimpleNamespace(fn=SimpleNamespace(value="fit"))
    loop = SimpleNamespace(
        epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(completed=3)))
    )
    run |= {"accumulate_grad_batches": 1, "callbacks": [], "state": state, "fit_loop": loop}
    bar._trainer = trainer = SimpleNamespace(**run)  # type: ignore[assignment]
    said = []
    for hook, further in (
        (bar.on_train_start, ()),
        (bar.on_train_batch_start, (None, 3)),
        (bar.on_after_backward, ()),
        (bar.on_before_optimizer_step, (None,)),
    ):
        hook(trainer, no, *further)  # type: ignore[operator]
        head = bar.head(0.0)
        assert (head.text, head.brief) == ("epoch 1 of 4, step 4 of 9", "step 4 of 9")
        said.append(head.waits)
    assert said == ["first batch", "model", "gradients", "optimizer"]


def test_a_slow_judge_shows_how_many_groups_it_has_ranked(tmp_path: Path, tiny_model: str, data_root: str) -> None:
    """The judge has the line drawn itself: rows are those of 80 columns, whatever the machine is busy with."""
    terminal = Terminal()
    line = StatusLine(terminal, "orlaif fit", columns=80)

    def slow(group: Any) -> list[float]:
        line.draw()
        return [float(len(answer)) for answer in group.answers]

    bar = Progress()
    oracle = ScoreOracle(slow)
    run = trainer(tmp_path, enable_progress_bar=True, callbacks=[bar], max_steps=2, limit_val_batches=1)
    module = rlaif(tiny_model, oracle=oracle, order_consistency_every_n_steps=0)
    with line.running():
        run.fit(module, data(data_root, 3, eval_batch_size=4))
    rows = terminal.rows()
    for step in (1, 2):
        for done in range(3):
            assert any(row.startswith(f"step {step} of 2 | judge {done} of 3 groups") for row in rows), rows
    assert max(map(len, rows)) <= 79
    assert any(row.startswith("orlaif: 2 steps, ") and "mean_score" in row for row in rows)
    assert StatusLine.current is None


@pytest.mark.parametrize(
    ("extra", "kind"),
    [
        (["--trainer.enable_progress_bar=true"], Progress),
        (["--trainer.enable_progress_bar=null"], Progress),
        (["--trainer.enable_progress_bar=true", "--trainer.callbacks+=TQDMProgressBar"], TQDMProgressBar),
        ([], None),  # enable_progress_bar: false
    ],
)
def test_the_command_line_has_it_unless_the_recipe_has_another(
    tmp_path: Path, tiny_model: str, data_root: str, extra: list[str], kind: type | None
) -> None:
    line = StatusLine(Terminal(), "orlaif fit")
    words = small("demo_rlaif.yaml", "fit", tmp_path, tiny_model, data_root, *extra)[1:]
    StatusLine.current = line
    try:
        bar = OrlaifCLI(words, run=False).trainer.progress_bar_callback
    finally:
        StatusLine.current = None
    assert (type(bar) if bar is not None else None) is kind
    line.draw()
    assert (line.stream.getvalue() == "") is (kind is not Progress)  # that of the command line makes room
