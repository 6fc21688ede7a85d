"""Questions about videos in the formats in which others publish them.

Each adapter is a :class:`~orlaif.data.datasets.RowDataset` over JSONL, JSON or Parquet; a broken row is a ValueError
that names file, line and field. Compared answers are in ``orlaif.data.preferences``, test sets in
``orlaif.data.benchmarks``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

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
from orlaif.types import Prompt, VideoPrompt

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


def turns(row: dict[str, Any], name: str, where: str) -> list[tuple[str, str]]:
    """LLaVA's conversation ``[{"from": "human" | "gpt", "value": ...}, ...]`` as (speaker, text).

    Questions come without the tag that stands for the video; an answer keeps it, where it is text.

    Raises:
        ValueError: naming ``where`` and the field, where it is none that alternates, or a text is missing.
    """
    value = row.get(name)
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where}: field {name!r} is {value!r}; it must be a list of turns")
    said = []
    for place, turn in enumerate(value):
        speaker = ("human", "gpt")[place % 2]
        if not isinstance(turn, dict) or turn.get("from") != speaker or not isinstance(turn.get("value"), str):
            raise ValueError(f"{where}: field {name!r}, turn {place + 1} is {turn!r}; it must be from {speaker!r}")
        place_of = f"{where}: field {name!r}, turn {place + 1}"
        refuse_others(turn, place_of, ("from", "value"))
        text = question_text(turn["value"], place_of) if speaker == "human" else turn["value"].strip()
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
    its history. Videos may be named without their extension.
    """

    media_fields: tuple[str, ...] = ("video",)
    #: Fields besides those of the media that a row may have, and those of ``orlaif.data.rows.BOOKKEEPING``.
    other_fields: tuple[str, ...] = ("id", "conversations")

    def media(self, row: dict[str, Any], where: str, root: str) -> dict[str, Any]:
        """The fields of a Prompt that say what is seen."""
        return {"video": find_video(root, text_field(row, "video", where))}

    def parse_all(self, row: Any, where: str, video_root: str) -> Iterable[Prompt]:
        """One prompt for each answer of the row's conversation, with the turns before it as history."""
        row = object_row(row, where)
        refuse_unused(row, where, (*self.media_fields, *self.other_fields))
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
    """Chat messages with one ``{"type": "video", "path": "x.mp4"}`` part (or ``video`` or ``url``), as TRL and others.

    ``{"id": ..., "messages": [{"role": "user", "content": [...]}, {"role": "assistant", "content": "..."}, ...]}``; the
    last assistant's message is the reference answer, if it is the last. Rows without ``id`` are numbered.
    """

    def parse(self, row: Any, where: str, video_root: str) -> Prompt:
        """One row of chat messages as a prompt: the last turn is the answer, where the assistant has it."""
        row = object_row(row, where)
        refuse_unused(row, where, ("id", "messages"))
        said, videos = talk(row, "messages", where)
        if len(videos) != 1:
            raise ValueError(f"{where}: field 'messages' has {len(videos)} videos; a row has exactly one")
        answer = said.pop() if len(said) % 2 == 0 else None
        history = tuple(zip(said[:-1:2], said[1::2], strict=True))
        name = id_field(row, "id", where) if row.get("id") is not None else where.rsplit(" ", 1)[-1]
        video = join(video_root, videos[0])
        return built_from(where, VideoPrompt, id=name, video=video, question=said[-1], answer=answer, history=history)


def talk(row: dict[str, Any], name: str, where: str) -> tuple[list[str], list[str]]:
    """What user and assistant say in turn, from a list of chat messages, and the videos of the user's messages.

    Raises:
        ValueError: naming ``where``, the field and the message, for anything else, which would be left out.
    """
    messages = row.get(name)
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{where}: field {name!r} is {messages!r}; it must be a list of messages")
    said: list[str] = []
    videos: list[str] = []
    for place, message in enumerate(messages):
        place_of = f"{where}: field {name!r}, message {place + 1}"
        role = message.get("role") if isinstance(message, dict) else None
        if role == "system":
            raise ValueError(f"{where}: field {name!r} has a system message; say it as data.system_prompt")
        if role != ("user", "assistant")[place % 2]:
            raise ValueError(f"{place_of} is of role {role!r}; user and assistant take turns")
        refuse_others(message, place_of, ("role", "content"))
        text, sources = words_and_videos(message.get("content"), place_of)
        if sources and role == "assistant":
            raise ValueError(f"{place_of} has a video; only the user shows one")
        said.append(text)
        videos += sources
    return said, videos


def words_and_videos(content: Any, where: str) -> tuple[str, list[str]]:
    """Text and videos of a message's content, a text or a list of parts.

    Raises:
        ValueError: naming ``where``, without text, or for parts of another kind (images, audio), which would be left
            out.
    """
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise ValueError(f"{where} has a message whose content is {parts!r}")
    texts: list[str] = []
    videos: list[str] = []
    for part in parts:
        kind = part.get("type")
        if kind == "text" and isinstance(part.get("text"), str):
            refuse_others(part, f"{where}, a text part,", ("type", "text"))
            texts.append(part["text"])
        elif kind == "video":
            refuse_others(part, f"{where}, a video part,", ("type", "path", "video", "url"))
            sources = [part[key] for key in ("path", "video", "url") if part.get(key) is not None]
            if len(sources) != 1 or not isinstance(sources[0], str):
                raise ValueError(f"{where} has the video {part!r}; it must name one file, as path, video or url")
            videos += sources
        else:
            raise ValueError(f"{where} has a part of type {kind!r}; a prompt is made of text and one video")
    text = " ".join(texts).strip()
    if not text:
        raise ValueError(f"{where} has no text")
    return text, videos
