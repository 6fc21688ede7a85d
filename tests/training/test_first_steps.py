"""What is logged from the first step on, and what the sanity check leaves behind: nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning import Callback
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers.logger import DummyLogger

from orlaif.oracles import ReferenceAnswerOracle
from orlaif.training.callbacks import Checkpointing, WinRate
from tests.training.test_rlaif import data, rlaif, sft, trainer


class Kept(DummyLogger):
    """Keeps what is logged, by step."""

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: Any, step: int | None = None, **kwargs: Any) -> None:
        self.logged.append((step or 0, dict(metrics)))


class Costs(ReferenceAnswerOracle):
    """An oracle that counts what it is asked, as those behind a server do."""

    def take_counts(self) -> dict[str, float]:
        return {"requests": 4.0, "failures": 1.0}


@pytest.mark.parametrize(
    ("every", "accumulate", "steps"), [(50, 1, [0]), (2, 1, [0, 1, 3]), (1, 1, [0, 1, 2, 3]), (50, 2, [0])]
)
def test_the_first_step_is_logged(
    tmp_path: Path, tiny_model: str, data_root: str, every: int, accumulate: int, steps: list[int]
) -> None:
    kept = Kept()
    run = trainer(tmp_path, logger=kept, max_steps=4, log_every_n_steps=every, accumulate_grad_batches=accumulate)
    run.fit(rlaif(tiny_model, oracle=Costs(), order_consistency_every_n_steps=0), data(data_root, 4))
    logged = [(step, metrics) for step, metrics in kept.logged if "train/loss" in metrics]
    assert [step for step, _ in logged] == steps
    first = logged[0][1]
    assert {"train/loss", "train/lr", "train/kl", "time/oracle", "oracle/failure_rate"} <= set(first)
    assert (first["oracle/requests"], first["oracle/failures"]) == (4.0, 1.0)


class Answers(Callback):
    """Right answers while validation is tried, wrong ones afterwards; notes what is known at each batch."""

    def __init__(self) -> None:
        self.known: list[set[str]] = []

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        def answer(batch: Any) -> list[str]:
            return [prompt.answer if trainer.sanity_checking else "no" for prompt in batch.prompts]

        pl_module.answer = answer

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        known = {**trainer.callback_metrics, **trainer.progress_bar_metrics, **trainer.logged_metrics}
        self.known.append({name for name in known if name.startswith("val/")})


def test_the_sanity_check_decides_nothing(tmp_path: Path, tiny_model: str, data_root: str) -> None:
    """Its accuracy of 1 is not the best one, the first to be compared with, nor logged."""
    kept, answers = Kept(), Answers()
    saved = Checkpointing(dirpath=str(tmp_path), monitor="val/accuracy", mode="max")
    stopping = EarlyStopping("val/accuracy", mode="max", patience=2)
    run = trainer(
        tmp_path,
        logger=kept,
        callbacks=[answers, saved, stopping],
        enable_checkpointing=True,
        num_sanity_val_steps=1,
        limit_val_batches=1,
        val_check_interval=2,
        max_steps=4,
    )
    run.fit(sft(tiny_model), data(data_root, 4, eval_batch_size=2))
    assert answers.known[:2] == [set(), set()]
    assert "val/accuracy" in answers.known[2]
    assert float(saved.best_model_score) == float(stopping.best_score) == 0.0  # type: ignore[arg-type]
    assert [metrics["val/accuracy"] for _, metrics in kept.logged if "val/accuracy" in metrics] == [0.0, 0.0]


def test_win_rate_begins_behind_the_sanity_check(tmp_path: Path, tiny_model: str, data_root: str) -> None:
    """The first answers are those of the moment before the first step, not those of the check."""
    callbacks = [Answers(), WinRate(num_prompts=2)]
    run = trainer(tmp_path, callbacks=callbacks, num_sanity_val_steps=1, limit_val_batches=1, max_steps=1)
    run.fit(rlaif(tiny_model, order_consistency_every_n_steps=0), data(data_root, 4, eval_batch_size=2))
    lines = (tmp_path / "win_rate.jsonl").read_text().splitlines()
    assert ['"no"' in line for line in lines] == [True, True]
