"""The questions of published test sets of time, as prompts: Charades-STA (when?) and TempCompass (in which way?).

How their answers are scored is in ``orlaif.evaluation.grounding`` and ``orlaif.evaluation.multiple_choice``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from orlaif.data.datasets import RowDataset
from orlaif.data.rows import Row, built_from, find_video, object_row, open_file, task_files, text_field, whole_json
from orlaif.data.text_files import text_lines
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

    def located(self) -> Iterator[Row]:
        """The lines, each with its number."""
        with open_file(self.path) as file:
            for number, line in text_lines(self.path, file):
                if isinstance(line, ValueError):
                    yield f"{self.path}, line {number}", line
                elif line.strip():
                    yield f"{self.path}, line {number}", (line.strip(), number)

    def parse(self, row: Any, where: str, video_root: str) -> Prompt:
        """One moment as a prompt."""
        line, number = row
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
            video=find_video(video_root, match[1]),
            question=f"{self.instruction}{sentence}. Please return its start time and end time.",
            answer=f"{match[2]} - {match[3]} s",
        )


#: What TempCompass puts behind the question, by the task; a caption is asked for in the question itself.
TEMPCOMPASS_TASKS = {
    "multi-choice": "\nPlease directly give the best option:",
    "yes_no": "\nPlease answer yes or no:",
    "caption_matching": "\nPlease directly give the best option:",
    "captioning": "",
}


class TempCompass(RowDataset):
    """TempCompass (Liu et al. 2024): a folder of ``multi-choice.json``, ``yes_no.json``, ``caption_matching.json`` and
    ``captioning.json``.

    Files ``{<video>: {<aspect>: [{"question", "answer"}]}}``, the options within the question. Layout and prompts are
    those of llyx97/TempCompass, ``run_qwen2_vl.py``. A caption is graded by what it answers: ``options`` and ``answer``
    of such a prompt, and its tag ``probe``, are those of the first question about the same video and aspect in
    ``multi-choice.json``, as in ``eval_captioning.py``. A prompt's ``category`` is its aspect (action, speed, ...); its
    ``tags`` are ``aspect`` and ``task``.

    Args:
        path: the folder ``questions``; tasks that are not there are left out.
        video_root: folder of ``<video>.mp4``; by default ``videos`` beside ``path``.

    Raises:
        ValueError: on loading, a broken row, or a caption without its question.
    """

    def __init__(self, path: str, video_root: str | None = None) -> None:
        beside = os.path.join(os.path.dirname(os.path.normpath(path)), "videos")
        super().__init__(path, beside if video_root is None else video_root)

    def located(self) -> Iterator[Row]:
        """The questions of all tasks that are there, each with its task, video and aspect, and its number among theirs.

        Raises:
            ValueError: a file that is none.
        """
        self._probes: dict[tuple[str, str], Any] = {}
        for task, path in task_files(self.path, TEMPCOMPASS_TASKS):
            for video, aspects in _object_in(path).items():
                for aspect, rows in object_row(aspects, f"{path}, video {video}").items():
                    if not isinstance(rows, list):
                        raise ValueError(
                            f"{path}, video {video}: {aspect!r} is {rows!r}; it must be a list of questions"
                        )
                    if task == "multi-choice" and rows:
                        self._probes[video, aspect] = rows[0]
                    for number, row in enumerate(rows, 1):
                        yield f"{path}, video {video}, {aspect} {number}", (row, task, video, aspect, number)

    def parse(self, row: Any, where: str, video_root: str) -> Prompt:
        """One question as a prompt."""
        given, task, video, aspect, number = row
        question = text_field(object_row(given, where), "question", where)
        tags = {"aspect": aspect, "task": task}
        if task == "captioning":
            if (video, aspect) not in self._probes:
                raise ValueError(
                    f"{where}: multi-choice.json has no question about its {aspect}, which grades a caption"
                )
            given = object_row(self._probes[video, aspect], where)
            tags["probe"] = text_field(given, "question", where)
        options = ("yes", "no") if task == "yes_no" else tuple(tags.get("probe", question).splitlines()[1:])
        answer = text_field(given, "answer", where)
        if answer not in options:
            raise ValueError(f"{where}: field 'answer' is {answer!r}; it must be one of {', '.join(options)}")
        return built_from(
            where,
            VideoPrompt,
            id=f"{task}/{video}-{aspect}-{number}",
            video=find_video(video_root, video),
            question=question + TEMPCOMPASS_TASKS[task],
            answer=answer,
            options=options,
            category=aspect,
            tags=tags,
        )


def _object_in(path: str) -> dict[str, Any]:
    """The JSON object that a file is; raises ValueError where it is none."""
    return object_row(whole_json(path), f"data file {path}")
