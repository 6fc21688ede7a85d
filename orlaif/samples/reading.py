"""Reading what a run has kept: whole groups only, each once, those of the run as it went on last."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orlaif.samples.shards import VERSION, Shard, shards_in


@dataclass(frozen=True, kw_only=True)
class Located:
    """A group, and where it lies.

    Args:
        path: of its shard.
        offset: of its line, in bytes.
        group: its fields.
    """

    path: Path
    offset: int
    group: dict[str, Any]


def read_groups(folder: str | Path) -> Iterator[dict[str, Any]]:
    """The groups of a ``samples`` folder, attempt by attempt, in the order in which they were written.

    A run that was killed and went on from a checkpoint does the steps behind that checkpoint again. What an earlier
    attempt wrote of them is left out: all from the place on at which a later attempt begins.

    Args:
        folder: ``<run_dir>/samples``; one that is being written to may be read as well.

    Yields:
        A dictionary for each group, its fields as ``orlaif.training.callbacks.KeepSamples`` lists them.

    Raises:
        ValueError: shards of another version of orlaif.
    """
    for located in locate_groups(folder):
        yield located.group


def read_at(path: Path, offset: int) -> dict[str, Any] | None:
    """The group whose line begins at ``offset`` of a shard; None where it is gone."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return _whole(file.readline())
    except (FileNotFoundError, NotADirectoryError):
        return None


def locate_groups(folder: str | Path) -> Iterator[Located]:
    """As :func:`read_groups`, with the place of each."""
    folder = Path(folder)
    shards = shards_in(folder)
    starts: dict[int, tuple[int, int, int]] = {}
    for shard in shards:
        first = next(_groups(folder, shard), None)
        if first is not None:
            place = place_of(first.group)
            starts[shard.attempt] = min(place, starts.get(shard.attempt, place))
    for shard in shards:
        later = [start for attempt, start in starts.items() if attempt > shard.attempt]
        until = min(later, default=None)
        for located in _groups(folder, shard):
            if until is None or place_of(located.group) < until:
                yield located


def place_of(group: dict[str, Any]) -> tuple[int, int, int]:
    """Where in the run a group was made: optimizer step, epoch, and batch within the epoch."""
    return group["step"], group["epoch"], group["batch"]


def _groups(folder: Path, shard: Shard) -> Iterator[Located]:
    """Of one shard, without its header and without a line that was cut off."""
    path = folder / shard.name
    try:
        file = path.open("rb")
    except FileNotFoundError:  # removed for a newer one since it was listed
        return
    with file:
        first = file.readline()
        header = _whole(first)
        if header is None:  # killed before anything was written
            return
        if header.get("orlaif_samples") != VERSION:
            raise ValueError(f"{path} is of another version of orlaif; this one reads {VERSION}")
        offset = len(first)
        for line in file:
            group = _whole(line)
            if group is not None:
                yield Located(path=path, offset=offset, group=group)
            offset += len(line)


def _whole(line: bytes) -> dict[str, Any] | None:
    """The object of a line; None for one that was cut off."""
    if not line.endswith(b"\n"):
        return None
    try:
        value = json.loads(line)
    except ValueError:  # a cut-off line that a write of the same moment went behind
        return None
    return value if isinstance(value, dict) else None
