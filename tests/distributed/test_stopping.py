"""SIGTERM and Ctrl-C reach runs of two processes: a checkpoint that the run goes on from, and the signal's status."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from orlaif.distributed.checkpoint_io import newest_checkpoint
from tests.cli.test_cli import small
from tests.forked import Forked, orlaif


def start(tmp_path: Path, model: str, root: str, *extra: str) -> Forked:
    """A run that saves every step, and would go on for long."""
    saving = ["--trainer.callbacks+=orlaif.training.callbacks.Checkpointing", "--trainer.callbacks.save_top_k=-1"]
    saving += ["--trainer.callbacks.every_n_train_steps=1", "--trainer.logger=false"]
    more = ["--trainer.max_steps=100000", "--trainer.max_epochs=-1", "--trainer.limit_val_batches=0"]
    words = small("demo_sft.yaml", "fit", tmp_path / "run", model, root, *more, *saving, *extra)
    return orlaif(words, session=True, OMP_NUM_THREADS="1")


def wait_for_a_checkpoint(folder: Path, process: Forked) -> None:
    deadline = time.monotonic() + 300
    while newest_checkpoint(folder) is None:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.said()[1][-2000:]
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("strategy", "number", "everyone"),
    [("ddp", signal.SIGTERM, True), ("fsdp2", signal.SIGTERM, False), ("ddp", signal.SIGINT, True)],
)
def test_two_processes_stop_together(
    strategy: str, number: signal.Signals, everyone: bool, tmp_path: Path, tiny_model: str, data_root: str
) -> None:
    """Told all of them, as schedulers and terminals do, or the first alone."""
    process = start(tmp_path, tiny_model, data_root, "--trainer.devices=2", f"--trainer.strategy={strategy}")
    try:
        wait_for_a_checkpoint(tmp_path / "run", process)
        (os.killpg if everyone else os.kill)(process.pid, number)
        _, said = process.communicate(timeout=240)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 128 + number, said[-2000:]
    assert f"stopped by {number.name} after" in said
    newest = newest_checkpoint(tmp_path / "run")
    assert newest is not None
    assert newest.name in said
