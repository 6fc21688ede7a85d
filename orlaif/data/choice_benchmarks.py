"""The questions of published multiple-choice test sets, as prompts: MVBench, LVBench, and MMVU.

How their answers are scored is in ``orlaif.evaluation.multiple_choice``. Layouts and prompts are those of the files and
scripts that each class names. A prompt's ``answer`` is a letter, its ``tags`` are what the paper's table has.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from orlaif.data.datasets import RowDataset
from orlaif.data.rows import (
    Row,
    built_from,
    find_video,
    id_field,
    join,
    object_row,
    read_rows,
    refuse_unused,
    task_files,
    text_field,
    texts_field,
)
from orlaif.types import Prompt, VideoPrompt

#: MVBench's tasks: name of the file, and folder of its videos below ``video_root``.
MVBENCH_FOLDERS = {
    "action_sequence": "star/Charades_v1_480",
    "action_prediction": "star/Charades_v1_480",
    "action_antonym": "ssv2_video",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "unexpected_action": "FunQA_test/test",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_v1_480",
    "object_shuffle": "perception/videos",
    "moving_direction": "clevrer/video_validation",
    "action_localization": "sta/sta_video",
    "scene_transition": "scene_qa/video",
    "action_count": "perception/videos",
    "moving_count": "clevrer/video_validation",
    "moving_attribute": "clevrer/video_validation",
    "state_change": "perception/videos",
    "fine_grained_pose": "nturgbd",
    "character_order": "perception/videos",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/frames_fps3_hq",
    "counterfactual_inference": "clevrer/video_validation",
}
MVBENCH_INSTRUCTION = (
    "Carefully watch the video and pay attention to the cause and sequence of events, the detail and movement of "
    "objects, and the action and pose of persons. Based on your observations, select the best option that accurately "
    "addresses the question."
)
MVBENCH_FRAMES_FPS = 3.0


def lettered(texts: Sequence[str], form: str = "{}. {}") -> tuple[str, ...]:
    """Options with their letters, A first, as ``form`` puts letter and text."""
    return tuple(form.format(chr(ord("A") + place), text) for place, text in enumerate(texts))


def letter_field(row: dict[str, Any], name: str, where: str, number: int) -> str:
    """A field that must be the letter of one of ``number`` options; raises ValueError naming it and ``where``."""
    letters = [chr(ord("A") + place) for place in range(number)]
    if (value := text_field(row, name, where)) not in letters:
        raise ValueError(f"{where}: field {name!r} is {value!r}; it must be one of {', '.join(letters)}")
    return value


class MVBench(RowDataset):
    """MVBench (Li et al. 2024): a folder of one JSON file per task, such as ``action_sequence.json``.

    Rows ``{"video", "question", "candidates", "answer", "start", "end"}``, the last two in seconds where a segment is
    asked about; the answer is a candidate's text. Layout, folders of the videos and prompt are those of
    OpenGVLab/Ask-Anything, ``video_chat2/mvbench.ipynb``, without its beginning of the answer (``Best option:(``);
    ``episodic_reasoning`` has folders of pictures, three per second. A prompt's ``category`` is its task.

    Args:
        path: the folder; tasks that are not there are left out.
        video_root: folder of the videos' folders; by default the folder beside, ``video``.

    Raises:
        ValueError: on loading, for no task at all, or a broken row.
    """

    def __init__(self, path: str, video_root: str | None = None) -> None:
        super().__init__(path, os.path.join(os.path.dirname(path), "video") if video_root is None else video_root)

    def located(self) -> Iterator[Row]:
        """The rows of all tasks that are there, each with its task and its number."""
        for task, path in task_files(self.path, MVBENCH_FOLDERS):
            for number, (where, row) in enumerate(read_rows(path)):
                yield where, row if isinstance(row, ValueError) else (row, task, number)

    def parse(self, row: Any, where: str, video_root: str) -> Prompt:
        """One question as a prompt."""
        given, task, number = row
        row = object_row(given, where)
        # accurate_* and candidates' origins are notes of the annotators
        used = ("video", "question", "candidates", "answer", "start", "end", "fps", "question_id", "qid", "subtitle")
        refuse_unused(row, where, (*used, "accurate_start", "accurate_end"))
        candidates = texts_field(row, "candidates", where, least=2)
        if row.get("answer") not in candidates:
            raise ValueError(f"{where}: field 'answer' is {row.get('answer')!r}; it must be one of the candidates")
        options = lettered(candidates, "({}) {}")
        question = text_field(row, "question", where)
        lines = [MVBENCH_INSTRUCTION, f"Question: {question}", "Options:", *options, "Only give the best option."]
        return built_from(
            where,
            VideoPrompt,
            id=f"{task}-{number}",
            question="\n".join(lines),
            answer=chr(ord("A") + candidates.index(row["answer"])),
            options=options,
            category=task,
            **self._seen(row, where, task, video_root),
        )

    def _seen(self, row: dict[str, Any], where: str, task: str, video_root: str) -> dict[str, Any]:
        video = find_video(video_root, f"{MVBENCH_FOLDERS[task]}/{text_field(row, 'video', where)}")
        start, end = row.get("start"), row.get("end")
        for name, value in (("start", start), ("end", end)):
            if value is not None and not isinstance(value, int | float):
                raise ValueError(f"{where}: field {name!r} is {value!r}; it must be seconds")
        if task != "episodic_reasoning":
            return {"video": video, "start_s": start, "end_s": end}
        pictures = sorted(os.listdir(video)) if os.path.isdir(video) else []
        first = 0 if start is None else round(start * MVBENCH_FRAMES_FPS)
        last = len(pictures) if end is None else round(end * MVBENCH_FRAMES_FPS)
        frames = tuple(join(video, name) for name in pictures[first:last])
        return {"video": video, "frames": frames, "frames_fps": MVBENCH_FRAMES_FPS}


class LVBench(RowDataset):
    """LVBench (Wang et al. 2024): ``video_info.meta.jsonl``, a video with its questions per line.

    Lines ``{"key", "type", "qa": [{"uid", "question", "answer": "D", "question_type": [...], "time_reference"}]}``, the
    options within the question, ``(A) ...`` on a line each. Layout is that of THUDM/LVBench; it has no prompt, and this
    is the one of lmms-eval's task. ``tags`` are ``type`` (of the video) and ``question_type``, several joined by ``;``.

    Args:
        path: the file.
        video_root: folder of the videos, named by ``key``; by default that of ``path``.
    """

    def parse_all(self, row: Any, where: str, video_root: str) -> Iterable[Prompt]:
        """All questions about one video."""
        row = object_row(row, where)
        questions = row.get("qa")
        if not isinstance(questions, list):
            raise ValueError(f"{where}: field 'qa' is {questions!r}; it must be a list of questions")
        video, kind = find_video(video_root, text_field(row, "key", where)), text_field(row, "type", where)
        for place, one in enumerate(questions, 1):
            inner = f"{where}, question {place}"
            yield self._prompt(object_row(one, inner), inner, video, kind)

    def _prompt(self, row: dict[str, Any], where: str, video: str, kind: str) -> Prompt:
        refuse_unused(row, where, ("uid", "question", "answer", "question_type", "time_reference"))
        question = text_field(row, "question", where)
        options = tuple(re.findall(r"^\s*(\([A-Z]\) .*\S)", question, re.MULTILINE))
        if len(options) < 2:
            raise ValueError(
                f"{where}: field 'question' is {question!r}; its options must stand on a line each, as (A)"
            )
        return built_from(
            where,
            VideoPrompt,
            id=id_field(row, "uid", where),
            video=video,
            question=f"{question}\nAnswer the question with the option letter.",
            answer=letter_field(row, "answer", where, len(options)),
            options=options,
            category=kind,
            tags={"type": kind, "question_type": "; ".join(texts_field(row, "question_type", where))},
        )


class MMVU(RowDataset):
    """MMVU (Zhao et al. 2025): ``validation.json``, multiple-choice and open-ended questions of 27 subjects.

    Rows ``{"id", "video": <URL>, "question_type": "multiple-choice" | "open-ended", "metadata": {"subject"},
    "question", "choices": {"A": ...}, "answer"}``. Layout and prompt (that of direct answers) are those of
    yale-nlp/MMVU, ``utils/constant.py``. ``tags`` are ``question_type`` and ``subject``, which is the ``category`` too;
    open-ended questions have no ``options``.

    Args:
        path: the file.
        video_root: the downloaded folder ``videos``, with one folder per subject; by default that beside the file.
    """

    def __init__(self, path: str, video_root: str | None = None) -> None:
        super().__init__(path, os.path.join(os.path.dirname(path), "videos") if video_root is None else video_root)

    def parse(self, row: Any, where: str, video_root: str) -> Prompt:
        """One question as a prompt."""
        row = object_row(row, where)
        used = ("video", "youtube_url", "question_type", "metadata", "question", "choices", "answer")
        refuse_unused(row, where, used)
        kind = text_field(row, "question_type", where)
        if kind not in ("multiple-choice", "open-ended"):
            raise ValueError(f"{where}: field 'question_type' is {kind!r}; it must be multiple-choice or open-ended")
        several = kind == "multiple-choice"
        choices = object_row(row.get("choices"), f"{where}, choices") if several else {}
        letters = [chr(ord("A") + place) for place in range(len(choices))]
        if sorted(choices) != letters:
            raise ValueError(f"{where}: field 'choices' has the keys {list(choices)}; they must be {letters}")
        texts = [text_field(choices, letter, f"{where}, choices") for letter in letters]
        end = "Answer directly with the option letter from the given choices."
        if not several:
            end = "Directly output the final short answer."
        lines = [f"Question: {text_field(row, 'question', where)}", *lettered(texts, "{}: {}")]
        subject = text_field(object_row(row.get("metadata"), f"{where}, metadata"), "subject", where)
        return built_from(
            where,
            VideoPrompt,
            id=id_field(row, "id", where),
            video=find_video(video_root, "/".join(text_field(row, "video", where).split("/")[-2:])),
            question="\n".join([*lines, "", f"Do not generate any intermediate reasoning process. {end}"]),
            answer=letter_field(row, "answer", where, len(texts)) if several else text_field(row, "answer", where),
            options=lettered(texts) if several else None,
            category=subject,
            tags={"question_type": kind, "subject": subject},
        )
