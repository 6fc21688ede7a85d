"""Conversations with images and videos as others write them: chat messages of parts, and texts with marks.

Parts and marks (``<image>``, ``<video>``) stand where the model sees what they name. A mark, or a part that names no
file, takes the next one of the row's ``images`` or ``videos``; what is left over, or lacking, is an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from orlaif.data.rows import built_from, find_video, join, refuse_others
from orlaif.types import Image, Prompt, Text, Turn, Video, VideoPrompt

_MARK = re.compile(r"<(image|video)>")
_LISTS = {"image": "images", "video": "videos"}
#: Of a part that names its file, and of a video's besides; an image may be the frame of a video at ``at_s``.
_SOURCES, _OF_VIDEO = ("path", "url"), ("start_s", "end_s", "frames", "frames_fps")
_VideoAt = Callable[[str, str], str]


class Listed:
    """The files that a row names in lists, handed out in their order.

    Args:
        row: with ``images`` and ``videos``, if any; also ``image`` and ``video``, each a text or a list.
        where: file and line, for errors.
        root: folder of relative paths.

    Raises:
        ValueError: naming ``where`` and the field, for a list of anything but texts.
    """

    def __init__(self, row: dict[str, Any], where: str, root: str) -> None:
        self.where = where
        self.files: dict[str, list[str]] = {}
        self.named: dict[str, str] = {}
        self.taken = {"image": 0, "video": 0}
        for kind, find in (("image", join), ("video", find_video)):
            names = [name for name in (_LISTS[kind], kind) if row.get(name) is not None]
            if len(names) > 1:
                raise ValueError(f"{where}: fields {names[0]!r} and {names[1]!r} say the same; give one of them")
            values = row[names[0]] if names else []
            self.named[kind] = names[0] if names else _LISTS[kind]
            values = [values] if isinstance(values, str) else values
            if not isinstance(values, list) or not all(isinstance(one, str) and one.strip() for one in values):
                raise ValueError(f"{where}: field {names[0]!r} is {values!r}; it must be a list of paths")
            self.files[kind] = [find(root, value) for value in values]

    @property
    def given(self) -> bool:
        """Whether there are any."""
        return any(self.files.values())

    def take(self, kind: str) -> str | None:
        """The next ``image`` or ``video``; None where there is none left."""
        number = self.taken[kind]
        self.taken[kind] += 1
        return self.files[kind][number] if number < len(self.files[kind]) else None

    def check(self, name: str) -> None:
        """Raise ValueError where the conversation in the field ``name`` has not asked for exactly what is listed."""
        for kind, files in self.files.items():
            if self.taken[kind] != len(files):
                raise ValueError(
                    f"{self.where}: field {self.named[kind]!r} names {len(files)}, and field {name!r} has "
                    f"{self.taken[kind]} places for {kind}s without a file"
                )


def marked_parts(text: str, listed: Listed) -> list[Text | Image | Video]:
    """A text with marks as parts: ``<image>`` and ``<video>`` are the next of what is listed."""
    parts: list[Text | Image | Video] = []
    for i, piece in enumerate(_MARK.split(text)):
        if i % 2:
            path = listed.take(piece) or f"(no {piece} listed)"  # told by the count
            parts.append(Image(path) if piece == "image" else Video(path))
        elif piece.strip():
            parts.append(Text(piece.strip()))
    return parts


def chat_turns(row: dict[str, Any], name: str, where: str, root: str, listed: Listed | None = None) -> list[Turn]:
    """A list of chat messages as turns, parts in their order; texts next to each other are one, with a space between.

    Args:
        row: that has them.
        name: of the field.
        where: file and line, for errors.
        root: folder of relative paths.
        listed: files for parts and marks that name none; by default those of the row's ``images`` and ``videos``.

    Raises:
        ValueError: naming ``where``, the field and the message, for anything else, which would be left out.
    """
    listed = listed or Listed({key: row.get(key) for key in ("images", "videos")}, where, root)
    messages = row.get(name)
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{where}: field {name!r} is {messages!r}; it must be a list of messages")
    said: list[Turn] = []
    for place, message in enumerate(messages):
        place_of = f"{where}: field {name!r}, message {place + 1}"
        role = message.get("role") if isinstance(message, dict) else None
        if role == "system":
            raise ValueError(f"{where}: field {name!r} has a system message; say it as data.system_prompt")
        if role != ("user", "assistant")[place % 2]:
            raise ValueError(f"{place_of} is of role {role!r}; user and assistant take turns")
        refuse_others(message, place_of, ("role", "content"))
        parts = content_parts(message.get("content"), place_of, root, listed if role == "user" else None)
        shown = [type(part).__name__.lower() for part in parts if not isinstance(part, Text)]
        if shown and role == "assistant":
            raise ValueError(
                f"{place_of} has {'an' if shown[0] == 'image' else 'a'} {shown[0]}; only the user shows one"
            )
        said.append(built_from(place_of, Turn, role=role, parts=tuple(parts)))
    listed.check(name)
    return said


def content_parts(content: Any, where: str, root: str, listed: Listed | None = None) -> list[Text | Image | Video]:
    """The parts of a message's content, a text or a list of parts.

    Raises:
        ValueError: naming ``where``, without text, or for parts of another kind (audio), which would be left out.
    """
    given = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(given, list) or not all(isinstance(part, dict) for part in given):
        raise ValueError(f"{where} has a message whose content is {given!r}")
    parts: list[Text | Image | Video] = []
    for part in given:
        kind = part.get("type")
        if kind == "text" and isinstance(part.get("text"), str):
            refuse_others(part, f"{where}, a text part,", ("type", "text"))
            text = part["text"].strip()
            marked = marked_parts(text, listed) if listed is not None and listed.given else [Text(text)] if text else []
            for one in marked:
                if parts and isinstance(one, Text) and isinstance(last := parts[-1], Text):
                    parts[-1] = Text(f"{last.text} {one.text}")
                else:
                    parts.append(one)
        elif kind in _LISTS:
            parts.append(_shown(part, kind, where, root, listed))
        else:
            raise ValueError(f"{where} has a part of type {kind!r}; a prompt is made of text, images and videos")
    if not any(isinstance(part, Text) for part in parts):
        raise ValueError(f"{where} has no text")
    return parts


def _shown(part: dict[str, Any], kind: str, where: str, root: str, listed: Listed | None) -> Image | Video:
    """An image or a video of a message."""
    article = "an" if kind == "image" else "a"
    of_video = _OF_VIDEO if kind == "video" else ("at_s",)
    refuse_others(part, f"{where}, {article} {kind} part,", ("type", kind, *_SOURCES, *of_video))
    sources = [part[key] for key in (kind, *_SOURCES) if part.get(key) is not None]
    if not sources and listed is not None and listed.files[kind]:
        path = listed.take(kind) or f"(no {kind} listed)"  # told by the count
    elif len(sources) == 1 and isinstance(sources[0], str):
        path = join(root, sources[0])
    else:
        raise ValueError(f"{where} has the {kind} {part!r}; it must name one file, as path, {kind} or url")
    about = {name: part[name] for name in of_video if part.get(name) is not None}
    for name, value in about.items():
        if name == "frames":
            if not isinstance(value, list) or not all(isinstance(one, str) and one.strip() for one in value):
                raise ValueError(f"{where} has a video whose 'frames' is {value!r}; it must be a list of paths")
            about[name] = tuple(join(root, frame) for frame in value)
        elif type(value) not in (int, float) or not math.isfinite(value):
            raise ValueError(f"{where} has {article} {kind} whose {name!r} is {value!r}; it must be a number")
    shown: Image | Video = built_from(where, Image if kind == "image" else Video, path=path, **about)
    return shown


def prompt_of(where: str, turns: Sequence[Turn], **fields: Any) -> Prompt:
    """The prompt of turns that end with a question; a VideoPrompt where it is about one video."""
    prompt: Prompt = built_from(where, Prompt, turns=tuple(turns), **fields)
    return VideoPrompt(**vars(prompt)) if prompt.video and not prompt.turns else prompt
