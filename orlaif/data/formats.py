"""Questions about videos in the formats in which others publish them.

Each adapter is a :class:`~orlaif.data.datasets.RowDataset` over JSONL, JSON or Parquet; a broken row is a ValueError
that names file, line and field. Compared answers are in ``orlaif.data.preferences``, test sets in
``orlaif.data.benchmarks``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from orlaif.data.chat import Listed, chat_turns, marked_parts, prompt_of
from orlaif.data.datasets import RowDataset
from orlaif.data.rows import (
    built_from,
    find_video,
    id_field,
    join,
    object_row,
    refuse_others,
    refuse_unused,
    text_field,
    texts_field,
)
from orlaif.types import Prompt, Text, Turn, VideoPrompt

_TAG = r"<(video|image)>"
_LEADING, _TRAILING = re.compile(rf"\A(?:\s*{_TAG})+"), re.compile(rf"(?:{_TAG}\s*)+\Z")


def question_text(text: str, where: str) -> str:
    """A question without the ``<video>`` or ``<image>`` (once per frame) that stands for the video before or after it.

    Raises:
        ValueError: naming ``where``, for two videos, or such a tag within the text, which could mean either.
    """
    rest = _TRAILING.sub("", _LEADING.sub("", text))
    if len(re.findall("<video>", text)) - len(re.findall("<video>", rest)) > 1:
        raise ValueError(f"{where} has two videos or more, in {text!r}; a question is about one")
    if tag := re.search(_TAG, rest):
        raise ValueError(
            f"{where} has {tag.group()!r} within its text; it stands for the video only at its beginning or its end"
        )
    return rest.strip()


def spoken(row: dict[str, Any], name: str, where: str) -> Iterator[tuple[str, str, str]]:
    """The turns of LLaVA's conversation: where each stands, who speaks, and the text as it is written.

    Raises:
        ValueError: naming ``where`` and the field, where it is none that alternates.
    """
    value = row.get(name)
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where}: field {name!r} is {value!r}; it must be a list of turns")
    for place, turn in enumerate(value):
        speaker = ("human", "gpt")[place % 2]
        if not isinstance(turn, dict) or turn.get("from") != speaker or not isinstance(turn.get("value"), str):
            raise ValueError(f"{where}: field {name!r}, turn {place + 1} is {turn!r}; it must be from {speaker!r}")
        place_of = f"{where}: field {name!r}, turn {place + 1}"
        refuse_others(turn, place_of, ("from", "value"))
        yield place_of, speaker, turn["value"]


def marked_turns(row: dict[str, Any], name: str, where: str, listed: Listed) -> list[Turn]:
    """LLaVA's conversation as turns of parts, whose marks are ``listed``; raises ValueError as :func:`turns`."""
    said: list[Turn] = []
    for place_of, speaker, text in spoken(row, name, where):
        parts = marked_parts(text, listed) if speaker == "human" else [Text(text.strip())] if text.strip() else []
        if not any(isinstance(part, Text) for part in parts):
            raise ValueError(f"{place_of} has no text")
        said.append(Turn("user" if speaker == "human" else "assistant", tuple(parts)))
    listed.check(name)
    return said


def turns(row: dict[str, Any], name: str, where: str) -> list[tuple[str, str]]:
    """LLaVA's conversation ``[{"from": "human" | "gpt", "value": ...}, ...]`` as (speaker, text).

    Questions come without the tag that stands for the video; an answer keeps it, where it is text.

    Raises:
        ValueError: naming ``where`` and the field, where it is none that alternates, or a text is missing.
    """
    said = []
    for place_of, speaker, value in spoken(row, name, where):
        text = question_text(value, place_of) if speaker == "human" else value.strip()
        if not text:
            raise ValueError(f"{place_of} has no text")
        said.append((speaker, text))
    return said


def frame_list(row: dict[str, Any], where: str, root: str, fps: float) -> dict[str, Any]:
    """The fields of a Prompt whose video is VLM-RLAIF's list of ``images``."""
    frames = texts_field(row, "images", where, least=2)
    folder = frames[0].rsplit("/", 1)[0] if "/" in frames[0] else frames[0]
    return {
        "video": join(root, folder),
        "frames": tuple(join(root, frame) for frame in frames),
        "frames_fps": fps,
    }


class LLaVAConversations(RowDataset):
    """LLaVA-style rows ``id, video, conversations``, as LLaVA-Video and LLaVA-Hound write them.

    Each answer of a conversation is one prompt (``<id>``, then ``<id>#2``, ...), with what came before it as
    its history. Videos may be named without their extension. A row with ``image``, ``images`` or ``videos`` (an empty
    list, for text alone) names what the marks ``<image>`` and ``<video>`` of its turns stand for, in their order.
    """

    media_fields: tuple[str, ...] = ("video",)
    #: Fields besides those of the media that a row may have, and those of ``orlaif.data.rows.BOOKKEEPING``.
    other_fields: tuple[str, ...] = ("id", "conversations", "image", "images", "videos")

    def media(self, row: dict[str, Any], where: str, root: str) -> dict[str, Any]:
        """The fields of a Prompt that say what is seen."""
        return {"video": find_video(root, text_field(row, "video", where))}

    def parse_all(self, row: Any, where: str, video_root: str) -> Iterable[Prompt]:
        """One prompt for each answer of the row's conversation, with the turns before it as history."""
        row = object_row(row, where)
        refuse_unused(row, where, (*self.media_fields, *self.other_fields))
        if "images" not in self.media_fields and any(name in row for name in ("images", "image", "videos")):
            listed = Listed(row, where, video_root)
            said_parts = marked_turns(row, "conversations", where, listed)
            yield from every_answer(where, id_field(row, "id", where), said_parts, "conversations")
            return
        said = turns(row, "conversations", where)
        if len(said) % 2:
            raise ValueError(f"{where}: field 'conversations' ends with a question; it must end with an answer")
        name, media = id_field(row, "id", where), self.media(row, where, video_root)
        pairs = [(said[i][1], said[i + 1][1]) for i in range(0, len(said), 2)]
        for place, (question, answer) in enumerate(pairs):
            unique = name if place == 0 else f"{name}#{place + 1}"
            history = tuple(pairs[:place])
            yield built_from(where, VideoPrompt, id=unique, question=question, answer=answer, history=history, **media)


