"""The board's samples as tables, in whatever a run logs to that has tables: Weights & Biases, MLflow, trackio.

A logger is asked for what it can do, so that others of the same kind are written to as well; one without tables
(TensorBoard, CSV) is left alone here.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.loggers import Logger

from orlaif.types import Prompt

log = logging.getLogger(__name__)

COLUMNS = ("step", "prompt", "question", "reference", "rank", "advantage", "tokens", "answer")
_TOLD: set[str] = set()


def table_rows(step: int, prompt: Prompt, rows: Sequence[tuple[str, str, str, str]]) -> list[list[Any]]:
    """A row for each answer, of ``COLUMNS``.

    Args:
        step: of the optimizer.
        prompt: what was asked.
        rows: rank, advantage, tokens and text of each answer, as the board has them; rank ``-``: none.
    """
    asked = [step, prompt.id, prompt.question, prompt.answer]
    return [
        [*asked, None if rank == "-" else int(rank), float(advantage), int(tokens), text]
        for rank, advantage, tokens, text in rows
    ]


def write_table(logger: Logger, name: str, rows: Sequence[Sequence[Any]], step: int) -> bool:
    """Write rows of ``COLUMNS`` to a logger, on process 0. A failure is said once for each kind, and ends nothing.

    Args:
        logger: of the run.
        name: of the table. Weights & Biases and trackio have one for each step; MLflow's (``<name>.json`` among the
            run's artifacts) grows.
        rows: to be added.
        step: of the optimizer.

    Returns:
        Whether it has tables, and took this one.
    """
    try:
        return _write(logger, name, [list(row) for row in rows], step)
    except Exception as error:  # a server that is away, a package of theirs that is not installed
        kind = type(logger).__name__
        if kind not in _TOLD:
            _TOLD.add(kind)
            log.warning("%s took no table of completions (%s: %s)", kind, type(error).__name__, error)
        return False


def _write(logger: Logger, name: str, rows: list[list[Any]], step: int) -> bool:
    if hasattr(logger, "log_table"):  # WandbLogger
        logger.log_table(key=name, columns=list(COLUMNS), data=rows, step=step)
        return True
    experiment: Any = getattr(logger, "experiment", None)
    if hasattr(experiment, "log_table") and hasattr(logger, "run_id"):  # MLFlowLogger
        columns = {title: [row[i] for row in rows] for i, title in enumerate(COLUMNS)}
        experiment.log_table(run_id=logger.run_id, data=columns, artifact_file=f"{name}.json")
        return True
    trackio = sys.modules.get("trackio")  # Lightning has no logger for it; a user's own holds trackio's run
    if trackio is not None and isinstance(experiment, trackio.Run):
        experiment.log({name: trackio.Table(columns=list(COLUMNS), data=rows)}, step=step)
        return True
    return False
