"""What a training step has to say: metrics of all processes, times of its stages, totals of the run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from orlaif.distributed.sync import exchange
from orlaif.stages import stage as under_way
from orlaif.types import Delivery

#: Totals that are logged, whether or not anything was counted.
_LOGGED = ("train/num_tokens", "data/bad_videos")


def elapsed(start: float, device: torch.device) -> float:
    """Seconds since ``start`` (of ``time.perf_counter``), with all that a GPU has been given to do by now."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


class StepNotes:
    """Keeps what is noted and counted on this process until :meth:`take` merges it with that of the others.

    Attributes:
        totals: counted over all steps and processes so far.
        counts: whether this process adds to them; not where another one speaks for its prompts.
    """

    def __init__(self) -> None:
        self.totals: dict[str, float] = {}
        self.counts = True
        self._noted: dict[str, tuple[float, float]] = {}
        self._counted: dict[str, float] = {}
        self._said: set[str] = set()
        self._first_delivery_at: float | None = None
        self._waited_s = 0.0

    def note(self, name: str, value: Tensor | float, weight: Tensor | float = 1.0) -> None:
        """A metric of this step: a mean of what counts ``weight`` on this process; of nothing where that is 0.

        Where the name ends in ``/min`` or ``/max``, that of all processes is taken instead of their mean.
        """
        if weight := float(weight):
            self._noted[name] = float(value), weight

    def first(self, warning: str) -> bool:
        """Whether this is the first time that a warning of that name is asked for: True once on each process."""
        first = warning not in self._said
        self._said.add(warning)
        return first

    def count(self, name: str, number: float) -> None:
        """Add to a total over all steps and processes."""
        if self.counts:
            self._counted[name] = self._counted.get(name, 0.0) + number

    @contextmanager
    def stage(self, name: str, device: torch.device) -> Iterator[None]:
        """Note the seconds spent inside as ``time/<name>``; the stage is under way for whoever shows it."""
        start = time.perf_counter()
        with under_way(name):
            yield
        self.note(f"time/{name}", elapsed(start, device))

    def delivery(self, delivery: Delivery, num_tokens: int) -> None:
        """What every stage says of its batch: decoding, waiting for data; bad videos and tokens seen so far."""
        self.count("train/num_tokens", num_tokens)
        self.count("data/bad_videos", len(delivery.skipped))
        self.note("time/decode", delivery.decode_s)
        self.note("time/data_wait", delivery.wait_s)
        now = time.perf_counter()
        if self._first_delivery_at is None:  # nothing can be decoded ahead of the first
            self._first_delivery_at, self._waited_s = now, 0.0
            return
        self._waited_s += delivery.wait_s
        self.note("time/data_wait_share", self._waited_s / (now - self._first_delivery_at))

    def take(self) -> dict[str, float]:
        """What was noted since the last call, as means and totals over all processes, which must all call."""
        everyone = exchange((self._noted, self._counted))
        self._noted, self._counted = {}, {}
        found: dict[str, list[tuple[float, float]]] = {}
        for noted, counted in everyone:
            for name, value_and_weight in noted.items():
                found.setdefault(name, []).append(value_and_weight)
            for name, number in counted.items():
                self.totals[name] = self.totals.get(name, 0.0) + number
        merged = {name: _merged(name, values) for name, values in found.items()}
        return merged | {name: self.totals.get(name, 0.0) for name in _LOGGED}


def _merged(name: str, values: list[tuple[float, float]]) -> float:
    """One value of those of all processes, each with what it counts."""
    if name.endswith(("/min", "/max")):
        return (min if name.endswith("/min") else max)(value for value, _ in values)
    return sum(value * weight for value, weight in values) / sum(weight for _, weight in values)
