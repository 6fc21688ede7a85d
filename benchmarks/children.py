"""Processes that are started and must not outlive the one that started them: on a leased GPU they would hold it."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

#: Loaded beforehand: between fork and exec little is safe.
_LIBC = ctypes.CDLL(None)


def end_with_parent() -> None:
    """As ``preexec_fn``, in the new process: a parent that is killed takes it along (Linux)."""
    if sys.platform == "linux":
        _LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def end_group(process: subprocess.Popen[Any]) -> None:
    """Kill a process that leads a group of its own (``start_new_session``), and what it has started and left there."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # none of them holds anything that would have to be put away
    process.wait()


@contextmanager
def exiting_on_signals() -> Iterator[None]:
    """SIGTERM, SIGINT and SIGHUP raise SystemExit, so that ``finally`` and ``with`` put away what they hold."""

    def leave(number: int, frame: FrameType | None) -> None:
        print(f"ended by {signal.Signals(number).name}", file=sys.stderr, flush=True)
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
