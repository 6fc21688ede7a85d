"""A folder belongs to one run: two at once, one over another, and one that goes on as another."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning import Callback, Trainer

from orlaif.cli.recipe import OrlaifCLI, run
from orlaif.cli.run_folder import ANSWERS_LOCK, locked, make_ready, write_state
from orlaif.cli.words import prepare
from tests.cli.test_cli import small
from tests.conftest import make_policy


def checkpoint(folder: Path) -> Path:
    path = folder / "checkpoints" / "epoch=0-step=4.ckpt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    return path


def ready(folder: Path, goes_on: bool = False, overwrite: bool = False, **read: str) -> None:
    make_ready(str(folder), goes_on, overwrite, read)


def test_two_runs_at_once_the_second_is_refused(tmp_path: Path) -> None:
    with (
        locked(str(tmp_path)),
        pytest.raises(ValueError, match=r"run_dir .* is in use by another run \(process \d+ on .+\); name another"),
        locked(str(tmp_path)),
    ):
        pass
    with locked(str(tmp_path)):
        pass


def test_answers_are_held_apart_from_training(tmp_path: Path) -> None:
    """A run that trains may be tested in its folder, by one test at a time."""
    with locked(str(tmp_path)), locked(str(tmp_path), ANSWERS_LOCK), pytest.raises(ValueError, match="is in use by"):
        locked(str(tmp_path), ANSWERS_LOCK).__enter__()


def test_overwrite_needs_no_value() -> None:
    assert prepare(["fit", "--overwrite"]).words == ("fit", "--overwrite=true")
    assert prepare(["--overwrite", "--run_dir=x"]).words == ("--overwrite=true", "--run_dir=x")
    assert prepare(["--overwrite", "false"]).words == ("--overwrite", "false")


def test_a_process_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    script = (
        "import os, sys; from orlaif.cli.run_folder import locked\nwith locked(sys.argv[1]): os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert done.returncode == -9
    with locked(str(tmp_path)):
        pass


def test_over_a_run_that_has_not_ended(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    path = checkpoint(folder)
    with pytest.raises(
        ValueError, match=r"run_dir .*run holds another run that has not ended .*step=4.ckpt.*--overwrite"
    ):
        ready(folder)
    ready(folder, goes_on=True)
    assert path.exists()
    ready(folder, overwrite=True)
    assert not path.exists()
    assert (tmp_path / "run.old-1" / "checkpoints" / path.name).exists()


def test_a_finished_run_is_moved_aside_unless_it_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "run"
    (folder / "export").mkdir(parents=True)
    write_state(str(folder), finished=True)
    with pytest.raises(ValueError, match=r"run_dir .* holds a run, and policy lies in it; name another --run_dir"):
        ready(folder, policy=repr(str(folder / "export")))
    ready(folder, policy=repr(str(tmp_path / "export")))
    assert not (folder / "export").exists()
    assert "was moved to" in caplog.text


def test_a_run_that_never_begins_leaves_the_finished_one(tmp_path: Path, tiny_model: str, data_root: str) -> None:
    folder = tmp_path / "run"
    (folder / "export").mkdir(parents=True)
    write_state(str(folder), finished=True)
    left = contents(folder)
    with pytest.raises(ValueError, match="learning rate"):
        run(small("demo_sft.yaml", "fit", folder, tiny_model, data_root, "--model.init_args.optimizer.init_args.lr=-1"))
    assert contents(folder) == left
    assert (folder / "export").is_dir()
    assert not (tmp_path / "run.old-1").exists()


def test_what_a_run_left_before_its_first_checkpoint_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    ready(tmp_path)
    assert (tmp_path / "config.yaml").exists()


def test_going_on_with_another_recipe_base_or_data(tmp_path: Path, tiny_model: str, data_root: str) -> None:
    """Two steps, and then: what differs is named, or allowed by name; the rate that is stated is in use."""
    steps = ["--trainer.limit_val_batches=0"]

    def go(*words: str, model: str = tiny_model) -> object:
        return run(small("demo_sft.yaml", "fit", tmp_path / "run", model, data_root, *steps, *words))

    go("--trainer.max_steps=2")
    left = contents(tmp_path / "run")
    assert left[Path("run.json")] == b'{"finished": true}\n'
    last = ["--ckpt_path=last", "--trainer.max_steps=3"]
    rate, seed = "--model.init_args.optimizer.init_args.lr=0.5", "--seed_everything=9"
    peak = "--model.init_args.lr_scheduler.init_args.max_lr=0.004"
    with pytest.raises(ValueError, match=r"optimizer.init_args.lr: 0.002 -> 0.5\. .*--resume_changed lr,"):
        go(*last, rate)
    with pytest.raises(ValueError, match=r"seed_everything: 0 -> 9"):
        go(*last, rate, seed, "--resume_changed=lr")
    with pytest.raises(ValueError, match=r"max_lr: 0.002 -> 0.004"):
        go(*last, peak)
    other = str(tmp_path / "other")
    policy = make_policy(tiny_model)
    policy.network.save_pretrained(other)
    policy.processor.save_pretrained(other)
    with pytest.raises(ValueError, match=r"policy.path is .*other, whose weights are not those of the base"):
        go(*last, model=other)
    with pytest.raises(ValueError, match=r"data.train has 32 rows .*, but the checkpoint was trained on 64 rows"):
        go(*last, "--data.init_args.train.init_args.size=32", "--resume_changed=size")
    with pytest.raises(ValueError, match=r"--overwrite starts anew and --ckpt_path last goes on"):
        go(*last, "--overwrite")
    with pytest.raises(ValueError, match=r"--resume_changed names 'batchsize', .*; did you mean 'batch_size'\?"):
        go(*last, "--resume_changed=lr,batchsize")
    go("--trainer.fast_dev_run=true")
    assert contents(tmp_path / "run") == left  # no refusal, and no trial, wrote anything
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(tiny_model, elsewhere)
    go(*last, model=str(elsewhere))  # the same base in another place
    assert b"elsewhere" in contents(tmp_path / "run")[Path("config.yaml")]


def contents(folder: Path) -> dict[Path, bytes]:
    """All files below a folder, but the lock."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.relative_to(folder): path.read_bytes() for path in files}


def test_a_run_that_is_under_way_has_not_ended(tmp_path: Path, tiny_model: str, data_root: str) -> None:
    """As a later start in its folder sees it, from its first step on."""
    seen: list[str] = []

    class Looks(Callback):
        def on_train_batch_start(self, *args: object) -> None:
            seen.append((tmp_path / "run.json").read_text())

    words = small("demo_sft.yaml", "fit", tmp_path, tiny_model, data_root, "--trainer.limit_val_batches=0")
    with pytest.MonkeyPatch.context() as patch:
        made = OrlaifCLI.instantiate_trainer

        def with_looks(self: OrlaifCLI, **kwargs: Any) -> Trainer:
            trainer = made(self, **kwargs)
            trainer.callbacks.append(Looks())  # type: ignore[attr-defined]
            return trainer

        patch.setattr(OrlaifCLI, "instantiate_trainer", with_looks)
        run([*words, "--trainer.max_steps=1"])
    assert seen == ['{"finished": false}\n']
    assert (tmp_path / "run.json").read_text() == '{"finished": true}\n'
