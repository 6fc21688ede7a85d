"""The questions of published test sets of time, as prompts: Charades-STA (when?) and TempCompass (in which way?).

How their answers are scored is in ``orlaif.evaluation.grounding`` and ``orlaif.evaluation.multiple_choice``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import Any

from orlaif.data.datasets import RowDataset
from orlaif.data.json_objects import parse_json
from orlaif.data.rows import built_from, find_video, folder_of, object_row, open_file, text_field
from orlaif.data.text_files import text_lines, whole_text
from orlaif.types import Prompt, VideoPrompt

CHARADES_INSTRUCTION = (
    "Please find the visual event described by a sentence in the video, determining its starting and ending times. The "
    "format should be: 'The event happens in the start time - end time'. Now I will give you the textual sentence: "
)
_CHARADES = re.compile(r"(\S+) (\d+(?:\.\d+)?) (\d+(?:\.\d+)?)##(.*\S)")


class CharadesSTA(RowDataset):
    """Charades-STA (Gao et al. 2017): ``charades_sta_test.txt``, the moments of a sentence in a video.

    Lines ``3MSZA 24.3 30.4##person turn a light on.``: video, start and end in seconds, sentence. A prompt's
    ``answer`` is ``24.3 - 30.4 s``. The layout is jiyanggao/TALL's; the prompt is that of lmms-eval's task
    ``temporal_grounding_charades``, without its example. Ids are ``charades-<line>``.

    Args:
        path: the file.
        video_root: folder of ``<video>.mp4``; by default that of ``path``.
        instruction: goes before the sentence.
    """

    def __init__(self, path: str, video_root: str | None = None, instruction: str = CHARADES_INSTRUCTION) -> None:
        super().__init__(path, video_root)
        self.instruction = instruction

    def read(self) -> Iterator[Prompt | ValueError]:
        """Prompts and errors, line by line."""
        root = folder_of(self.path) if self.video_root is None else self.video_root
        self.places = {}
        with open_file(self.path) as file:
            for number, line in text_lines(self.path, file):
                where = f"{self.path}, line {number}"
                try:
                    if isinstance(line, ValueError):
                        raise line
                    if not line.strip():
                        continue
                    prompt = self._prompt(line.strip(), where, root, number)
                except ValueError as error:
                    yield error
                    continue
                self.places[prompt.id] = where
                yield prompt

    def _prompt(self, line: str, where: str, root: str, number: int) -> Prompt:
        match = _CHARADES.fullmatch(line)
        if match is None or float(match[2]) >= float(match[3]):
            raise ValueError(
                f"{where}: it is {line!r}; it must be '<video> <start> <end>##<sentence>', end behind start"
            )
        sentence = match[4].rstrip(".")
        return built_from(
            where,
            VideoPrompt,
            id=f"charades-{number}",
            video=find_video(root, match[1]),
            question=f"{self.instruction}{sentence}. Please return its start time and end time.",
            answer=f"{match[2]} - {match[3]} s",
        )


#: What TempCompass puts behind the question, by the task.
TEMPCOMPASS_TASKS = {
    "multi-choice": "Please directly give the best option:",
    "yes_no": "Please answer yes or no:",
    "caption_matching": "Please directly give the best option:",
}


class TempCompass(RowDataset):
    """TempCompass (Liu et al. 2024): a folder of ``multi-choice.json``, ``yes_no.json``, ``caption_matching.json``.

    Files ``{<video>: {<aspect>: [{"question", "answer"}]}}``, the options within the question. Layout and prompts are
    those of llyx97/TempCompass, ``run_qwen2_vl.py``. Its fourth task, captioning, is graded by a language model that
    answers from the caption, and is not here. A prompt's ``category`` is its aspect (action, speed, ...); its ``tags``
    are ``aspect`` and ``task``.

    Args:
        path: the folder ``questions``; tasks that are not there are left out.
        video_root: folder of ``<video>.mp4``; by default ``videos`` beside ``path``.
    """

    def __init__(self, path: str, video_root: str | None = None) -> None:
        beside = os.path.join(os.path.dirname(os.path.normpath(path)), "videos")
        super().__init__(path, beside if video_root is None else video_root)

    def read(self) -> Iterator[Prompt | ValueError]:
        """Prompts and errors of all tasks that are there; a file that is none raises ValueError."""
        self.places = {}
        for task in TEMPCOMPASS_TASKS:
            path = os.path.join(self.path, f"{task}.json")
            if not os.path.isfile(path):
                continue
            for where, name, aspect, row in self._rows(path):
                try:
                    prompt = self._prompt(object_row(row, where), where, task, name, aspect)
                except ValueError as error:
                    yield error
                    continue
                self.places[prompt.id] = where
                yield prompt

    def _rows(self, path: str) -> Iterator[tuple[str, str, str, Any]]:
        with open_file(path) as file:
            text = whole_text(path, file)
        try:
            videos = object_row(parse_json(text), f"data file {path}")
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {error.lineno}: not valid JSON ({error})") from error
        for video, aspects in videos.items():
            for aspect, rows in object_row(aspects, f"{path}, video {video}").items():
                if not isinstance(rows, list):
                    raise ValueError(f"{path}, video {video}: {aspect!r} is {rows!r}; it must be a list of questions")
                for place, row in enumerate(rows, 1):
                    yield f"{path}, video {video}, {aspect} {place}", f"{video}-{aspect}-{place}", aspect, row

    def _prompt(self, row: dict[str, Any], where: str, task: str, name: str, aspect: str) -> Prompt:
        assert self.video_root is not None
        question, answer = text_field(row, "question", where), text_field(row, "answer", where)
        options = ("yes", "no") if task == "yes_no" else tuple(question.splitlines()[1:])
        if answer not in options:
            raise ValueError(f"{where}: field 'answer' is {answer!r}; it must be one of {', '.join(options)}")
        return built_from(
            where,
            VideoPrompt,
            id=f"{task}/{name}",
            video=find_video(self.video_root, name.rsplit("-", 2)[0]),
            question=f"{question}\n{TEMPCOMPASS_TASKS[task]}",
            answer=answer,
            options=options,
            category=aspect,
            tags={"aspect": aspect, "task": task},
        )
