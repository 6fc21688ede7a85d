"""Processes of their own, forked from one that has imported everything: a start costs 0.2 s, not the 7 s of imports.

What is tested of them is what any process has: what it prints, its status, and signals. Where imports, the console
script or a launcher are tested, a test starts ``subprocess`` instead.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

#: What the process to fork from has imported; one of them that is not installed is passed over.
PRELOADED = ["tests.processes", "orlaif.cli.recipe", "orlaif.cli.check_data", "orlaif.oracles", "torchcodec"]


@functools.cache
def context() -> Any:
    """Of multiprocessing; there is one process to fork from, and what it imports is settled by the first start."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(PRELOADED)
    return made


class Forked:
    """A call of a function in a process of its own, with the methods that a test needs of ``subprocess.Popen``.

    Args:
        target: a module's function.
        arguments: for it.
        session: whether the process leads a session, so that signals reach all that it starts.
        environment: beside that of the test.
    """

    def __init__(
        self, target: Callable[..., object], *arguments: Any, session: bool = False, **environment: str
    ) -> None:
        self._said = tempfile.TemporaryDirectory(prefix="orlaif-forked-")
        self._files = [Path(self._said.name, name) for name in ("stdout", "stderr")]
        about = ([str(path) for path in self._files], os.getcwd(), session, {**os.environ, **environment})
        self._process = context().Process(target=_call, args=(about, target, arguments))
        self._process.start()

    @property
    def pid(self) -> int:
        return int(self._process.pid)

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        """The exit status of a process that has ended; of one that a signal ended, the signal's negative number."""
        code: int | None = self._process.exitcode
        return code

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def said(self) -> tuple[str, str]:
        """What it has written to stdout and stderr so far."""
        out, errors = (path.read_text() if path.exists() else "" for path in self._files)
        return out, errors

    def communicate(self, timeout: float = 240) -> tuple[str, str]:
        """Wait for its end; what it wrote. One that does not end is killed, and fails the test."""
        self._process.join(timeout)
        if self._process.is_alive():
            self.kill()
            self._process.join()
            raise AssertionError(f"no end after {timeout} s; {self.said()}")
        return self.said()


def together(*processes: Forked, timeout: float = 120) -> None:
    """Wait until all have ended well; where one has not, those that may wait for it are ended too."""
    deadline = time.monotonic() + timeout
    while {None} <= {one.poll() for one in processes} <= {None, 0} and time.monotonic() < deadline:
        time.sleep(0.02)
    codes = [one.poll() for one in processes]
    for one in processes:
        one.kill()
    said = [one.communicate() for one in processes]
    assert codes == [0] * len(processes), (codes, said)


def orlaif(words: Sequence[str], session: bool = False, **environment: str) -> Forked:
    """A command line of ``orlaif``, from the word after it on."""
    return Forked(_command, list(words), session=session, **environment)


def _command(words: list[str]) -> None:
    from orlaif.cli.main import main

    # What Lightning starts further processes by.
    sys.argv = ["orlaif", *words]
    sys.modules["__main__"] = types.ModuleType("__main__")
    sys.modules["__main__"].__spec__ = importlib.util.find_spec("orlaif.__main__")
    main()


def _call(
    about: tuple[list[str], str, bool, dict[str, str]], target: Callable[..., object], arguments: Sequence[Any]
) -> None:
    files, folder, session, environment = about
    if session:
        os.setsid()
    for descriptor, path in enumerate(files, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background has ignored
    torch.set_num_threads(1)
    # Undo what tests/conftest.py does to tests.
    warnings.resetwarnings()
    logging.getLogger("lightning.pytorch").setLevel(logging.INFO)
    target(*arguments)
