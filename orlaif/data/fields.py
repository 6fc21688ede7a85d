"""Fields of the project's own rows, each with what it must be."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from orlaif.data.rows import built_from, join
from orlaif.types import Prompt, VideoPrompt

#: Those of a prompt that is said by its video and its question.
FIELDS = tuple(field.name for field in dataclasses.fields(Prompt) if field.name != "turns")
_REQUIRED = ("id", "video", "question")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _are_texts(value: Any, least: int = 1) -> bool:
    return isinstance(value, list) and len(value) >= least and all(map(_is_text, value))


def _is_turn(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(text, str) for text in value)


_TEXT: tuple[Callable[[Any], bool], str] = (_is_text, "a text that is not empty")
#: From a field to what its value must satisfy, and how that is said; the others are texts.
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "start_s": (_is_number, "a number of seconds"),
    "end_s": (_is_number, "a number of seconds"),
    "frames": (_are_texts, "a list of paths"),
    "frames_fps": (_is_number, "a number per second"),
    "history": (lambda value: isinstance(value, list) and all(map(_is_turn, value)), "a list of [question, answer]"),
    "tags": (
        lambda value: isinstance(value, dict) and all(isinstance(text, str) for text in value.values()),
        "an object of texts",
    ),
    "options": (lambda value: _are_texts(value, least=2), "a list of 2 or more texts"),
}


def parse_row(row: Any, where: str, video_root: str) -> Prompt:
    """One row of the project's own JSONL as a prompt.

    Args:
        row: the parsed JSON value; keys as the fields of :class:`~orlaif.types.Prompt`.
        where: file and line, for errors.
        video_root: folder that a relative ``video`` is resolved against.

    Raises:
        ValueError: naming ``where`` and the field.
    """
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a row must be a JSON object, found {type(row).__name__}")
    if unknown := sorted(set(row) - set(FIELDS)):
        raise ValueError(f"{where}: unknown field {unknown[0]!r}; known are {', '.join(FIELDS)}")
    for name in FIELDS:
        value, (holds, expected) = row.get(name), _RULES.get(name, _TEXT)
        if value is None:
            if name in _REQUIRED:
                raise ValueError(f"{where}: field {name!r} is missing or null")
        elif not holds(value):
            raise ValueError(f"{where}: field {name!r} is {value!r}; it must be {expected}")
    values = {name: value for name, value in row.items() if value is not None}
    values["video"] = join(video_root, row["video"])
    if "frames" in values:
        values["frames"] = tuple(join(video_root, frame) for frame in values["frames"])
    if "options" in values:
        values["options"] = tuple(values["options"])
    if "history" in values:
        values["history"] = tuple((question, answer) for question, answer in values["history"])
    return built_from(where, VideoPrompt, **values)
