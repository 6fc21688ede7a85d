"""Compared answers, for training a preference ranker, from the formats in which others publish them.

Each is a JSONL file, read whole and checked first; a broken row is a ValueError that names file, line and field.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from orlaif.data.chat import Listed, chat_turns, content_parts, marked_parts
from orlaif.data.datasets import RowDataset
from orlaif.data.fields import parse_row
from orlaif.data.formats import VLMRLAIFInstructions, question_text, turns
from orlaif.data.rows import (
    built_from,
    find_video,
    id_field,
    join,
    object_row,
    refuse_others,
    refuse_unused,
    text_field,
)
from orlaif.prompt import user
from orlaif.types import PreferencePrompt, Prompt, Text, Turn, Video


class PreferenceJsonl(RowDataset):
    """The project's own format: a row of :class:`~orlaif.data.datasets.JsonlDataset` with ``answers`` and ``ranks``."""

    def parse(self, row: Any, where: str, video_root: str) -> PreferencePrompt:
        """One row as a prompt with its ranked answers."""
        rest = dict(object_row(row, where))
        answers, ranks = rest.pop("answers", None), rest.pop("ranks", None)
        if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
            raise ValueError(f"{where}: field 'answers' is {answers!r}; it must be a list of texts")
        if not isinstance(ranks, list) or not all(type(rank) is int and rank >= 0 for rank in ranks):
            raise ValueError(f"{where}: field 'ranks' is {ranks!r}; it must be a list of whole numbers, 0 = best")
        prompt = parse_row(rest, where, video_root)
        return built_from(where, PreferencePrompt, **vars(prompt), answers=tuple(answers), ranks=tuple(ranks))


class LLaVAHoundPreferences(RowDataset):
    """LLaVA-Hound's preference file (Zhang et al. 2024): ``id, video, prompt, chosen, rejected``, and more.

    Videos are named without an extension; the file that is there is taken.
    """

    #: ``answer`` is GPT's, from which the two were judged; the scores are those of the judgement.
    known_fields = ("id", "video", "prompt", "chosen", "rejected", "answer", "chosen_score", "rejected_score")

    def parse(self, row: Any, where: str, video_root: str) -> PreferencePrompt:
        """One row as a prompt with two answers: the chosen one is better than the rejected one."""
        row = object_row(row, where)
        refuse_unused(row, where, self.known_fields)
        return built_from(
            where,
            PreferencePrompt,
            id=text_field(row, "id", where),
            video=find_video(video_root, text_field(row, "video", where)),
            question=question_text(text_field(row, "prompt", where), f"{where}: field 'prompt'"),
            answers=(text_field(row, "chosen", where), text_field(row, "rejected", where)),
            ranks=(0, 1),
        )


class TRLPreferences(RowDataset):
    """TRL's ``prompt, chosen, rejected``, as texts with a ``video`` field, or as messages of parts.

    Messages: ``[{"role": "user", "content": [{"type": "video", "path": "x.mp4"}, {"type": "text", "text": "..."}]}]``.
    Rows without ``id`` are numbered.
    """

    #: The scores are those of the judgement, as TRL's own sets have them.
    known_fields = ("id", "video", "prompt", "chosen", "rejected", "images", "videos", "score_chosen", "score_rejected")

    def parse(self, row: Any, where: str, video_root: str) -> PreferencePrompt:
        """One row as a prompt with two answers; a prompt of messages keeps its turns as history."""
        row = object_row(row, where)
        refuse_unused(row, where, self.known_fields)
        if isinstance(row.get("prompt"), str):
            text = text_field(row, "prompt", where)
            listed = Listed({name: row.get(name) for name in ("images", "videos")}, where, video_root)
            said = [user(*(marked_parts(text, listed) if listed.given else (text,)))]
            listed.check("prompt")
        else:
            said = chat_turns(row, "prompt", where, video_root)
        if len(said) % 2 == 0:
            raise ValueError(f"{where}: field 'prompt' ends with the assistant; it must end with a question")
        shown = sum(len(turn.media) for turn in said)
        if row.get("video") is not None:
            video = Video(join(video_root, text_field(row, "video", where)))
            said[0], shown = user(video, *said[0].parts), shown + 1
        if shown == 0 or (shown > 1 and row.get("video") is not None):
            raise ValueError(f"{where}: {shown} videos or images in 'prompt' and 'video'; they must be in one of them")
        return built_from(
            where,
            PreferencePrompt,
            id=id_field(row, "id", where) if row.get("id") is not None else where.rsplit(" ", 1)[-1],
            turns=tuple(said),
            answers=tuple(_answer(row, name, where) for name in ("chosen", "rejected")),
            ranks=(0, 1),
        )


def _answer(row: dict[str, Any], name: str, where: str) -> str:
    """A field that is a text, or the one message of the assistant."""
    value = row.get(name)
    if isinstance(value, str):
        return text_field(row, name, where)
    if not isinstance(value, list) or len(value) != 1 or not isinstance(value[0], dict):
        raise ValueError(f"{where}: field {name!r} is {value!r}; it must be a text or a list of one message")
    if value[0].get("role", "assistant") != "assistant":
        raise ValueError(
            f"{where}: field {name!r} is a message of role {value[0]['role']!r}; it must be the assistant's"
        )
    refuse_others(value[0], f"{where}: field {name!r}", ("role", "content"))
    parts = content_parts(value[0].get("content"), f"{where}: field {name!r}", "")
    if not all(isinstance(part, Text) for part in parts):
        raise ValueError(f"{where}: field {name!r} shows something; an answer is text")
    return Turn("assistant", tuple(parts)).words


class VLMRLAIFRewards(VLMRLAIFInstructions):
    """VLM-RLAIF's reward data: its SFT rows with ``output_1``, ``output_2`` and ``preference``, the better one."""

    def parse_all(self, row: Any, where: str, video_root: str) -> Iterable[Prompt]:
        """One row as a prompt with both outputs, in the order that ``preference`` says."""
        row = object_row(row, where)
        compared = ("output_1", "output_2", "preference")
        refuse_unused(row, where, (*self.media_fields, *self.other_fields, *compared))
        said = turns(row, "conversations", where)
        if len(said) % 2 == 0:
            said = said[:-1]  # the answer to the last question is what is compared
        answers = []
        for name in ("output_1", "output_2"):
            value = row.get(name)
            if not isinstance(value, dict):
                raise ValueError(f"{where}: field {name!r} is {value!r}; it must be a turn with 'from' and 'value'")
            answers.append(text_field(value, "value", f"{where}: field {name!r}"))
        preference = row.get("preference")
        if preference not in (1, 2) or type(preference) is not int:
            raise ValueError(f"{where}: field 'preference' is {preference!r}; it must be 1 or 2, the better output")
        yield built_from(
            where,
            PreferencePrompt,
            id=id_field(row, "id", where),
            question=said[-1][1],
            history=tuple((said[i][1], said[i + 1][1]) for i in range(0, len(said) - 1, 2)),
            answers=tuple(answers),
            ranks=(0, 1) if preference == 1 else (1, 0),
            **self.media(row, where, video_root),
        )
