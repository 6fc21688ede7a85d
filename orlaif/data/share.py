"""Which rows of an epoch one process takes, and from where on.

The order of an epoch is a function of (seed, epoch), the same on every process; a process takes every n-th row of it.
What all processes together have used at any moment is therefore the beginning of the epoch's order, whatever their
number and batch size, and a run can go on behind it on others.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from torch.utils.data import IterableDataset, get_worker_info

from orlaif.types import Prompt

Row = TypeVar("Row")


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one process takes of an epoch.

    Args:
        first: rows of the epoch's order that have been used before, by all processes together.
        stop: where the epoch ends, in rows of all processes; None: where the data does.
        process_index: of this process.
        num_processes: that the rows are dealt out to, in turns.
    """

    first: int = 0
    stop: int | None = None
    process_index: int = 0
    num_processes: int = 1

    def of(self, order: Sequence[Row]) -> list[Row]:
        """The share of a known order; rows of an incomplete last round are left out."""
        rest = order[self.first : self.stop]
        whole = len(rest) // self.num_processes * self.num_processes
        return list(rest[self.process_index : whole : self.num_processes])

    def stream(self, order: Iterator[Row], workers: int = 1, worker: int = 0) -> Iterator[Row]:
        """The share of an order whose length is not known, read as it is needed.

        Args:
            order: all rows, the same on every process.
            workers: processes that load for this one, to which its share is dealt out in turns.
            worker: which of them this is.
        """
        places, place = self.num_processes * workers, self.process_index * workers + worker
        position = 0
        for round_ in _rounds(islice(order, self.first, self.stop), self.num_processes):
            for row in round_:
                if position % places == place:
                    yield row
                position += 1


def _rounds(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    """Lists of ``size`` rows each; what is left at the end is dropped."""
    while len(part := list(islice(rows, size))) == size:
        yield part


class StreamedRows(IterableDataset[Any]):
    """One epoch's share of a stream, as torch's loaders take it, worker processes included.

    Args:
        rows: from nothing to all rows of the epoch, in order; pickled with this object for worker processes.
        share: of this process.

    Raises:
        ValueError: on iteration, several workers in the middle of an epoch.
    """

    def __init__(self, rows: Callable[[], Iterator[Any]], share: Share) -> None:
        self.rows, self.share = rows, share

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker is not None else (1, 0)
        if self.share.first and workers > 1:
            raise ValueError("a stream cannot go on within an epoch with data.num_workers above 1; use 0 or 1")
        return self.share.stream(self.rows(), workers, number)


def fingerprint(prompts: Iterable[Prompt]) -> str:
    """The number of prompts and a hash of what they say, with the names of videos and frames, not where these lie."""
    digest, number = hashlib.sha256(), 0
    for prompt in prompts:
        about = dataclasses.asdict(prompt)
        about["video"] = os.path.basename(prompt.video)
        if not prompt.turns:
            del about["turns"]
        for part in (part for turn in about.get("turns", ()) for part in turn["parts"] if "path" in part):
            part["path"] = os.path.basename(part["path"])
            part["frames"] = [os.path.basename(frame) for frame in part.get("frames") or ()]
        about["frames"] = [os.path.basename(frame) for frame in prompt.frames or ()]
        digest.update(json.dumps(about, default=str).encode() + b"\n")
        number += 1
    return f"{number} rows with hash {digest.hexdigest()[:12]}"
