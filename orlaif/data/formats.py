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
from orlaif.data.rows import find_video, id_field, join, named, object_row, text_field, texts_field
from orlaif.types import VideoPrompt

_MEDIA = re.compile(r"<(?:video|image)>")


def turns(row: dict[str, Any], name: str, where: str) -> list[tuple[str, str]]:
    """LLaVA's conversation ``[{"from": "human" | "gpt", "value": ...}, ...]`` as (speaker, text), placeholders gone.

    Raises:
        ValueError: naming ``where`` and the field, where it is none that alternates, or a text is missing.
    """
    value = row.get(name)
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where}: field {name!r} is {value!r}; it must be a list of turns")
    found = []
    for place, turn in enumerate(value):
        speaker = ("human", "gpt")[place % 2]
        if not isinstance(turn, dict) or turn.get("from") != speaker or not isinstance(turn.get("value"), str):
            raise ValueError(f"{where}: field {name!r}, turn {place + 1} is {turn!r}; it must be from {speaker!r}")
        text = _MEDIA.sub("", turn["value"]).strip()
        if not text:
            raise ValueError(f"{where}: field {name!r}, turn {place + 1} has no text")
        found.append((speaker, text))
    return found


def frame_list(row: dict[str, Any], where: str, root: str, fps: float) -> dict[str, Any]:
    """The fields of a VideoPrompt whose video is VLM-RLAIF's list of ``images``."""
    frames = texts_field(row, "images", where, least=2)
    folder = frames[0].rsplit("/", 1)[0] if "/" in frames[0] else frames[0]
    return {
        "video": join(root, folder),
        "frames": tuple(join(root, frame) for frame in frames),
        "frames_fps": fps,
    }


class LLaVAConversations(RowDataset):
    """LLaVA-style rows ``id, video, conversations``, as LLaVA-Video and LLaVA-Hound write them.

    Each answer of a conversation is a prompt of its own (``<id>``, then ``<id>#2``, ...), with what came before it as
    its history. Videos may be named without their extension.
    """

    def media(self, row: dict[str, Any], where: str, root: str) -> dict[str, Any]:
        """The fields of a VideoPrompt that say what is seen."""
        return {"video": find_video(root, text_field(row, "video", where))}

    def parse_all(self, row: Any, where: str, video_root: str) -> Iterable[VideoPrompt]:
        """See :meth:`RowDataset.parse_all`."""
        row = object_row(row, where)
        said = turns(row, "conversations", where)
        if len(said) % 2:
            raise ValueError(f"{where}: field 'conversations' ends with a question; it must end with an answer")
        name, media = id_field(row, "id", where), self.media(row, where, video_root)
        pairs = [(said[i][1], said[i + 1][1]) for i in range(0, len(said), 2)]
        for place, (question, answer) in enumerate(pairs):
            own = name if place == 0 else f"{name}#{place + 1}"
            history = tuple(pairs[:place])
            yield named(where, VideoPrompt, id=own, question=question, answer=answer, history=history, **media)


class VLMRLAIFInstructions(LLaVAConversations):
    """VLM-RLAIF's SFT file (Ahn et al. 2024): ``id, conversations, images``, frames as a list of pictures.

    Args:
        path: a JSONL, JSON or Parquet file.
        video_root: folder of the pictures; by default that of ``path``.
        fps: pictures per second of video, which the file does not say.
    """

    def __init__(self, path: str, video_root: str | None = None, fps: float = 1.0) -> None:
        super().__init__(path, video_root)
        self.fps = fps

    def media(self, row: dict[str, Any], where: str, root: str) -> dict[str, Any]:
        """See :meth:`LLaVAConversations.media`."""
        return frame_list(row, where, root, self.fps)


class VLMRLAIFPrompts(VLMRLAIFInstructions):
    """VLM-RLAIF's RL file: as its SFT file with ``uid``; the first question of a row, and its answer if any."""

    def parse_all(self, row: Any, where: str, video_root: str) -> Iterable[VideoPrompt]:
        """See :meth:`RowDataset.parse_all`."""
        row = object_row(row, where)
        said = turns(row, "conversations", where)
        answer = said[1][1] if len(said) > 1 else None
        name = id_field(row, "uid" if "uid" in row else "id", where)
        media = self.media(row, where, video_root)
        yield named(where, VideoPrompt, id=name, question=said[0][1], answer=answer, **media)


class ChatMessages(RowDataset):
    """Chat messages with one ``{"type": "video", "path": "x.mp4"}`` part (or ``video`` or ``url``), as TRL and others.

    ``{"id": ..., "messages": [{"role": "user", "content": [...]}, {"role": "assistant", "content": "..."}, ...]}``; the
    last assistant's message is the reference answer, if it is the last. Rows without ``id`` are numbered.
    """

    def parse(self, row: Any, where: str, video_root: str) -> VideoPrompt:
        """See :meth:`RowDataset.parse`."""
        row = object_row(row, where)
        messages = row.get("messages")
        if not isinstance(messages, list) or not messages:
            raise ValueError(f"{where}: field 'messages' is {messages!r}; it must be a list of messages")
        videos: list[str] = []
        said: list[tuple[str, str]] = []
        for place, message in enumerate(messages):
            role = message.get("role") if isinstance(message, dict) else None
            if role == "system":
                raise ValueError(f"{where}: field 'messages' has a system message; say it as data.system_prompt")
            if role != ("user", "assistant")[place % 2]:
                raise ValueError(
                    f"{where}: field 'messages', message {place + 1} is of role {role!r}; user and assistant take turns"
                )
            text, found = words_and_videos(message.get("content"), f"{where}: field 'messages', message {place + 1}")
            said.append((role, text))
            videos += found
        if len(videos) != 1:
            raise ValueError(f"{where}: field 'messages' has {len(videos)} videos; a row has exactly one")
        answer = said.pop()[1] if said[-1][0] == "assistant" else None
        if len(said) % 2 == 0:
            raise ValueError(f"{where}: field 'messages' has no question")
        history = tuple((said[i][1], said[i + 1][1]) for i in range(0, len(said) - 1, 2))
        name = id_field(row, "id", where) if row.get("id") is not None else where.rsplit(" ", 1)[-1]
        video = join(video_root, videos[0])
        return named(where, VideoPrompt, id=name, video=video, question=said[-1][1], answer=answer, history=history)


def words_and_videos(content: Any, where: str) -> tuple[str, list[str]]:
    """Text and videos of a message's content, a text or a list of parts; raises ValueError naming ``where``."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise ValueError(f"{where} has a message whose content is {parts!r}")
    texts = [part["text"] for part in parts if part.get("type") == "text" and isinstance(part.get("text"), str)]
    sources = [part.get(key) for part in parts if part.get("type") == "video" for key in ("path", "video", "url")]
    text = " ".join(texts).strip()
    if not text:
        raise ValueError(f"{where} has no text")
    return text, [source for source in sources if isinstance(source, str)]
