"""Reading what a run has kept: whole groups only, each once, those of the run as it went on last."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orlaif.samples.shards import VERSION, Shard, shards_in

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Located:
    """A group, and where it lies.

    Args:
        path: of its shard.
        offset: of its line, in bytes.
        line: its number in the shard, from 1.
        group: its fields.
    """

    path: Path
    offset: int
    line: int
    group: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A whole line that no run wrote so.

    Args:
        path: of its shard.
        line: its number in the shard, from 1.
        reason: field, value and what would be right.
    """

    path: Path
    line: int
    reason: str


def read_groups(folder: str | Path) -> Iterator[dict[str, Any]]:
    """The groups of a ``samples`` folder, attempt by attempt, in the order in which they were written.

    A run that was killed and went on from a checkpoint does the steps behind that checkpoint again. What an earlier
    attempt wrote of them is left out: all from the place on at which a later attempt begins. Lines without a whole
    number as step, epoch and batch, and shards without a header, are left out with a warning.

    Args:
        folder: ``<run_dir>/samples``; one that is being written to may be read as well.

    Yields:
        A dictionary for each group, its fields as ``orlaif.training.callbacks.KeepSamples`` lists them.

    Raises:
        ValueError: shards of another version of orlaif.
    """
    left_out: list[LeftOut] = []
    for located in locate_groups(folder, left_out):
        yield located.group
    if left_out:
        log.warning("%s", told(left_out))


def read_at(path: Path, offset: int) -> dict[str, Any] | None:
    """The group whose line begins at ``offset`` of a shard; None where it is gone."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            group = _value(file.readline())
            return group if isinstance(group, dict) else None
    except (FileNotFoundError, NotADirectoryError):
        return None


def told(left_out: list[LeftOut]) -> str:
    """One sentence: how many lines were left out, and where and why the first."""
    first, count = left_out[0], len(left_out)
    lines = "1 line that no run wrote so was" if count == 1 else f"{count} lines that no run wrote so were"
    return f"{lines} left out, the first at {first.path}, line {first.line}: {first.reason}"


def locate_groups(folder: str | Path, left_out: list[LeftOut] | None = None) -> Iterator[Located]:
    """As :func:`read_groups`, with the place of each; lines that are left out are appended to ``left_out``."""
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
        for located in _groups(folder, shard, left_out):
            if until is None or place_of(located.group) < until:
                yield located


def place_of(group: dict[str, Any]) -> tuple[int, int, int]:
    """Where in the run a group was made: optimizer step, epoch, and batch within the epoch."""
    return group["step"], group["epoch"], group["batch"]


def _groups(folder: Path, shard: Shard, left_out: list[LeftOut] | None = None) -> Iterator[Located]:
    """Of one shard, without its header and without a line that was cut off."""
    path = folder / shard.name
    wrong = left_out if left_out is not None else []
    try:
        file = path.open("rb")
    except FileNotFoundError:  # removed for a newer one since it was listed
        return
    with file:
        first = file.readline()
        header = _value(first)
        if header is None:  # killed before anything was written
            return
        version = header.get("orlaif_samples") if isinstance(header, dict) else None
        if version is None:
            wrong.append(LeftOut(path=path, line=1, reason="no header with orlaif_samples, so the shard is not read"))
            return
        if version != VERSION:
            raise ValueError(f"{path} is of another version of orlaif; this one reads {VERSION}")
        offset = len(first)
        for number, line in enumerate(file, 2):
            group = _value(line)
            if group is not None and (reason := _misplaced(group)):
                wrong.append(LeftOut(path=path, line=number, reason=reason))
            elif group is not None:
                yield Located(path=path, offset=offset, line=number, group=group)
            offset += len(line)


def _misplaced(group: Any) -> str | None:
    """Why it cannot be said where in the run a group was made; None where it can."""
    if not isinstance(group, dict):
        return "it must be an object"
    for name in ("step", "epoch", "batch"):
        if type(group.get(name)) is not int:
            said = repr(group[name])[:40] if name in group else "missing"
            return f"{name} is {said}; it must be a whole number"
    return None


def _value(line: bytes) -> Any:
    """What a line says; None for one that was cut off."""
    if not line.endswith(b"\n"):
        return None
    try:
        return json.loads(line, parse_constant=lambda name: None)
    except (ValueError, RecursionError):  # a cut-off line that a write of the same moment went behind, or no JSON
        return None
