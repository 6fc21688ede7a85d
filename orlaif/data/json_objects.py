"""JSON whose objects say each of their keys once.

JSON allows a key to be there twice, and parsers then keep the last one in silence: half of what the row says is gone.
"""

from __future__ import annotations

import json
from typing import Any


class _Twice(dict[str, Any]):
    """An object in which ``key`` was given more than once."""

    key = ""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) == len(pairs):
        return value
    twice, seen = _Twice(value), set()
    for key, _ in pairs:
        if key in seen:
            twice.key = key
            break
        seen.add(key)
    return twice


def parse_json(text: str) -> Any:
    """A JSON value, for :func:`check_keys`; raises json.JSONDecodeError for what is none."""
    return json.loads(text, object_pairs_hook=_object)


def check_own_keys(value: Any, where: str) -> None:
    """As :func:`check_keys`, of a parsed value without what lies within it."""
    if isinstance(value, _Twice):
        raise ValueError(f"{where}: field {value.key!r} is given twice in one object; only one of them can be meant")


def check_keys(value: Any, where: str) -> None:
    """Raise ValueError, naming ``where`` and the key, for an object within a parsed value that has a key twice."""
    check_own_keys(value, where)
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        if isinstance(part, (dict, list)):
            check_keys(part, where)
