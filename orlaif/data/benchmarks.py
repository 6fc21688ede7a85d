"""The questions of published test sets, as prompts: Video-MME, open-ended video QA, and Video-ChatGPT's dimensions.

How their answers are scored is in ``orlaif.evaluation``. Broken rows are ValueErrors that name file, line and field.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

from orlaif.data.datasets import RowDataset
from orlaif.data.rows import (
    Row,
    built_from,
    find_video,
    folder_of,
    id_field,
    object_row,
    read_rows,
    refuse_unused,
    text_field,
    texts_field,
)
from orlaif.data.text_files import whole_text
from orlaif.types import Prompt, VideoPrompt

VIDEO_MME_INSTRUCTION = (
    "Select the best answer to the following multiple-choice question based on the video. Respond with only the letter "
    "(A, B, C, or D) of the correct option."
)
SUBTITLES_HEADER = "This video's subtitles are listed below:"
_STAMP = re.compile(r"^\s*(\d+):(\d\d):(\d\d)[,.](\d+)\s*-->")
_TAG = re.compile(r"<[^>]*>")
#: ``response`` is what a model has said, where the official template has been filled in.
_MME_FIELDS = (
    *("question_id", "videoID", "question", "options", "answer"),
    *("duration", "domain", "sub_category", "task_type", "questions", "response"),
)


def read_subtitles(path: str) -> list[tuple[float, str]]:
    """Seconds at which a line of an SRT file begins, and its text without tags, in order.

    Raises:
        ValueError: a line that is not UTF-8.
    """
    with open(path, "rb") as file:
        blocks = re.split(r"\n\s*\n", whole_text(path, file).replace("\r\n", "\n").strip())
    lines = []
    for block in blocks:
        rows = block.splitlines()
        for place, row in enumerate(rows):
            if stamp := _STAMP.match(row):
                hours, minutes, seconds, fraction = stamp.groups()
                start = 3600 * int(hours) + 60 * int(minutes) + int(seconds) + float(f"0.{fraction}")
                text = " ".join(_TAG.sub("", line).strip() for line in rows[place + 1 :]).strip()
                if text:
                    lines.append((start, text))
                break
    return lines


class VideoMME(RowDataset):
    """Video-MME (Fu et al. 2024): its flat Parquet (or JSONL) file, or its nested official JSON.

    A prompt's ``category`` is its task type; its ``tags`` are ``duration``, ``domain``, ``sub_category`` and
    ``task_type``; its ``answer`` is a letter.

    Args:
        path: the file.
        video_root: folder of ``<videoID>.mp4``; by default that of ``path``.
        subtitles: folder of ``<videoID>.srt``; None asks without subtitles. A video without such a file is asked
            without, as officially.
        instruction: goes before the question.

    Raises:
        ValueError: on loading, also where ``subtitles`` is no folder.
    """

    def __init__(
        self,
        path: str,
        video_root: str | None = None,
        subtitles: str | None = None,
        instruction: str = VIDEO_MME_INSTRUCTION,
    ) -> None:
        super().__init__(path, video_root)
        self.subtitles, self.instruction = subtitles, instruction

    def load(self) -> None:
        """Read and check the whole file."""
        if self.subtitles is not None and not os.path.isdir(self.subtitles):
            raise ValueError(f"VideoMME.subtitles is {self.subtitles!r}; it must be a folder of .srt files")
        super().load()

    def parse_all(self, row: Any, where: str, video_root: str) -> Iterable[Prompt]:
        """Prompts of one row: of each entry of ``questions`` where the file is nested, else the row's only one."""
        row = object_row(row, where)
        if "questions" not in row:
            yield self._prompt(row, where, video_root)
            return
        questions = row["questions"]
        if not isinstance(questions, list):
            raise ValueError(f"{where}: field 'questions' is {questions!r}; it must be a list")
        for place, question in enumerate(questions, 1):
            inner = f"{where}, question {place}"
            yield self._prompt({**row, **object_row(question, inner)}, inner, video_root)

    def _prompt(self, row: dict[str, Any], where: str, root: str) -> Prompt:
        refuse_unused(row, where, _MME_FIELDS)
        options = texts_field(row, "options", where, least=2)
        answer = text_field(row, "answer", where)
        if answer not in [chr(ord("A") + i) for i in range(len(options))]:
            raise ValueError(f"{where}: field 'answer' is {answer!r}; it must be the letter of one of the options")
        names = ("duration", "domain", "sub_category", "task_type")
        tags = {name: text_field(row, name, where) for name in names}
        if tags["duration"] not in ("short", "medium", "long"):
            raise ValueError(f"{where}: field 'duration' is {tags['duration']!r}; it must be short, medium or long")
        # The nested file has no videoID; its videos are named by number.
        media = id_field(row, "videoID" if "videoID" in row else "video_id", where)
        return built_from(
            where,
            VideoPrompt,
            id=id_field(row, "question_id", where),
            video=find_video(root, media),
            question=self._text(text_field(row, "question", where), options, media),
            answer=answer,
            options=options,
            category=tags["task_type"],
            tags=tags,
        )

    def _text(self, question: str, options: tuple[str, ...], media: str) -> str:
        parts = [self.instruction, question, *options, "The best answer is:"]
        if self.subtitles is not None:
            path = os.path.join(self.subtitles, f"{media}.srt")
            lines = [text for _, text in read_subtitles(path)] if os.path.exists(path) else []
            if lines:
                parts = [SUBTITLES_HEADER, *lines, *parts]
        return "\n".join(parts)


