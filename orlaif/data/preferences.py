"""Compared answers, for training a preference ranker, from the formats in which others publish them.

Each is a JSONL file, read whole and checked first; a broken row is a ValueError that names file, line and field.
"""

from __future__ import annotations

import os
from typing import Any

from orlaif.data.datasets import JsonlDataset, parse_row
from orlaif.types import PreferencePrompt

_EXTENSIONS = (".mp4", ".mkv", ".webm", ".avi", ".mov")


def _text(row: dict[str, Any], name: str, where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: field {name!r} is {value!r}; it must be a text that is not empty")
    return value.strip()


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a row must be a JSON object, found {type(row).__name__}")
    return row


def _compared(where: str, **fields: Any) -> PreferencePrompt:
    try:
        return PreferencePrompt(**fields)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


class PreferenceJsonl(JsonlDataset):
    """The project's own format: a row of :class:`~orlaif.data.datasets.JsonlDataset` with ``answers`` and ``ranks``."""

    def parse(self, row: Any, where: str, video_root: str) -> PreferencePrompt:
        """See :meth:`JsonlDataset.parse`."""
        rest = dict(_object(row, where))
        answers, ranks = rest.pop("answers", None), rest.pop("ranks", None)
        if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
            raise ValueError(f"{where}: field 'answers' is {answers!r}; it must be a list of texts")
        if not isinstance(ranks, list) or not all(type(rank) is int and rank >= 0 for rank in ranks):
            raise ValueError(f"{where}: field 'ranks' is {ranks!r}; it must be a list of whole numbers, 0 = best")
        prompt = parse_row(rest, where, video_root)
        return _compared(where, **vars(prompt), answers=tuple(answers), ranks=tuple(ranks))


class LLaVAHoundPreferences(JsonlDataset):
    """LLaVA-Hound's preference file (Zhang et al. 2024): ``id, video, prompt, chosen, rejected``, and more.

    Videos are named without an extension; the file that is there is taken.
    """

    def parse(self, row: Any, where: str, video_root: str) -> PreferencePrompt:
        """See :meth:`JsonlDataset.parse`."""
        row = _object(row, where)
        stem = os.path.join(video_root, _text(row, "video", where))
        names = [stem, *(stem + extension for extension in _EXTENSIONS)]
        return _compared(
            where,
            id=_text(row, "id", where),
            video=next((name for name in names if os.path.isfile(name)), stem),
            question=_text(row, "prompt", where).replace("<video>", "").strip(),
            answers=(_text(row, "chosen", where), _text(row, "rejected", where)),
            ranks=(0, 1),
        )


class TRLPreferences(JsonlDataset):
    """TRL's ``prompt, chosen, rejected``, as texts with a ``video`` field, or as messages with a video part.

    Messages: ``[{"role": "user", "content": [{"type": "video", "path": "x.mp4"}, {"type": "text", "text": "..."}]}]``.
    Rows without ``id`` are numbered.
    """

    def parse(self, row: Any, where: str, video_root: str) -> PreferencePrompt:
        """See :meth:`JsonlDataset.parse`."""
        row = _object(row, where)
        question, videos = _words(row, "prompt", where)
        videos += [row["video"]] if isinstance(row.get("video"), str) else []
        if len(videos) != 1:
            raise ValueError(f"{where}: {len(videos)} videos in 'prompt' and 'video'; a row has exactly one")
        answers = tuple(_words(row, name, where)[0] for name in ("chosen", "rejected"))
        return _compared(
            where,
            id=str(row.get("id", where.rsplit(" ", 1)[-1])),
            video=os.path.join(video_root, videos[0]),
            question=question,
            answers=answers,
            ranks=(0, 1),
        )


def _words(row: dict[str, Any], name: str, where: str) -> tuple[str, list[str]]:
    """Text and videos of a field that is a text or a list of messages, of which the last one counts."""
    value = row.get(name)
    if isinstance(value, str):
        return _text(row, name, where), []
    if not isinstance(value, list) or not value or not all(isinstance(message, dict) for message in value):
        raise ValueError(f"{where}: field {name!r} is {value!r}; it must be a text or a list of messages")
    parts = value[-1].get("content")
    parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise ValueError(f"{where}: field {name!r} has a message whose content is {parts!r}")
    text = " ".join(part["text"] for part in parts if part.get("type") == "text" and isinstance(part.get("text"), str))
    sources = [part.get(key) for part in parts if part.get("type") == "video" for key in ("path", "video", "url")]
    if not text.strip():
        raise ValueError(f"{where}: field {name!r} has no text")
    return text.strip(), [source for source in sources if isinstance(source, str)]
