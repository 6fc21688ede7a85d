"""The questions of LongVideoBench (Wu et al. 2024): about a video, or about its frames with subtitles between them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from orlaif.data.choice_benchmarks import lettered
from orlaif.data.datasets import RowDataset
from orlaif.data.rows import built_from, find_video, id_field, object_row, text_field, texts_field, whole_json
from orlaif.types import Image, Prompt, Text, Turn, VideoPrompt


class LongVideoBench(RowDataset):
    """LongVideoBench: ``lvb_val.json``.

    Rows ``{"id", "video_path", "question", "candidates", "correct_choice": 2, "duration_group": 60,
    "question_category": "S2E", "duration": 12.3, "subtitle_path", "starting_timestamp_for_subtitles", ...}``. Layout
    and prompt are those of longvideobench/LongVideoBench, ``longvideobench_dataset.py``. ``tags`` are
    ``duration_group`` (longest seconds of the group) and ``question_category``, which is the ``category`` too.

    With ``subtitles`` a prompt is, as there, of single frames at equal steps from the first on, one a second at most,
    with each subtitle behind the frames up to its middle; a subtitle during which there is no frame is left out. The
    step is the duration by the number of frames, which the script rounds down to whole frames of the file.

    Args:
        path: the file.
        video_root: folder of the videos; by default ``videos`` beside the file.
        subtitles: folder of the subtitles' files; None asks about the video, sampled as the recipe says, without.
        num_frames: most frames of a prompt with subtitles.

    Raises:
        ValueError: fewer than 2 frames; on loading, a broken row or file of subtitles.
    """

    def __init__(
        self, path: str, video_root: str | None = None, subtitles: str | None = None, num_frames: int = 64
    ) -> None:
        super().__init__(path, os.path.join(os.path.dirname(path), "videos") if video_root is None else video_root)
        if num_frames < 2:
            raise ValueError(f"LongVideoBench.num_frames is {num_frames}; it must be 2 or more")
        self.subtitles, self.num_frames = subtitles, num_frames

    def parse(self, row: Any, where: str, video_root: str) -> Prompt:
        """One question as a prompt."""
        row = object_row(row, where)
        options = lettered(texts_field(row, "candidates", where, least=2))
        right = row.get("correct_choice")
        if type(right) is not int or not 0 <= right < len(options):
            raise ValueError(
                f"{where}: field 'correct_choice' is {right!r}; it must be the place of a candidate, from 0"
            )
        tags = {name: id_field(row, name, where) for name in ("duration_group", "question_category")}
        lines = [f"Question: {text_field(row, 'question', where)}", *options]
        question = "\n".join([*lines, "Answer with the option's letter from the given choices directly."])
        video = find_video(video_root, text_field(row, "video_path", where))
        about = {
            "id": id_field(row, "id", where),
            "answer": chr(ord("A") + right),
            "options": options,
            "category": tags["question_category"],
            "tags": tags,
        }
        if self.subtitles is None:
            return built_from(where, VideoPrompt, video=video, question=question, **about)
        lines_of = read_subtitles(os.path.join(self.subtitles, text_field(row, "subtitle_path", where)))
        begin = _seconds(row, "starting_timestamp_for_subtitles", where)
        duration = _seconds(row, "duration", where)
        number = max(1, min(self.num_frames, int(duration)))
        times = [duration / number * i for i in range(number)]
        spoken = [(s - begin, (duration if e is None else e) - begin, text) for s, e, text in lines_of]
        parts = [*interleaved(video, times, spoken), Text(question)]
        return built_from(where, Prompt, turns=(Turn("user", _on_lines(parts)),), **about)


def interleaved(video: str, times_s: list[float], subtitles: list[tuple[float, float, str]]) -> list[Image | Text]:
    """Frames of a video in their order, each subtitle behind those up to its middle.

    Args:
        video: path.
        times_s: of the frames, ascending.
        subtitles: start and end in seconds, and text, in order; one without a frame in it (or, if it is shorter than a
            second, within half a second of its middle) is left out.
    """
    parts: list[Image | Text] = []
    shown = 0
    for start, end, text in subtitles:
        middle = (start + end) / 2
        while shown < len(times_s) and times_s[shown] <= middle:
            parts.append(Image(video, at_s=times_s[shown]))
            shown += 1
        half = max(end - start, 1.0) / 2
        if any(middle - half < time < middle + half for time in times_s):
            parts.append(Text(text))
    return parts + [Image(video, at_s=time) for time in times_s[shown:]]


def _on_lines(parts: Sequence[Image | Text]) -> tuple[Image | Text, ...]:
    """Texts next to each other as one, on a line each."""
    joined: list[Image | Text] = []
    for part in parts:
        if joined and isinstance(part, Text) and isinstance(last := joined[-1], Text):
            joined[-1] = Text(f"{last.text}\n{part.text}")
        else:
            joined.append(part)
    return tuple(joined)


def read_subtitles(path: str) -> list[tuple[float, float | None, str]]:
    """Start and end in seconds (None: until the end of the video), and text, of the benchmark's own files.

    A list of ``{"start": "00:00:01.000", "end": ..., "line"}``, or of ``{"timestamp": [1.0, 2.5], "text"}``.

    Raises:
        ValueError: no such file, or none of these, by file and place.
    """
    rows = whole_json(path)
    if not isinstance(rows, list):
        raise ValueError(f"{path}: it must hold a list of subtitles, found {type(rows).__name__}")
    return [line for place, row in enumerate(rows, 1) if (line := _subtitle(row, f"{path}, subtitle {place}"))]


def _subtitle(row: Any, where: str) -> tuple[float, float | None, str] | None:
    """One subtitle; None for one without words."""
    row = object_row(row, where)
    text = row.get("text" if "timestamp" in row else "line")
    if not isinstance(text, str):
        raise ValueError(f"{where}: it is {row!r}; it must be start, end and line, or timestamp and text")
    if not text.strip():
        return None
    if "timestamp" not in row:
        return _clock(row, "start", where), _clock(row, "end", where), text.strip()
    span = row["timestamp"]
    if not isinstance(span, list) or len(span) != 2 or not isinstance(span[0], int | float):
        raise ValueError(f"{where}: field 'timestamp' is {span!r}; it must be [start, end] in seconds")
    return float(span[0]), float(span[1]) if isinstance(span[1], int | float) else None, text.strip()


def _clock(row: dict[str, Any], name: str, where: str) -> float:
    """Seconds of a field such as ``00:01:02.500``."""
    value = text_field(row, name, where)
    try:
        hours, minutes, seconds = value.split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except ValueError:
        raise ValueError(f"{where}: field {name!r} is {value!r}; it must be a time such as 00:01:02.500") from None


def _seconds(row: dict[str, Any], name: str, where: str) -> float:
    value: Any = row.get(name)
    if type(value) not in (int, float) or not value >= 0:
        raise ValueError(f"{where}: field {name!r} is {value!r}; it must be seconds, 0 or more")
    return float(value)
