"""Reading what a run has kept: whole groups only, each once, those of the run as it went on last."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orlaif.samples.shards import VERSION, Shard, shards_in


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
    folder = Path(folder)
    shards = shards_in(folder)
    starts: dict[int, tuple[int, int, int]] = {}
    for shard in shards:
        first = next(_groups(folder, shard), None)
        if first is not None:
            place = place_of(first)
            starts[shard.attempt] = min(place, starts.get(shard.attempt, place))
    for shard in shards:
        later = [start for attempt, start in starts.items() if attempt > shard.attempt]
        until = min(later, default=None)
        for group in _groups(folder, shard):
            if until is None or place_of(group) < until:
                yield group


def place_of(group: dict[str, Any]) -> tuple[int, int, int]:
    """Where in the run a group was made: optimizer step, epoch, and batch within the epoch."""
    return group["step"], group["epoch"], group["batch"]


def _groups(folder: Path, shard: Shard) -> Iterator[dict[str, Any]]:
    """Of one shard, without its header and without a line that was cut off."""
    try:
        file = (folder / shard.name).open("rb")
    except FileNotFoundError:  # removed for a newer one since it was listed
        return
    with file:
        header = _whole(file.readline())
        if header is None:  # killed before anything was written
            return
        if header.get("orlaif_samples") != VERSION:
            raise ValueError(f"{folder / shard.name} is of another version of orlaif; this one reads {VERSION}")
        for line in file:
            group = _whole(line)
            if group is not None:
                yield group


def _whole(line: bytes) -> dict[str, Any] | None:
    """The object of a line; None for one that was cut off."""
    if not line.endswith(b"\n"):
        return None
    try:
        value = json.loads(line)
    except ValueError:  # a cut-off line that a write of the same moment went behind
        return None
    return value if isinstance(value, dict) else None
