"""Shards of JSON lines that a run writes while it trains, and that survive it being killed at any moment.

``samples/a<attempt>-p<process>-<number>.jsonl``: an attempt is one start of the run, every process writes shards of its
own, and a shard that is full is followed by the next. The first line of each says what it is; each further line is a
group. A line is written in one piece; one that a kill cut off is the last of its shard, and readers leave it out.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

#: What a line's fields mean; a reader of another version says so.
VERSION = 1
_NAME = re.compile(r"a(\d+)-p(\d+)-(\d+)\.jsonl")


@dataclass(frozen=True, order=True)
class Shard:
    """A shard's place in the run, by which shards are ordered.

    Args:
        attempt: which start of the run, from 1.
        number: of the shard among those of its process, from 1.
        process: that wrote it.
    """

    attempt: int
    number: int
    process: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"a{self.attempt:03d}-p{self.process}-{self.number:06d}.jsonl"


def shards_in(folder: Path) -> list[Shard]:
    """The shards of a folder, in order; none where there is no folder."""
    try:
        listed = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = [match for name in listed if (match := _NAME.fullmatch(name))]
    return sorted(Shard(attempt=int(m[1]), process=int(m[2]), number=int(m[3])) for m in found)


def next_attempt(folder: Path) -> int:
    """The number of a start of the run that is about to write into ``folder``."""
    return 1 + max((shard.attempt for shard in shards_in(folder)), default=0)


class ShardWriter:
    """Writes the groups of one process.

    Args:
        folder: ``<run_dir>/samples``; made where it is not there.
        attempt: as :func:`next_attempt` says, the same on all processes.
        process: index of this one.
        limit_bytes: of all shards of this process, of earlier attempts too, and of what :meth:`reserve` has been told
            of; the oldest shards are removed for new ones.
        shard_bytes: at which a shard is full; by default a sixteenth of the limit, 16 MiB at most.

    Raises:
        ValueError: a limit that is not positive.
    """

    def __init__(
        self, folder: Path, attempt: int, process: int, limit_bytes: int, shard_bytes: int | None = None
    ) -> None:
        if limit_bytes < 1:
            raise ValueError(f"limit_bytes is {limit_bytes}; it must be 1 or more")
        self.folder, self.attempt, self.process, self.limit_bytes = folder, attempt, process, limit_bytes
        self.shard_bytes = shard_bytes or min(16 << 20, max(1, limit_bytes // 16))
        self._number = self._held = self._reserved = 0
        self._file: Any = None
        self._told = False

    def write(self, groups: Iterable[Mapping[str, Any]]) -> None:
        """Append groups, each as one line of JSON, all in one piece; they are the system's when this returns.

        Args:
            groups: plain values; NaN and infinities become null.

        Raises:
            OSError: the disk is full, or may not be written.
        """
        data = "".join(json_line(group) for group in groups).encode()
        if not data:
            return
        if self._file is None or self._file.tell() + len(data) > self.shard_bytes:
            self._begin()
        self._file.write(data)
        self._held += len(data)

    def reserve(self, number_bytes: int) -> None:
        """Leave so much of the limit to other files; the oldest shards go for them at once, the open one never."""
        self._reserved = number_bytes
        if self._file is not None and self._held + number_bytes > self.limit_bytes:
            self._make_room(0)

    def _begin(self) -> None:
        self.close()
        self._number += 1
        self.folder.mkdir(parents=True, exist_ok=True)
        self._make_room(self.shard_bytes)
        shard = self._open
        self._file = (self.folder / shard.name).open("ab", buffering=0)
        header = json_line({"orlaif_samples": VERSION, "attempt": self.attempt, "process": self.process}).encode()
        self._file.write(header)
        self._held += len(header)

    @property
    def _open(self) -> Shard:
        """The one that is written to."""
        return Shard(attempt=self.attempt, number=self._number, process=self.process)

    def _make_room(self, needed: int) -> None:
        """Remove the oldest shards of this process until ``needed`` bytes more fit."""
        mine = [shard for shard in shards_in(self.folder) if shard.process == self.process]
        sizes = {shard: (self.folder / shard.name).stat().st_size for shard in mine}
        self._held = sum(sizes.values())
        for shard in mine:
            if self._held + self._reserved + needed <= self.limit_bytes or shard == self._open:
                return
            (self.folder / shard.name).unlink()
            self._held -= sizes[shard]
            if not self._told:
                log.warning("%s has reached its limit: the oldest samples go (KeepSamples.limit_mb)", self.folder)
                self._told = True

    def close(self) -> None:
        """End the shard."""
        if self._file is not None:
            self._file.close()
            self._file = None


def json_line(values: Mapping[str, Any]) -> str:
    """One line of JSON that every reader takes: no NaN, no line break within, lone surrogates escaped."""
    try:
        text = json.dumps(values, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    except ValueError:
        text = json.dumps(without_nan(values), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return f"{text}\n"


def without_nan(value: Any) -> Any:
    """The same values with null for numbers that JSON cannot say."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {name: without_nan(one) for name, one in value.items()}
    return [without_nan(one) for one in value] if isinstance(value, (list, tuple)) else value
