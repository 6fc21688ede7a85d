"""The folder of a run belongs to one run at a time: locked while it trains, and not mixed with what another one left.

A run that is finished is moved aside, with a word, when another one starts in its folder. One that is not may still be
wanted: to start anew over it is refused, unless ``--overwrite`` says so, and then it is moved aside as well.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from orlaif.distributed.checkpoint_io import is_remote, newest_checkpoint

log = logging.getLogger(__name__)

_LOCK = ".lock"
ANSWERS_LOCK = ".answers.lock"
_STATE = "run.json"


@contextmanager
def locked(run_dir: str, lock: str = _LOCK) -> Iterator[None]:
    """Hold the folder, made if need be; the system frees it when this process ends, however it does.

    Args:
        run_dir: the folder.
        lock: its file; what a run writes of its answers is held apart (``ANSWERS_LOCK``), so that a run that trains
            may be tested in its own folder.

    Raises:
        ValueError: another process holds it.
    """
    if is_remote(run_dir):
        yield
        return
    os.makedirs(run_dir, exist_ok=True)
    with open(os.path.join(run_dir, lock), "a+", encoding="utf-8") as file:
        _take(file, run_dir)
        yield


def _take(file: TextIO, run_dir: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):  # a file system without locks
            log.warning("%s: this file system has no locks (%s); make sure that no other run uses it", run_dir, error)
            return
        file.seek(0)
        holder = file.read().strip()
        raise ValueError(
            f"run_dir {run_dir} is in use by another run{f' ({holder})' if holder else ''}; name another --run_dir"
        ) from None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {os.uname().nodename}")
    file.flush()


def make_ready(run_dir: str, goes_on: bool, overwrite: bool, read: dict[str, Any]) -> Path | None:
    """Make sure that a run may start in this folder, and move aside what must go.

    Args:
        run_dir: where; held by :func:`locked`.
        goes_on: the run goes on from a checkpoint of this folder.
        overwrite: the user has allowed to start over what is there.
        read: names and values of the recipe, whose paths may lie in the folder.

    Returns:
        Where what was there lies now; None where nothing was moved.

    Raises:
        ValueError: it holds another run, or files that this one reads.
    """
    if is_remote(run_dir) or goes_on:
        return None
    folder, checkpoint = Path(run_dir), newest_checkpoint(run_dir)
    if checkpoint is None and not (folder / "export").exists():
        return None  # nothing that anyone could miss
    if not (_is_finished(folder) or overwrite):
        begun = f"its newest checkpoint is {checkpoint}" if checkpoint is not None else "it has an export"
        raise ValueError(
            f"run_dir {run_dir} holds another run that has not ended ({begun}); go on with --ckpt_path last, name "
            "another --run_dir, or move it aside with --overwrite"
        )
    inside = [name for name, value in read.items() if lies_in(value, folder)]
    if inside:
        raise ValueError(f"run_dir {run_dir} holds a run, and {inside[0]} lies in it; name another --run_dir")
    aside = next(path for n in range(1, 10**6) if not (path := Path(f"{str(folder).rstrip('/')}.old-{n}")).exists())
    aside.mkdir()
    for entry in folder.iterdir():
        if entry.name not in (_LOCK, ANSWERS_LOCK):
            entry.rename(aside / entry.name)
    log.warning("%s held another run; it was moved to %s", run_dir, aside)
    return aside


def put_back(run_dir: str, aside: Path) -> None:
    """Undo :func:`make_ready` where the run that it made room for never began, and so wrote nothing."""
    folder, moved = Path(run_dir), list(aside.iterdir())
    if (folder / _STATE).exists() or any((folder / entry.name).exists() for entry in moved):
        return
    for entry in moved:
        entry.rename(folder / entry.name)
    aside.rmdir()
    log.warning("%s: the new run did not begin; what was moved aside lies there again", run_dir)


def lies_in(value: Any, folder: Path) -> bool:
    """Whether a value of a recipe is a path below ``folder``."""
    text = str(value).strip("'\"")
    return os.sep in text and folder.resolve() in Path(text).resolve().parents


def _is_finished(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / _STATE).read_text(encoding="utf-8"))["finished"])
    except (OSError, ValueError, KeyError):
        return False


def write_state(run_dir: str, finished: bool) -> None:
    """Note whether the run in this folder has ended by itself."""
    if not is_remote(run_dir):
        unfinished = Path(run_dir) / f"{_STATE}.unfinished"
        unfinished.write_text(json.dumps({"finished": finished}) + "\n", encoding="utf-8")
        unfinished.replace(Path(run_dir) / _STATE)
