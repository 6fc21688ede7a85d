"""What a run is doing at this moment: the stages under way, on all threads, for whoever shows it.

Whatever takes long says so by :func:`stage`, and how far it is by :meth:`Stage.advance`; that costs microseconds. Who
shows it (``orlaif.status_line``) looks at :func:`under_way` when it likes to, so that neither knows the other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

_lock = threading.Lock()
_running: list[Stage] = []
#: Seconds that a stage took the last time, by name.
_took: dict[str, float] = {}


@dataclass(eq=False, slots=True)
class Stage:
    """A stage under way.

    Args:
        name: in a user's words, such as ``judge``.
        of: how many parts it has, where that is known.
        unit: what they are, such as ``groups``.
        behind: goes on behind the others, such as decoding of later batches; shown where these wait for it.
        began: ``time.monotonic()`` of its beginning.
        thread: that it is on.
        expected_s: seconds that it took the last time; None where this is the first.
        done: parts so far.
    """

    name: str
    of: int | None
    unit: str
    behind: bool
    began: float
    thread: int
    expected_s: float | None
    done: int = 0

    @property
    def is_main(self) -> bool:
        """Whether it is on the main thread."""
        return self.thread == threading.main_thread().ident

    def advance(self, number: int = 1) -> None:
        """So many parts more are done; from any thread."""
        with _lock:
            self.done += number


@contextmanager
def stage(name: str, of: int | None = None, unit: str = "", behind: bool = False) -> Iterator[Stage]:
    """A stage is under way inside; arguments and what it gives are those of :class:`Stage`."""
    began = time.monotonic()
    one = Stage(name, of, unit, behind, began, threading.get_ident(), _took.get(name))
    with _lock:
        _running.append(one)
    try:
        yield one
    finally:
        with _lock:
            if one in _running:
                _running.remove(one)
            _took[name] = time.monotonic() - began


def told(parts: Sequence[T], name: str, unit: str = "") -> Iterator[T]:
    """Each of ``parts``, in a stage of so many that counts those that are done."""
    with stage(name, len(parts), unit) as one:
        for part in parts:
            yield part
            one.advance()


def forget() -> None:
    """No stage is under way any more: a run was broken off."""
    with _lock:
        _running.clear()


def under_way() -> list[list[Stage]]:
    """The stages of each thread, the outermost first; the main thread's come first, if it has any."""
    with _lock:
        running = list(_running)
    threads: dict[int, list[Stage]] = {}
    for one in running:
        threads.setdefault(one.thread, []).append(one)
    return sorted(threads.values(), key=lambda stages: not stages[0].is_main)