class OpenEndedQA(RowDataset):
    """MSVD-QA, MSRVTT-QA and ActivityNet-QA: a file of questions and one of answers, joined by ``question_id``.

    Questions ``[{"video_name", "question", "question_id"}]``, answers ``[{"answer", "type", "question_id"}]``. A
    prompt's ``category`` is the answer's type.

    Args:
        path: the questions.
        answers: the answers.
        video_root: folder of the videos, named with or without extension; by default that of ``path``.
        prefix: of the files' names: ``v_`` for ActivityNet.
        instruction: goes behind the question.

    Raises:
        ValueError: on loading, also for a question without answer, or an answer without question.
    """

    def __init__(
        self,
        path: str,
        answers: str,
        video_root: str | None = None,
        prefix: str = "",
        instruction: str = "",
    ) -> None:
        super().__init__(path, video_root)
        self.answers, self.prefix, self.instruction = answers, prefix, instruction

    def read(self) -> Iterator[Prompt | ValueError]:
        """Prompts and errors of the questions; the file of answers is read first, each must have its question."""
        self._answers: dict[str, tuple[str, str | None]] = {}
        for where, row in read_rows(self.answers):
            try:
                if isinstance(row, ValueError):
                    raise row
                refuse_unused(object_row(row, where), where, ("question_id", "answer", "type"))
                name = id_field(row, "question_id", where)
                if name in self._answers:
                    raise ValueError(f"{where}: id {name!r} was used before")
                kind = row.get("type")
                self._answers[name] = (id_field(row, "answer", where), None if kind is None else str(kind))
            except ValueError as error:
                yield error
        asked = set()
        for prompt in super().read():
            if isinstance(prompt, Prompt):
                asked.add(prompt.id)
            yield prompt
        if left := [name for name in self._answers if name not in asked]:
            yield ValueError(f"{self.answers}: no question for {len(left)} answers, such as question_id {left[0]!r}")

    def parse(self, row: Any, where: str, video_root: str) -> Prompt:
        """One question as a prompt, with the answer of the same ``question_id``."""
        row = object_row(row, where)
        refuse_unused(row, where, ("question_id", "video_name", "question"))
        name = id_field(row, "question_id", where)
        if name not in self._answers:
            raise ValueError(f"{where}: field 'question_id' is {name!r}; {self.answers} has no answer to it")
        answer, kind = self._answers[name]
        question = text_field(row, "question", where)
        return built_from(
            where,
            VideoPrompt,
            id=name,
            video=find_video(video_root, self.prefix + text_field(row, "video_name", where)),
            question=f"{question} {self.instruction}".strip(),
            answer=answer,
            category=kind,
        )


DIMENSIONS = ("correctness", "detail", "context", "temporal", "consistency")


class VideoChatGPT(RowDataset):
    """The questions of Video-ChatGPT's benchmark (Maaz et al. 2023): ``video_name, Q, A``, or ``Q1, Q2, A``.

    The generic file serves correctness, detail and context alike, the temporal file one dimension; in the consistency
    file each row is two prompts, ``<n>/1`` and ``<n>/2``. ``tags`` have the ``file`` (generic, temporal, consistency).

    Args:
        generic: the generic questions, or None.
        temporal: the temporal ones, or None.
        consistency: the pairs, or None.
        video_root: folder of the videos, named without extension; by default that of the first file.

    Raises:
        ValueError: no file at all; on loading, a broken row.
    """

    def __init__(
        self,
        generic: str | None = None,
        temporal: str | None = None,
        consistency: str | None = None,
        video_root: str | None = None,
    ) -> None:
        self.files = {"generic": generic, "temporal": temporal, "consistency": consistency}
        first = next((path for path in self.files.values() if path is not None), None)
        if first is None:
            raise ValueError("VideoChatGPT needs one file or more: generic, temporal or consistency")
        super().__init__(first, video_root)

    def located(self) -> Iterator[Row]:
        """The rows of all given files, one after the other, each with its file and its number."""
        for file, path in self.files.items():
            for number, (where, row) in enumerate(() if path is None else read_rows(path), 1):
                yield where, row if isinstance(row, ValueError) else (row, file, number)

    def parse_all(self, row: Any, where: str, video_root: str) -> Iterable[Prompt]:
        """One question as a prompt; of the consistency file two."""
        given, file, number = row
        row = object_row(given, where)
        root = folder_of(self.files[file] or "") if self.video_root is None else video_root
        names = ("Q1", "Q2") if file == "consistency" else ("Q",)
        refuse_unused(row, where, ("video_name", *names, "A"))
        video, answer = find_video(root, text_field(row, "video_name", where)), text_field(row, "A", where)
        for name in names:
            prompt_id = f"{file}-{number}" + (f"/{name[1]}" if file == "consistency" else "")
            question = text_field(row, name, where)
            tags = {"file": file}
            yield built_from(where, VideoPrompt, id=prompt_id, video=video, question=question, answer=answer, tags=tags)
