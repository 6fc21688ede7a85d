"""Text from files: UTF-8, with or without a byte order mark; anything else is named by file and line, never guessed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_WIDE = (b"\xff\xfe", b"\xfe\xff")
_HALVES = re.compile("[\x00\ud800-\udfff]")


def text_lines(path: str, file: Any) -> Iterator[tuple[int, str | ValueError]]:
    """Numbered lines of an open binary file; one that is not UTF-8 comes as the ValueError that says so.

    Args:
        path: names the file in errors.
        file: binary.

    Raises:
        ValueError: the file is UTF-16 or UTF-32, of which no line can be read.
    """
    number = 0
    for content in file:
        _check_width(path, content)
        if not number:
            content = content.removeprefix(b"\xef\xbb\xbf")
        for raw in content.removesuffix(b"\n").removesuffix(b"\r").split(b"\r"):  # old Macs end lines with it alone
            number += 1
            yield number, _decoded(path, number, raw)


def whole_text(path: str, file: Any) -> str:
    """All of an open binary file as text; raises ValueError naming ``path`` and the line that is not UTF-8."""
    content = file.read()
    _check_width(path, content)
    content = content.removeprefix(b"\xef\xbb\xbf")
    try:
        return str(content, "utf-8")
    except UnicodeDecodeError as error:
        before = content.count(b"\n", 0, error.start)
        start = content.rfind(b"\n", 0, error.start) + 1
        end = content.find(b"\n", error.start)
        problem = _decoded(path, before + 1, content[start : end if end >= 0 else None])
        raise problem if isinstance(problem, ValueError) else error from error


def half_of_a_pair(value: Any) -> str | None:
    """The first half of a surrogate pair, or NUL, as JSON spells it, in the texts of a value; None where there is none.

    JSON can spell it (``"\\ud83d"``, an emoji that was cut), but it is no text: no tokenizer and no file takes it.
    """
    if isinstance(value, str):
        match = _HALVES.search(value)
        return f"\\u{ord(match.group()):04x}" if match else None
    parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    return next((half for half in map(half_of_a_pair, parts) if half is not None), None)


def check_texts(row: Any, where: str) -> None:
    """Raise ValueError, naming ``where`` and the field, for half of a surrogate pair or a NUL in a row."""
    fields = row.items() if isinstance(row, dict) else [("", row)]
    for name, value in fields:
        if (half := half_of_a_pair([name, value])) is not None:
            field = f"field {name!r}" if name and half_of_a_pair(name) is None else "a field"
            kind = "a NUL" if half == "\\u0000" else "half of a surrogate pair"
            raise ValueError(f"{where}: {field} has {half}, {kind}, which is no text")


def _check_width(path: str, content: bytes) -> None:
    if content.startswith(_WIDE) or b"\0" in content:  # which neither UTF-8 nor JSON needs
        raise ValueError(f"data file {path}: it is UTF-16 or UTF-32, or no text at all; save it as UTF-8")


def _decoded(path: str, number: int, raw: bytes) -> str | ValueError:
    try:
        return str(raw, "utf-8")
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        latin = str(raw[max(0, error.start - 10) : error.start + 10], "latin-1")
        return ValueError(
            f"{path}, line {number}: not UTF-8 (byte 0x{byte:02x} at {error.start + 1}; as Latin-1 it would read "
            f"{latin!r}); save the file as UTF-8"
        )
