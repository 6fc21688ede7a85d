"""Fields of the project's own rows, each with what it must be."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from orlaif.data.chat import chat_turns, prompt_of
from orlaif.data.rows import built_from, join
from orlaif.types import Prompt, VideoPrompt

#: Those of a prompt that is said by its video and its question.
FIELDS = tuple(field.name for field in dataclasses.fields(Prompt) if field.name != "turns")
_REQUIRED = ("id", "video", "question")
_BESIDE_MESSAGES = ("id", "answer", "options", "category", "tags")


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
        row: the parsed JSON value; keys as the fields of :class:`~orlaif.types.Prompt`, or ``messages`` of parts.
        where: file and line, for errors.
        video_root: folder that a relative ``video`` is resolved against.

    Raises:
        ValueError: naming ``where`` and the field.
    """
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a row must be a JSON object, found {type(row).__name__}")
    if row.get("messages") is not None:
        return _of_messages(row, where, video_root)
    if unknown := sorted(set(row) - set(FIELDS)):
        raise ValueError(f"{where}: unknown field {unknown[0]!r}; known are {', '.join(FIELDS)}")
    _check_fields(row, FIELDS, _REQUIRED, where)
    values = {name: value for name, value in row.items() if value is not None}
    values["video"] = join(video_root, row["video"])
    if "frames" in values:
        values["frames"] = tuple(join(video_root, frame) for frame in values["frames"])
    if "options" in values:
        values["options"] = tuple(values["options"])
    if "history" in values:
        values["history"] = tuple((question, answer) for question, answer in values["history"])
    return built_from(where, VideoPrompt, **values)


def _check_fields(row: dict[str, Any], names: Sequence[str], required: Sequence[str], where: str) -> None:
    """Raise ValueError for a field that is not what it must be, or one that is required and not there."""
    for name in names:
        value, (holds, expected) = row.get(name), _RULES.get(name, _TEXT)
        if value is None:
            if name in required:
                raise ValueError(f"{where}: field {name!r} is missing or null")
        elif not holds(value):
            raise ValueError(f"{where}: field {name!r} is {value!r}; it must be {expected}")


def _of_messages(row: dict[str, Any], where: str, video_root: str) -> Prompt:
    """A row that says its question by ``messages``, parts in their order; the assistant's last one is its answer."""
    media = ("messages", "images", "videos")
    if unknown := sorted(set(row) - {*_BESIDE_MESSAGES, *media}):
        known = ", ".join((*_BESIDE_MESSAGES, *media))
        raise ValueError(f"{where}: field {unknown[0]!r} is unknown beside 'messages'; known are {known}")
    _check_fields(row, _BESIDE_MESSAGES, ("id",), where)
    values = {name: row[name] for name in _BESIDE_MESSAGES if row.get(name) is not None}
    if "options" in values:
        values["options"] = tuple(values["options"])
    said = chat_turns(row, "messages", where, video_root)
    if len(said) % 2 == 0:
        if "answer" in values:
            raise ValueError(f"{where}: field 'answer' and the last of 'messages' are two answers; give one")
        values["answer"] = said.pop().words
    return prompt_of(where, said, **values)
