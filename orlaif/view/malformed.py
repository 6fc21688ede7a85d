"""What is wrong with a group that is whole JSON and still not what a run writes: edited, or made by another program.

The page reads the fields below without a further look, so a group that lacks one of them is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_Check = tuple[str, Callable[[Any], bool]]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_text_or_null(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number_or_null(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _are(one: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(one, value))


def _are_numbers_or_null(value: Any) -> bool:
    return value is None or _are(_is_number_or_null)(value)


_WHOLE: _Check = ("a whole number", _is_whole)
_TEXT: _Check = ("a text", _is_text)
_TEXT_OR_NULL: _Check = ("a text or null", _is_text_or_null)
_NUMBER: _Check = ("a number or null", _is_number_or_null)
_NUMBERS: _Check = ("a list of numbers, or null", _are_numbers_or_null)
_OBJECT: _Check = ("an object", _is_object)
_OBJECTS: _Check = ("a list of objects", _are(_is_object))

_GROUP = {"step": _WHOLE, "epoch": _WHOLE, "batch": _WHOLE, "prompt": _OBJECT, "seconds": _OBJECT, "seen": _OBJECTS}
_GROUP |= {"failure": _TEXT_OR_NULL, "exchanges": _OBJECTS, "answers": _OBJECTS}
_PROMPT = {"id": _TEXT, "question": _TEXT, "answer": _TEXT_OR_NULL, "category": _TEXT_OR_NULL}
_ANSWER = {"text": _TEXT, "rank": _WHOLE, "score": _NUMBER, "advantage": _NUMBER, "kl": _NUMBER}
_ANSWER |= {"tokens": ("a list of texts", _are(_is_text)), "logps": _NUMBERS, "trainer_logps": _NUMBERS}
#: Fields that may be missing, which is as null.
_OPTIONAL = ("answer", "category")


def malformed(group: dict[str, Any]) -> str | None:
    """What is wrong with a group, naming field and value; None where nothing is."""
    if wrong := _wrong(group, _GROUP) or _wrong(group["prompt"], _PROMPT, "prompt."):
        return wrong
    for i, answer in enumerate(group["answers"]):
        if wrong := _wrong(answer, _ANSWER, f"answers[{i}]."):
            return wrong
        logps, trainer = answer["logps"], answer["trainer_logps"]
        if logps is not None and trainer is not None and len(logps) != len(trainer):
            return f"answers[{i}] has {len(logps)} logps and {len(trainer)} trainer_logps; there must be one a token"
    return None


def _wrong(values: dict[str, Any], fields: dict[str, _Check], of: str = "") -> str | None:
    for name, (kind, is_right) in fields.items():
        if name not in values and name not in _OPTIONAL:
            return f"{of}{name} is missing"
        if not is_right(values.get(name)):
            said = repr(values.get(name))
            return f"{of}{name} is {said if len(said) <= 40 else said[:40] + '...'}; it must be {kind}"
    return None
