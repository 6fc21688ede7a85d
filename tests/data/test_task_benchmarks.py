"""Published layouts, read into prompts: what is asked, what is right, and what a broken row is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orlaif.data.choice_benchmarks import MMVU, LVBench, MVBench
from orlaif.data.datasets import RowDataset
from orlaif.data.longvideobench import LongVideoBench
from orlaif.data.temporal_benchmarks import CharadesSTA, TempCompass
from orlaif.types import Prompt, Text, Video
from tests.data.layouts import LONGVIDEOBENCH, layout


def test_mvbench(tmp_path: Path) -> None:
    first, second, third = MVBench(str(layout(tmp_path, "mvbench"))).prompts
    assert first.question.endswith(
        "accurately addresses the question.\nQuestion: What happened after the person took the food?\nOptions:\n"
        "(A) Ate it.\n(B) Sat down.\n(C) Put down the cup.\nOnly give the best option."
    )
    assert (first.id, first.answer, first.category) == ("action_sequence-0", "B", "action_sequence")
    assert (first.start_s, first.end_s) == (0.0, 1.5)
    assert first.video == str(tmp_path / "video" / "star/Charades_v1_480/v0.mp4")
    assert second.options == ("(A) 3", "(B) 0", "(C) 1", "(D) 2")
    assert (second.answer, third.answer, third.id, third.start_s) == ("A", "D", "moving_count-1", None)


def test_mvbench_has_pictures_of_episodes_at_three_per_second(tmp_path: Path) -> None:
    folder = tmp_path / "tvqa/frames_fps3_hq/s01"
    folder.mkdir(parents=True)
    for i in range(1, 13):
        (folder / f"{i:05d}.jpg").touch()
    row = {"video": "s01", "question": "Who?", "candidates": ["he", "she"], "answer": "she", "start": 1.0, "end": 3.0}
    (tmp_path / "episodic_reasoning.json").write_text(json.dumps([row]))
    (prompt,) = MVBench(str(tmp_path), video_root=str(tmp_path)).prompts
    assert prompt.frames is not None
    assert [Path(frame).name for frame in prompt.frames] == [f"{i:05d}.jpg" for i in range(4, 10)]
    assert (prompt.frames_fps, prompt.start_s) == (3.0, None)


def test_longvideobench(tmp_path: Path) -> None:
    first, second = LongVideoBench(str(layout(tmp_path, "longvideobench"))).prompts
    assert first.question == (
        "Question: In a white room, a man speaks. What does he hold?\nA. a cup\nB. a pen\nC. a phone\nD. a hat\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert (first.id, first.answer, first.video) == ("v0_0", "C", str(tmp_path / "videos" / "v0.mp4"))
    assert second.tags == {"duration_group": "60", "question_category": "T3O"}


def said(prompt: Prompt) -> list[str | float | None]:
    """Texts, and times of frames, of a prompt."""
    (turn,) = prompt.turns
    return [part.text if isinstance(part, Text) else part.at_s for part in turn.parts if not isinstance(part, Video)]


def test_longvideobench_with_subtitles_between_the_frames(tmp_path: Path) -> None:
    """2 s are 2 frames. "Look." covers the second; "This is a cup." has no frame within half a second."""
    path = layout(tmp_path, "longvideobench")
    dataset = LongVideoBench(str(path), subtitles=str(tmp_path / "subtitles"))
    first, second = dataset.prompts
    assert said(first)[:-1] == [0.0, "Hello.", 1.0]
    assert str(said(first)[-1]).startswith("Look.\nQuestion: In a white room")
    assert first.shows == "2 images"
    assert (first.answer, first.tags) == ("C", {"duration_group": "15", "question_category": "S2E"})
    # Texts next to each other are lines of one; the last ends with the video.
    assert said(second)[:-1] == [0.0, "One.", 1.0]
    assert str(said(second)[-1]).startswith("Two.\nQuestion:")
    with pytest.raises(ValueError, match="num_frames is 1; it must be 2 or more"):
        LongVideoBench(str(path), num_frames=1)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ([{"start": "0:1", "end": "0:2", "line": "x"}], "subtitle 1: field 'start' is '0:1'; it must be a time"),
        ([{"timestamp": 3, "text": "x"}], r"subtitle 1: field 'timestamp' is 3; it must be \[start, end\]"),
        ([{"begin": 0}], r"subtitle 1: it is \{'begin': 0\}; it must be start, end and line"),
        ({"a": 1}, r"it must hold a list of subtitles, found dict"),
        (None, r"v0_en.json: no such file"),
    ],
)
def test_broken_subtitles_are_named(lines: Any, told: str, tmp_path: Path) -> None:
    path, file = layout(tmp_path, "longvideobench"), tmp_path / "subtitles" / "v0_en.json"
    file.unlink() if lines is None else file.write_text(json.dumps(lines))
    with pytest.raises(ValueError, match=told):
        LongVideoBench(str(path), subtitles=str(tmp_path / "subtitles")).load()


def test_lvbench(tmp_path: Path) -> None:
    first, second = LVBench(str(layout(tmp_path, "lvbench"))).prompts
    assert first.question == (
        "What year appears?\n(A) 1636\n(B) 1366\n(C) 1363\n(D) 1633\nAnswer the question with the option letter."
    )
    assert first.options == ("(A) 1636", "(B) 1366", "(C) 1363", "(D) 1633")
    assert (first.id, first.answer, first.video) == ("12", "D", str(tmp_path / "v0"))
    assert second.tags == {"type": "cartoon", "question_type": "event understanding; entity recognition"}


def test_mmvu(tmp_path: Path) -> None:
    free, letter = MMVU(str(layout(tmp_path, "mmvu"))).prompts
    assert free.question == (
        "Question: Which technique is shown?\n\n"
        "Do not generate any intermediate reasoning process. Directly output the final short answer."
    )
    assert (free.answer, free.options, free.video) == ("Dolly Zoom", None, str(tmp_path / "videos/Art/0.mp4"))
    assert letter.question.startswith("Question: How many grams?\nA: 10.0\nB: 5.0\nC: 12.0\n")
    assert (letter.answer, letter.tags) == ("B", {"question_type": "multiple-choice", "subject": "Chemistry"})


def test_tempcompass(tmp_path: Path) -> None:
    prompts = {prompt.id: prompt for prompt in TempCompass(str(layout(tmp_path, "tempcompass"))).prompts}
    assert list(prompts) == [
        "multi-choice/v0-action-1",
        "multi-choice/v1_reverse-speed-1",
        "yes_no/v0-action-1",
        "caption_matching/v0-action-1",
        "captioning/v0-action-1",
    ]
    choice, fast, yes, caption, written = prompts.values()
    assert choice.question == ("What is he doing?\nA. running\nB. sitting\nPlease directly give the best option:")
    assert (choice.answer, choice.options) == ("A. running", ("A. running", "B. sitting"))
    assert (fast.video, fast.category) == (str(tmp_path / "videos" / "v1_reverse"), "speed")
    assert yes.question == "Is he running?\nPlease answer yes or no:"
    assert caption.options == ("Caption A: He sits.", "Caption B: He runs.")
    assert caption.tags == {"aspect": "action", "task": "caption_matching"}
    # A caption is graded by the first question about the same video and aspect.
    assert written.question.endswith("Write a caption.\nInformation A: {'action': 'running'}")
    assert written.tags["probe"] == "What is he doing?\nA. running\nB. sitting"
    assert (written.answer, written.options) == ("A. running", ("A. running", "B. sitting"))
    (tmp_path / "questions" / "multi-choice.json").unlink()
    with pytest.raises(ValueError, match=r"multi-choice.json has no question about its action, which grades a caption"):
        TempCompass(str(tmp_path / "questions")).load()


def test_charades_sta(tmp_path: Path) -> None:
    first, second = CharadesSTA(str(layout(tmp_path, "charades_sta")), instruction="When: ").prompts
    assert first.question == "When: person turn a light on. Please return its start time and end time."
    assert (first.id, first.answer, first.video) == ("charades-1", "24.3 - 30.4 s", str(tmp_path / "v0"))
    assert second.answer == "0.0 - 7.5 s"


@pytest.mark.parametrize(
    ("dataset", "name", "content", "said"),
    [
        (CharadesSTA, "a.txt", "v0 9.0 3.0##he runs\n", r"a.txt, line 1: it is 'v0 9.0 3.0##he runs'; it must be"),
        (
            LongVideoBench,
            "a.json",
            json.dumps([{**LONGVIDEOBENCH[0], "correct_choice": 4}]),
            r"a.json, row 1: field 'correct_choice' is 4; it must be the place of a candidate",
        ),
        (
            LVBench,
            "a.jsonl",
            '{"key": "v", "type": "tv", "qa": [{"uid": 1, "question": "Who?", "answer": "A", "question_type": ["x"]}]}',
            r"line 1, question 1: field 'question' is 'Who\?'; its options must stand on a line each",
        ),
        (MMVU, "a.json", '[{"id": "1", "question_type": "poll"}]', r"field 'question_type' is 'poll'; it must be"),
        (
            MMVU,
            "a.json",
            '[{"id": "1", "question_type": "multiple-choice", "choices": {"A": "x", "C": "y"}}]',
            r"field 'choices' has the keys \['A', 'C'\]; they must be \['A', 'B'\]",
        ),
    ],
)
def test_a_broken_row_is_named(dataset: type[RowDataset], name: str, content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=said):
        dataset(str(tmp_path / name)).load()


def test_choices_are_told_apart_by_their_letters_and_not_by_their_order(tmp_path: Path) -> None:
    path = layout(tmp_path, "mmvu")
    rows = json.loads(path.read_text())
    rows[1]["choices"] = {"B": "y", "A": "x"}
    path.write_text(json.dumps(rows))
    assert MMVU(str(path)).prompts[1].options == ("A. x", "B. y")


def test_a_folder_without_tasks_has_no_rows(tmp_path: Path) -> None:
    for dataset in (MVBench, TempCompass):
        with pytest.raises(ValueError, match="no rows"):
            dataset(str(tmp_path)).load()
