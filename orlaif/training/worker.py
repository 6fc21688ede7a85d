"""A thread that does one piece of work after the other, and does not hold up the end of the program."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeAlias, TypeVar

Made = TypeVar("Made")
Items: TypeAlias = "SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]"


class Worker:
    """A thread. Where this is closed or let go of, and at the end of the program, it finishes what it is at, no more.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._queue: Items = SimpleQueue()
        closed = threading.Event()
        # A daemon: others are waited for with all that they have been given.
        thread = threading.Thread(target=_work, args=(self._queue, closed), name=name, daemon=True)
        thread.start()
        #: Torch must not compute while Python is taken apart.
        self.close = weakref.finalize(self, _close, self._queue, closed, thread)

    def submit(self, work: Callable[[], Made]) -> Future[Made]:
        """Do this behind all that was submitted before."""
        future: Future[Made] = Future()
        self._queue.put((future, work))
        return future


def _work(queue: Items, closed: threading.Event) -> None:
    while (item := queue.get()) is not None:
        future, work = item
        if closed.is_set():
            future.cancel()
            continue
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)
        del item, future, work  # not to be kept until there is more to do


def _close(queue: Items, closed: threading.Event, thread: threading.Thread) -> None:
    closed.set()
    queue.put(None)
    if thread is not threading.current_thread():
        thread.join()
