"""The board's samples as tables: W&B, MLflow and trackio are called as their packages want it, others left alone."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger

from orlaif.training.callbacks import tables
from orlaif.training.callbacks.tables import COLUMNS, table_rows, write_table
from orlaif.types import Prompt

ROWS = table_rows(
    7,
    Prompt(id="p", question="what ?", answer="red"),
    [("0", "+0.500", "3", "红色\n<b>"), ("-", "+0.000", "1", "none")],
)


class Written(Logger):
    """A logger of no tables; keeps what it is given."""

    name, version = "written", "0"

    def __init__(self) -> None:
        super().__init__()
        self.told: list[dict[str, Any]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        raise AssertionError("tables are no metrics")

    def log_hyperparams(self, *given: Any, **named: Any) -> None:
        pass


class LikeWandb(Written):
    def log_table(
        self, key: str, columns: Any = None, data: Any = None, dataframe: Any = None, step: int | None = None
    ) -> None:
        self.told.append({"key": key, "columns": columns, "data": data, "step": step})


class MLflowClient:
    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def log_table(self, run_id: str, data: Any, artifact_file: str) -> None:
        self.told.append({"run_id": run_id, "data": data, "artifact_file": artifact_file})


def names(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_a_row_is_an_answer() -> None:
    assert COLUMNS == ("step", "prompt", "question", "reference", "rank", "advantage", "tokens", "answer")
    assert ROWS == [
        [7, "p", "what ?", "red", 0, 0.5, 3, "红色\n<b>"],
        [7, "p", "what ?", "red", None, 0.0, 1, "none"],
    ]


def test_weights_and_biases() -> None:
    logger = LikeWandb()
    assert write_table(logger, "completions", ROWS, 7)
    assert logger.told == [{"key": "completions", "columns": list(COLUMNS), "data": ROWS, "step": 7}]
    assert names(LikeWandb.log_table) == names(inspect.unwrap(WandbLogger.log_table))


def test_mlflow() -> None:
    client = MLflowClient()
    logger = types.SimpleNamespace(run_id="r1", experiment=client)
    assert write_table(logger, "completions", ROWS, 7)  # type: ignore[arg-type]
    (told,) = client.told
    assert (told["run_id"], told["artifact_file"]) == ("r1", "completions.json")
    assert list(told["data"]) == list(COLUMNS)
    assert told["data"]["rank"] == [0, None]
    assert told["data"]["answer"] == ["红色\n<b>", "none"]


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")
def test_mlflow_is_called_as_it_wants() -> None:
    from mlflow.tracking import MlflowClient

    assert names(MLflowClient.log_table) == names(MlflowClient.log_table)


class Run:
    def __init__(self) -> None:
        self.told: list[tuple[Any, Any]] = []

    def log(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self.told.append((metrics, step))


class Table:
    def __init__(self, columns: Any = None, data: Any = None) -> None:
        self.columns, self.data = columns, data


def test_trackio_by_a_logger_of_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", types.SimpleNamespace(Run=Run, Table=Table))
    logger = types.SimpleNamespace(experiment=Run())
    assert write_table(logger, "completions", ROWS, 7)  # type: ignore[arg-type]
    ((metrics, step),) = logger.experiment.told
    assert step == 7
    assert metrics["completions"].columns == list(COLUMNS)
    assert metrics["completions"].data == ROWS


@pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="trackio is not installed")
def test_trackio_is_called_as_it_wants() -> None:
    import trackio

    assert names(trackio.Run.log) == names(Run.log)
    assert names(trackio.Table.__init__)[:3] == names(Table.__init__)


def test_loggers_without_tables_are_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    csv = CSVLogger(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert not write_table(csv, "completions", ROWS, 7)
        assert not write_table(Written(), "completions", ROWS, 7)
    assert csv.experiment.metrics == []
    assert caplog.text == ""


def test_a_server_that_is_away_ends_nothing_and_is_said_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Away(LikeWandb):
        def log_table(self, *given: Any, **named: Any) -> None:
            raise ConnectionError("no route")

    monkeypatch.setattr(tables, "_TOLD", set())
    for _ in range(3):
        assert not write_table(Away(), "completions", ROWS, 7)
    assert caplog.text.count("Away took no table of completions (ConnectionError: no route)") == 1


def test_the_board_writes_one_table_for_all_its_prompts(tmp_path: Path, tiny_model: str, data_root: str) -> None:
    from orlaif.training.callbacks import CompletionsBoard
    from tests.training.test_rlaif import data, rlaif, trainer

    logger = LikeWandb()
    logger.log_metrics = lambda *given, **named: None  # type: ignore[method-assign]
    board = CompletionsBoard(num_prompts=2)
    run = trainer(tmp_path, callbacks=[board], max_steps=1, logger=logger, val_check_interval=1, limit_val_batches=1)
    run.fit(rlaif(tiny_model), data(data_root, 4))
    (told,) = logger.told
    assert told["step"] == 1
    assert [row[1] for row in told["data"]] == ["validation-00000"] * 4 + ["validation-00001"] * 4
    assert all(row[0] == 1 for row in told["data"])