class VLMRLAIFInstructions(LLaVAConversations):
    """VLM-RLAIF's SFT file (Ahn et al. 2024): ``id, conversations, images``, frames as a list of pictures.

    Args:
        path: a JSONL, JSON or Parquet file.
        video_root: folder of the pictures; by default that of ``path``.
        fps: pictures per second of video, which the file does not say.
    """

    media_fields = ("images", "video")  # which it may name as well: the pictures are taken from it
    #: LLaVA-RLHF, whose files these follow, has the last ones for a reward model of its kind.
    other_fields = (
        *("id", "uid", "conversations", "caption", "captions", "caption_type"),
        *("hallucination", "flip", "length_bonus", "factual_prompt"),
    )

    def __init__(self, path: str, video_root: str | None = None, fps: float = 1.0) -> None:
        super().__init__(path, video_root)
        self.fps = fps

    def media(self, row: dict[str, Any], where: str, root: str) -> dict[str, Any]:
        """Fields of the prompt that name the row's media: a list of frames at ``fps``."""
        return frame_list(row, where, root, self.fps)


class VLMRLAIFPrompts(VLMRLAIFInstructions):
    """VLM-RLAIF's RL file: as its SFT file with ``uid``; one question a row, and its answer if any."""

    def parse_all(self, row: Any, where: str, video_root: str) -> Iterable[Prompt]:
        """The only question of a row as a prompt, with its answer where there is one."""
        row = object_row(row, where)
        refuse_unused(row, where, (*self.media_fields, *self.other_fields))
        said = turns(row, "conversations", where)
        if len(said) > 2:
            raise ValueError(f"{where}: field 'conversations' has {len(said)} turns; a row asks one question")
        answer = said[1][1] if len(said) > 1 else None
        name = id_field(row, "uid" if "uid" in row else "id", where)
        media = self.media(row, where, video_root)
        yield built_from(where, VideoPrompt, id=name, question=said[0][1], answer=answer, **media)


class ChatMessages(RowDataset):
    """Chat messages whose parts are text, images and videos in their order, as TRL and others.

    ``{"id": ..., "messages": [{"role": "user", "content": [...]}, {"role": "assistant", "content": "..."}, ...]}`` with
    parts ``{"type": "video", "path": "x.mp4"}`` (or ``video`` or ``url``; ``image`` alike). A part without a file, and
    ``<image>`` or ``<video>`` in a text of a row with such lists, is the next one of ``images`` or ``videos``. Rows
    without ``id`` are numbered.

    Args:
        path: a JSONL, JSON or Parquet file, or a URL of one.
        video_root: folder for relative paths; by default the folder of ``path``.
        answers: ``last``: the last message of the assistant is the reference answer, if it is the last of all. ``all``:
            each message of the assistant is the answer of a prompt of its own (``<id>``, then ``<id>#2``, ...), with
            what came before it as its history: what supervised fine-tuning trains on.
    """

    def __init__(self, path: str, video_root: str | None = None, answers: Literal["last", "all"] = "last") -> None:
        super().__init__(path, video_root)
        if answers not in ("last", "all"):
            raise ValueError(f"ChatMessages.answers is {answers!r}; it must be 'last' or 'all'")
        self.answers = answers

    def parse_all(self, row: Any, where: str, video_root: str) -> Iterable[Prompt]:
        """One row of chat messages as a prompt, or as one for each answer."""
        row = object_row(row, where)
        refuse_unused(row, where, ("id", "messages", "images", "videos"))
        said = chat_turns(row, "messages", where, video_root)
        name = id_field(row, "id", where) if row.get("id") is not None else where.rsplit(" ", 1)[-1]
        if self.answers == "all":
            yield from every_answer(where, name, said, "messages")
        else:
            answer = said.pop().words if len(said) % 2 == 0 else None
            yield prompt_of(where, said, id=name, answer=answer)


def every_answer(where: str, name: str, said: Sequence[Turn], field: str) -> Iterator[Prompt]:
    """A prompt for each answer of a conversation, with the turns before it; ValueError where it ends otherwise."""
    if len(said) % 2:
        raise ValueError(f"{where}: field {field!r} ends with a question; it must end with an answer")
    for number, place in enumerate(range(1, len(said), 2), 1):
        unique = name if number == 1 else f"{name}#{number}"
        yield prompt_of(where, said[:place], id=unique, answer=said[place].words)
