"""A line that says what goes on: kept up to date at the foot of a terminal, or now and then in a log file.

What is under way comes from ``orlaif.stages``; how far the whole is, and what was measured, from whoever sets
:attr:`StatusLine.head`. A thread looks a few times a second. On a terminal the line never takes more than one row, and
what others print, by Python's streams and logging, goes above it.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TextIO

from orlaif.stages import Stage, under_way

#: Seconds between two looks on a terminal.
REFRESH_S = 0.25
#: Seconds between two lines where there is no terminal.
EVERY_S = 10.0
#: Name of the stage that waits for batches, which are prepared behind.
WAITS = "data"
#: Empties a terminal's row.
CLEAR = "\r\x1b[K"


@dataclass(frozen=True, kw_only=True)
class Head:
    """How far the whole is.

    Args:
        text: such as ``epoch 1 of 4, step 3 of 100``.
        metrics: names and values; the last ones go first where a row is too narrow.
        left_s: seconds to the end; None where that is not known.
        brief: the text in fewer words, such as ``step 3 of 100``; empty where there are none.
        waits: what is awaited while no stage is under way.
    """

    text: str = ""
    metrics: Sequence[tuple[str, str]] = field(default=())
    left_s: float | None = None
    brief: str = ""
    waits: str = ""


def duration(seconds: float) -> str:
    """``1:20`` or ``2:03:04``."""
    whole = max(0, round(seconds))
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def awaited(one: Stage, now: float | None) -> str:
    """A stage in words, such as ``judge 12 of 32 groups, 4 of 9 s``; without seconds where ``now`` is None."""
    text = one.name
    if one.of is not None:
        text += f" {one.done} of {one.of}{' ' * bool(one.unit)}{one.unit}"
    elif one.done:
        text += f" {one.done} {one.unit}".rstrip()
    if now is None or (seconds := now - one.began) < 1:
        return text
    expected = math.ceil(one.expected_s or 0)
    said = f"{int(seconds)} of {expected} s" if expected > int(seconds) else f"{int(seconds)} s"
    return f"{text}, {said}" if text != one.name else f"{text} {said}"


def stages_text(threads: Sequence[Sequence[Stage]], now: float | None, outer_too: bool = True) -> str:
    """What is under way, in words: of each thread the innermost stage, behind the outermost, threads joined by ``+``.

    Of stages on other threads that run behind, the first is named where the main thread waits for it. Without the outer
    ones, threads that count are named alone, if there are any.
    """
    waits = any(stages[-1].is_main and stages[-1].name == WAITS for stages in threads)
    counted = {stages[-1].name for stages in threads if stages[-1].of is not None}
    said: list[str] = []
    for stages in threads:
        outer, inner = stages[0], stages[-1]
        if inner.behind and not inner.is_main:
            if not waits:
                continue
            waits = False
        if inner.of is None and (inner.name in counted or (counted and not outer_too)):  # another thread counts it
            continue
        text = awaited(inner, now)
        if outer_too and outer.name != inner.name:
            text = f"{awaited(outer, None)}: {text}"
        said.append(text)
    return " + ".join(said)


def row(head: Head, stages: str, width: int | None, shorter: str | None = None) -> str:
    """All in one row of at most ``width`` characters.

    Args:
        head: how far the whole is; where that is too much, its metrics are left out, the last one first, then what its
            brief text has not, and all of its text at last. The time to the end is always last.
        stages: what is under way; it is cut only where it does not fit alone.
        width: None for no limit.
        shorter: what is under way in fewer words, for where that helps.
    """
    left = ""
    if head.left_s is not None:
        left = f"{duration(head.left_s)} left" if head.left_s >= 1 else "<1 s left"
    brief, shorter = head.brief or head.text, stages if shorter is None else shorter
    numbers = range(len(head.metrics), -1, -1)
    tried = [(text, doing, n) for doing in (stages, shorter) for text in (head.text, brief) for n in numbers]
    for text, doing, number in (*tried, ("", shorter or brief, 0)):
        metrics = "  ".join(f"{name} {value}" for name, value in head.metrics[:number])
        said = " | ".join(part for part in (text, doing, metrics, left) if part)
        if width is None or len(said) <= width:
            return said
    assert width is not None, "without a limit, the first one fits"
    ending = f" | {left}" if left else ""
    return f"{(shorter or brief)[: max(0, width - len(ending))]}{ending}"[:width]


class StatusLine:
    """Shows one line as long as it runs.

    Args:
        stream: where; by default ``sys.stderr``.
        what: said before there is a head, such as ``orlaif fit``.
        clock: seconds.
        columns: of the terminal; by default it is asked. Where the stream is no terminal there is no limit.

    Attributes:
        head: how far the whole is, by the clock.
        speaks: whether lines are written where there is no terminal in the first ten seconds too: not before a recipe
            is read, so that a mistake in it is the only line.
    """

    #: The one that is running.
    current: StatusLine | None = None

    def __init__(
        self,
        stream: TextIO | None = None,
        what: str = "",
        clock: Callable[[], float] = time.monotonic,
        columns: int | None = None,
    ) -> None:
        self.stream: TextIO = stream or sys.stderr
        self.clock, self.columns = clock, columns
        self.head: Callable[[float], Head] = lambda now: Head(text=what)
        self.speaks = False
        self.is_terminal = self.stream.isatty() and os.environ.get("TERM") != "dumb"
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._shown = ""
        self._open = False  # another's line is not ended
        self._began = clock()
        #: When a line was last written where there is no terminal, and what it said, without seconds.
        self._last = (self._began - EVERY_S + 2.0, "")

    def draw(self) -> None:
        """Look, and show what has changed."""
        now, threads = self.clock(), under_way()
        head = self.head(now)
        with self._lock:
            if self._ended.is_set():
                return
            if not self.is_terminal:
                self._say(now, head, threads)
                return
            real = time.monotonic()
            full, shorter = (stages_text(threads, real, outer_too) or head.waits for outer_too in (True, False))
            text = row(head, full, self._width(), shorter)
            text = text.encode("ascii", "replace").decode()  # wide characters would take two columns
            if text != self._shown and not self._open:
                self._write(f"{CLEAR}{text}\r")
                self._shown = text

    def _say(self, now: float, head: Head, threads: Sequence[Sequence[Stage]]) -> None:
        key = f"{head.text} {stages_text(threads, None) or head.waits}"
        when, before = self._last
        speaks = self.speaks or now - self._began >= EVERY_S
        if speaks and now - when >= EVERY_S and key != before:
            self._last = now, key
            said = row(head, stages_text(threads, time.monotonic()) or head.waits, None)
            self._write(f"orlaif: {duration(now - self._began)} {said}\n")

    def _width(self) -> int:
        columns = self.columns
        if columns is None:
            try:
                columns = os.get_terminal_size(self.stream.fileno()).columns
            except (OSError, ValueError):
                columns = 0
        return (columns or 80) - 1  # a full row would make the terminal go on in the next

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
            self.stream.flush()
        except (OSError, ValueError):  # nobody is reading any more
            self._ended.set()

    def above(self, stream: TextIO, text: str) -> int:
        """Write another's ``text`` to ``stream`` above the line."""
        with self._lock:
            if self._shown:
                self._write(CLEAR)
                self._shown = ""
            written = stream.write(text)
            if text:
                self._open = not text.endswith(("\n", "\r"))
            stream.flush()
        return written

    def keep(self, head: Head) -> None:
        """Write a line that stays."""
        said = row(head, "", self._width() - len("orlaif: ") if self.is_terminal else None)
        with self._lock:
            if not self._ended.is_set() and (self.is_terminal or self.speaks):
                self._write(f"{CLEAR if self._shown else ''}orlaif: {said}\n")
                self._shown = ""

    def end(self) -> None:
        """Take the line away."""
        with self._lock:
            if self._shown:
                self._write(CLEAR)
                self._shown = ""
            self._ended.set()

    @contextmanager
    def running(self) -> Iterator[StatusLine]:
        """The line is there inside, and is :attr:`current`."""
        before, StatusLine.current = StatusLine.current, self
        thread = threading.Thread(target=self._look, name="orlaif-status", daemon=True)
        with _above(self) if self.is_terminal else _nothing():
            thread.start()
            try:
                yield self
            finally:
                self.end()
                StatusLine.current = before

    def _look(self) -> None:
        while not self._ended.wait(REFRESH_S if self.is_terminal else 1.0):
            self.draw()


class _Above:
    """A stream of which what is written goes above a line."""

    def __init__(self, line: StatusLine, stream: TextIO) -> None:
        self.line, self.stream = line, stream

    def write(self, text: str) -> int:
        return self.line.above(self.stream, text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def _above(line: StatusLine) -> Iterator[None]:
    """What goes to the terminal by Python's streams, and by logging's handlers on these, goes above the line."""
    before = sys.stdout, sys.stderr
    wrapped: dict[TextIO, Any] = {one: _Above(line, one) for one in before if one.isatty()}
    known = [logging.root, *logging.root.manager.loggerDict.values()]  # some are no loggers yet
    handlers = [h for log in known for h in getattr(log, "handlers", ()) if isinstance(h, logging.StreamHandler)]
    fixed = [handler for handler in handlers if "stream" in vars(handler)]  # others ask for sys.stderr each time
    moved = [(handler, handler.stream) for handler in fixed if handler.stream in wrapped]
    for handler, stream in moved:
        handler.setStream(wrapped[stream])
    sys.stdout, sys.stderr = (wrapped.get(one, one) for one in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for handler, stream in moved:
            handler.setStream(stream)


@contextmanager
def _nothing() -> Iterator[None]:
    yield
