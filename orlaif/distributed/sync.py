"""What processes of one run tell each other besides tensors: their errors, and that they run the same thing.

A process that fails alone leaves the others waiting in a collective operation for ever. So whatever can fail on one
process only (a bad video, an oracle) is followed by :func:`raise_together`, and what must be the same everywhere (the
recipe, the data) is compared by :func:`check_same` before the first collective of the step depends on it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist

from orlaif.types import OracleError, VideoError

_NONE = "(missing)"


def num_processes() -> int:
    """How many processes this run has."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_index() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if num_processes() > 1 else 0


def local_process_index() -> int:
    """Which of this machine's processes this is, from 0: the launcher's ``LOCAL_RANK``, else its number in the run."""
    return int(os.environ.get("LOCAL_RANK", process_index()))


def exchange(value: Any) -> list[Any]:
    """The values of all processes, in their order. All must call it, and all get the same list.

    Args:
        value: anything that can be pickled.
    """
    if num_processes() == 1:
        return [value]
    values: list[Any] = [None] * num_processes()
    dist.all_gather_object(values, value)
    return values


def raise_together(error: Exception | None) -> None:
    """Raise on every process if it went wrong on any.

    Args:
        error: what went wrong on this process, or None. All must call.

    Raises:
        Exception: this process's own error; else, of the type of the lowest other process's, naming that process.
    """
    if num_processes() == 1:
        if error is not None:
            raise error
        return
    errors = exchange(None if error is None else _portable(error))
    if error is not None:
        raise error
    for index, other in enumerate(errors):
        if other is not None:
            raise _elsewhere(other, index)


def _portable(error: Exception) -> tuple[str, tuple[str, ...]]:
    """What an error is made of, without what may not be pickled."""
    if isinstance(error, VideoError):
        return "video", (error.path, error.cause)
    if isinstance(error, OracleError):
        return "oracle", (error.oracle, error.prompt_id, error.cause)
    said = f"{type(error).__name__}: {error}"
    if isinstance(error, ConnectionError):
        return "connection", (said,)
    return "value" if isinstance(error, ValueError) else "other", (said,)


def _elsewhere(portable: tuple[str, tuple[str, ...]], process: int) -> Exception:
    kind, words = portable
    if kind == "video":
        return VideoError(words[0], f"{words[1]} (on process {process})")
    if kind == "oracle":
        return OracleError(words[0], words[1], f"{words[2]} (on process {process})")
    kinds: dict[str, type[Exception]] = {"value": ValueError, "connection": ConnectionError}
    return kinds.get(kind, RuntimeError)(f"process {process} stopped: {words[0]}")


def check_same(what: str, values: Mapping[str, Any]) -> None:
    """Make sure that all processes have the same values. All must call.

    Args:
        what: is compared, for the message.
        values: by name; compared as they are.

    Raises:
        ValueError: on every process, naming the first process that differs from process 0, and up to five names with
            both values.
    """
    everyone = exchange(dict(values))
    first = everyone[0]
    for index, other in enumerate(everyone):
        pairs = {name: (first.get(name, _NONE), other.get(name, _NONE)) for name in sorted(first.keys() | other.keys())}
        names = [name for name, (here, there) in pairs.items() if here != there]
        if not names:
            continue
        shown = "; ".join(
            f"{name}: {pairs[name][0]} on process 0, {pairs[name][1]} on process {index}" for name in names[:5]
        )
        more = f"; and {len(names) - 5} more" if len(names) > 5 else ""
        raise ValueError(f"the processes of this run disagree on the {what}: {shown}{more}")


def flattened(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names; other values as they print."""
    if isinstance(tree, Mapping):
        flat: dict[str, Any] = {}
        for name, value in tree.items():
            flat |= flattened(value, f"{prefix}{name}.")
        return flat
    return {prefix.rstrip("."): repr(tree)}
