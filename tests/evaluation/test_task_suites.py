"""Suites of tasks: grades and tables by hand, and the recipes from end to end."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

from orlaif.demo.shapes import ShapesDataset
from orlaif.evaluation.answer_judge import read_correct
from orlaif.evaluation.graded_test import GradedTest
from orlaif.evaluation.grader import ChatGrader
from orlaif.evaluation.grounding import GroundingSuite
from orlaif.evaluation.multiple_choice import MultipleChoiceSuite, named_choice
from orlaif.openai_client import ChatClient
from orlaif.types import VideoPrompt
from tests.data.layouts import layout
from tests.evaluation.test_recipes import DATA, JUDGE, results_of
from tests.oracles.server import ChatServer


def answered(number: int, prediction: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"id": str(number), "question": "q", "prediction": prediction, "answer": answer, "tags": {}, **more}


def test_grounding_by_hand() -> None:
    said = ["10 - 20 s", "from 15 to 25", "12 to 20", "no idea", "20 - 10"]
    records = [answered(i, one, "10 - 20 s", category="kind") for i, one in enumerate(said)]
    suite = GroundingSuite()
    graded = suite.grade(records)
    assert [record["scores"]["tiou"] for record in graded] == pytest.approx([1.0, 1 / 3, 0.8, 0.0, 0.0])
    assert suite.metrics(graded) == pytest.approx(
        {"miou": (1 + 1 / 3 + 0.8) / 5, "r@0.3": 0.6, "r@0.5": 0.4, "r@0.7": 0.4, "unreadable_rate": 0.4}
    )
    (table,) = suite.tables(graded)
    assert table.columns == ("R@0.3 %", "R@0.5 %", "R@0.7 %", "mIoU %", "n unreadable")
    assert "| all | 5 | 60.0 | 40.0 | 40.0 | 42.7 | 2 |" in table.markdown()


def test_multiple_choice_by_hand() -> None:
    options = ["(A) a dog", "(B) a cat"]
    records = [
        answered(0, "**(B)**", "B", options=options, tags={"kind": "who; what"}),
        answered(1, "a dog", "B", options=options, tags={"kind": "who"}),
        answered(2, "no idea", "B", options=options, tags={"kind": "what"}),
        answered(3, "Dolly zoom.", "Dolly Zoom", tags={"kind": "free"}),
    ]
    suite = MultipleChoiceSuite("LVBench", by=["kind"])
    graded = suite.grade(records)
    assert [record["scores"] for record in graded] == [
        {"strict": 1.0, "unreadable": 0.0},
        {"strict": 0.0, "unreadable": 0.0},
        {"strict": 0.0, "unreadable": 1.0},
        {"strict": 1.0, "unreadable": 0.0},
    ]
    (table,) = suite.tables(graded)
    # A question of two kinds counts for both, and once for all.
    assert table.rows == (
        ("free", 1, (1.0, 0.0)),
        ("what", 2, (0.5, 1.0)),
        ("who", 2, (0.5, 0.0)),
        ("all", 4, (0.5, 1.0)),
    )
    assert suite.metrics(graded)["accuracy/what"] == 0.5
    with pytest.raises(ValueError, match="question '0' has no aspect"):
        MultipleChoiceSuite(by=["aspect"]).grade(records)


def test_data_that_cannot_be_graded_is_refused_before_it_is_asked() -> None:
    asked = VideoPrompt(id="q", video="v", question="?", answer="A", options=("A. x", "B. y"), tags={"kind": "k"})
    MultipleChoiceSuite(by=["category", "kind"]).check([asked, replace(asked, options=None)])
    with pytest.raises(ValueError, match=r"question 'q' has no aspect, which MultipleChoiceSuite needs"):
        MultipleChoiceSuite(by=["aspect"]).check([asked])
    with pytest.raises(ValueError, match=r"needs questions with options, and none of the 1 of data\.test has any"):
        MultipleChoiceSuite().check([replace(asked, options=None)])
    module = MagicMock()
    module.trainer.datamodule.questions.return_value = [asked]
    with pytest.raises(ValueError, match="has no aspect"):
        GradedTest(MultipleChoiceSuite(by=["aspect"])).setup(module)


def marks(request: dict[str, Any]) -> Any:
    """A judge that takes every zoom for right, and reads captions word by word."""
    text = request["messages"][-1]["content"]
    if text.startswith("The caption"):
        caption = json.loads(text.splitlines()[0].split(": ", 1)[1])
        return json.dumps({"answer": {"He runs.": "A", "He sits.": "B. sitting", "Odd.": "E"}.get(caption, "None.")})
    said = json.loads(text.splitlines()[-1].removeprefix("Predicted answer: "))
    if said == "down":
        return 500, {}, "no"
    return "yes!" if said == "mumble" else json.dumps({"answer": said, "correct": "zoom" in said or "second" in said})


def test_a_judge_grades_what_no_rule_can() -> None:
    options = ["A. a dog", "B. a cat"]
    probe = {"task": "captioning", "probe": "What is he doing?\nA. running\nB. sitting"}
    doing = ["A. running", "B. sitting"]
    records = [
        answered(0, "B", "B", options=options, tags={"task": "choice"}),  # by rule: not asked about
        answered(1, "A", "B", options=options, tags={"task": "choice"}),
        answered(2, "It is the second of those.", "B", options=options, tags={"task": "choice"}),
        answered(3, "", "B", options=options, tags={"task": "choice"}),  # nothing to ask about
        answered(4, "a zoom by a dolly", "Dolly Zoom", tags={"task": "open"}),
        answered(5, "mumble", "Dolly Zoom", tags={"task": "open"}),
        answered(6, "down", "Dolly Zoom", tags={"task": "open"}),
        *(
            answered(7 + i, said, "A. running", options=doing, tags=probe)
            for i, said in enumerate(["He runs.", "He sits.", "A blue sky.", "Odd."])
        ),
    ]
    with ChatServer(marks) as server:
        judge = ChatGrader(ChatClient(server.url, "m", max_retries=0), max_ungraded_rate=1.0)
        suite = MultipleChoiceSuite("Tasks", by=["task"], judge=judge)
        graded = suite.grade(records)
        assert len(server.requests) == 8
    assert [r["scores"]["judged"] for r in graded] == [1.0, 0.0, 1.0, 0.0, 1.0, None, None, 1.0, 0.0, 0.0, None]
    assert [r["scores"]["strict"] for r in graded] == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, None, None, None, None]
    (table,) = suite.tables(graded)
    assert table.columns == ("accuracy %", "by rule %", "n judged", "n unanswered", "n unreadable")
    assert table.rows == (
        ("captioning", 4, (pytest.approx(1 / 3), None, 4, 0, 1)),
        ("choice", 4, (0.5, 0.25, 1, 0, 1)),
        ("open", 3, (1.0, 0.0, 3, 1, 1)),
        ("all", 11, (0.5, pytest.approx(1 / 7), 8, 1, 3)),
    )
    assert suite.metrics(graded)["accuracy/choice"] == 0.5
    assert suite.metrics(graded)["unanswered_rate"] == pytest.approx(1 / 11)
    assert suite.about()["judge"]["model"] == "m"
    # Without a judge a caption has no score.
    free = MultipleChoiceSuite(by=["task"]).grade(records[-1:])
    assert free[0]["scores"] == {"strict": None, "unreadable": 0.0}


@pytest.mark.parametrize("reply", ['{"answer": "a dog"}', '{"correct": 1}', '{"correct": "maybe"}', "true", ""])
def test_marks_that_are_none(reply: str) -> None:
    with pytest.raises(ValueError):
        read_correct(reply)


@pytest.mark.parametrize(
    ("answer", "place"),
    [
        ("Caption B: He runs.", 1),
        ("caption b", 1),
        ("B", 1),
        ("He sits.", 0),
        ("Caption A.", 0),
        ("Neither.", None),
    ],
)
def test_captions_are_chosen_by_name_letter_or_text(answer: str, place: int | None) -> None:
    assert named_choice(answer, ["Caption A: He sits.", "Caption B: He runs."]) == place
    assert named_choice("Option 2", ["Option 1: He sits.", "Option 2: He runs."]) == 1


@pytest.mark.parametrize(
    ("name", "title", "asked"),
    [
        ("mvbench", "MVBench by category", 3),
        ("longvideobench", "LongVideoBench by duration group", 2),
        ("lvbench", "LVBench by question type", 2),
        ("mmvu", "MMVU by question type", 2),
        ("tempcompass", "TempCompass by task", 5),
        ("charades_sta", "Temporal grounding", 2),
    ],
)
def test_the_recipes(name: str, title: str, asked: int, tmp_path: Path, shapes: ShapesDataset, tiny_model: str) -> None:
    videos = tmp_path / "videos"
    for i, file in enumerate(
        ["v0.mp4", "v1.mp4", "v1_reverse.mp4", "Art/0.mp4", "Chemistry/0.mp4", "star/Charades_v1_480/v0.mp4"]
        + [f"clevrer/video_validation/v{i}.mp4" for i in (1, 2)]
    ):
        (videos / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(shapes[i].video, videos / file)
    path = layout(tmp_path, name)
    files = [f"{DATA}.path={path}", f"{DATA}.video_root={videos}"]
    fps = ["--data.init_args.sampling=orlaif.data.video.UniformSampling"] if name in FPS else []
    if name == "longvideobench":
        files.append(f"{DATA}.subtitles={tmp_path / 'subtitles'}")
    judged = name in ("mmvu", "tempcompass")
    with ChatServer(lambda request: '{"answer": "none", "correct": false}') as server:
        judge = [f"{JUDGE}.base_url={server.url}", f"{JUDGE}.cache_dir={tmp_path / 'cache'}"] if judged else []
        results = results_of(name, tmp_path / "run", tiny_model, *files, *judge, sampling=fps)
    assert ("judge" in results["about"]) == judged
    assert results["tables"][0]["title"] == title
    assert results["tables"][0]["columns"][-1] == "n unreadable"
    assert (results["about"]["asked"], results["about"]["answered"]) == (asked, asked)


FPS = ("tempcompass", "charades_sta")
