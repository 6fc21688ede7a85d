"""Scoring: the official Video-MME reader case by case, hand-computed tables, and judges good and hostile."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orlaif.evaluation.grader import ChatGrader, read_object
from orlaif.evaluation.open_ended import OpenEndedSuite, read_verdict
from orlaif.evaluation.suite import ExactMatch, Suite, Table
from orlaif.evaluation.video_chatgpt import VideoChatGPTSuite
from orlaif.evaluation.video_mme import VideoMMESuite, official_letter
from orlaif.openai_client import ChatClient
from tests.oracles.server import ChatServer

TASKS = [f"task {i:02d}" for i in range(12)]
DURATIONS = ("short", "medium", "long")


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B", "B"),
        ("  C. a dog ", "C"),
        ("(D)", "D"),
        ("The best answer is B.", "B"),
        ("The correct answer is: C", "C"),
        ("The answer is A", "A"),
        ("The answer: A", "A"),
        ("Answer: D", "D"),
        ("Option: C", "C"),
        ("The correct option B", "B"),
        # two phrases run together, so that these stay, and their own capitals are read
        ("Best answer: C", "B"),
        ("Best option: C", "B"),
        ("The best option is C", "C"),
        ("The correct option is D", "D"),
        # case matters, and any capital A to D counts, wherever it stands
        ("b", ""),
        ("Both of them", "B"),
        ("Cats and dogs", "C"),
        ("answer: d", ""),
        ("I think that it is the second one", ""),
        ("", ""),
        ("E", ""),
        ("it shows that the man walks home and then he opens the door", ""),
        ("it shows that the man walks home and then he opens the Door", "D"),
    ],
)
def test_what_the_official_script_reads(response: str, letter: str) -> None:
    assert official_letter(response) == letter


def mme(task: str, duration: str, prediction: str, number: int) -> dict[str, Any]:
    tags = {
        "task_type": task,
        "duration": duration,
        "domain": f"domain {number % 6}",
        "sub_category": f"sub {number % 30}",
    }
    return {"id": str(number), "question": "q", "prediction": prediction, "answer": "A", "category": task, "tags": tags}


@pytest.fixture(scope="module")
def fixture() -> list[dict[str, Any]]:
    """12 tasks x 3 durations x 4 answers: task t has t % 5 right of 4, one unreadable in `long`, the rest wrong."""
    records = []
    for t, task in enumerate(TASKS):
        for duration in DURATIONS:
            right = t % 5 if t % 5 < 4 else 4
            answers = ["A"] * right + ["B"] * (4 - right)
            if duration == "long" and right < 4:
                answers[-1] = "no idea"
            records += [mme(task, duration, answer, len(records) + i) for i, answer in enumerate(answers)]
    return VideoMMESuite().grade(records)


def row(table: Table, label: str) -> dict[str, Any]:
    (found,) = (values for name, _, values in table.rows if name == label)
    return dict(zip(table.columns, found, strict=True))


def test_twelve_tasks_by_three_durations_by_hand(fixture: list[dict[str, Any]]) -> None:
    suite = VideoMMESuite()
    by_duration, by_task, by_domain, by_sub = suite.tables(fixture)
    # Right of 4 by task: 0 1 2 3 4 0 1 2 3 4 0 1, together 21 of 48 in each duration.
    assert row(by_duration, "short") == {
        "official %": pytest.approx(21 / 48),
        "strict %": pytest.approx(21 / 48),
        "n unreadable": 0,
    }
    # Ten tasks have fewer than 4 right: one answer of each is unreadable in `long`, and officially dropped.
    assert row(by_duration, "long") == {
        "official %": pytest.approx(21 / 38),
        "strict %": pytest.approx(21 / 48),
        "n unreadable": 10,
    }
    assert row(by_duration, "all") == {
        "official %": pytest.approx(63 / 134),
        "strict %": pytest.approx(63 / 144),
        "n unreadable": 10,
    }
    assert [label for label, _, _ in by_duration.rows] == ["short", "medium", "long", "all"]
    third = row(by_task, "task 03")  # 3 of 4
    assert third["short official %"] == third["short strict %"] == third["long strict %"] == 0.75
    assert third["long official %"] == 1.0
    assert third["all official %"] == pytest.approx(9 / 11)
    assert third["all strict %"] == pytest.approx(9 / 12)
    assert row(by_task, "task 00")["all official %"] == 0.0
    assert len(by_task.rows) == 12 + 1
    assert len(by_domain.rows) == 6 + 1
    assert len(by_sub.rows) == 30 + 1
    assert row(by_domain, "all")["medium strict %"] == pytest.approx(21 / 48)
    metrics = suite.metrics(fixture)
    assert metrics["accuracy"] == pytest.approx(63 / 144)
    assert metrics["accuracy_official"] == pytest.approx(63 / 134)
    assert metrics["unreadable_rate"] == pytest.approx(10 / 144)
    assert "| task 03 | 12 | 75.0 | 75.0 | 100.0 | 81.8 | 75.0 | 75.0 | 75.0 | 75.0 | 1 |" in by_task.markdown()


def qa(id: str, prediction: str, answer: str | None = "a dog", **more: Any) -> dict[str, Any]:
    record = {"id": id, "question": "Who runs?", "prediction": prediction, "category": "3", "tags": {}, **more}
    return record if answer is None else {**record, "answer": answer}


@pytest.mark.parametrize(
    ("suite", "record", "missing"),
    [
        (VideoMMESuite(), {"id": "7", "prediction": "A", "tags": {}}, "answer"),
        (VideoMMESuite(), {"id": "7", "prediction": "A", "answer": "A", "tags": {}}, "duration"),
        (VideoChatGPTSuite(ChatGrader(ChatClient("http://localhost/v1", "m"))), {"id": "7", "tags": {}}, "file"),
        (
            OpenEndedSuite(ChatGrader(ChatClient("http://localhost/v1", "m"))),
            {"id": "7", "question": "q", "prediction": "A", "tags": {}},
            "answer",
        ),
    ],
)
def test_the_wrong_data_is_named(suite: Suite, record: dict[str, Any], missing: str) -> None:
    with pytest.raises(ValueError, match=f"question '7' has no {missing}, which {type(suite).__name__} needs"):
        suite.grade([record])


def test_exact_match_leaves_out_what_has_no_reference() -> None:
    suite = ExactMatch()
    graded = suite.grade([qa("1", "Dog."), qa("2", "a black dog", category="4"), qa("3", "x", answer=None)])
    assert [record["scores"]["exact_match"] for record in graded] == [1.0, 0.0, None]
    assert suite.metrics(graded) == {
        "accuracy": 0.5,
        "token_f1": pytest.approx((1 + 2 / 3) / 2),
        "accuracy/3": 1.0,
        "accuracy/4": 0.0,
    }


def says(text: str) -> Any:
    return lambda request: text


def by_prediction(request: dict[str, Any]) -> Any:
    """A judge that likes dogs, and misbehaves on demand."""
    text = json.loads(request["messages"][-1]["content"].splitlines()[-1].removeprefix("Predicted answer: "))
    return {
        "a dog": '{"pred": "yes", "score": 5}',
        "a hound": "Sure! {'pred': 'yes', 'score': 4} Hope that helps.",
        "a cat": '{"pred": "no", "score": "1"}',
        "maybe": '{"pred": "maybe", "score": 3}',
        "nine": '{"pred": "yes", "score": 9}',
        "both": '{"pred": "yes", "score": 3} {"pred": "no", "score": 0}',
        "prose": "It is right.",
        "list": "[1, 2]",
        "half": '{"pred": "yes", "sco',
        "closed": None,
        "broken": (500, {}, "no"),
    }[text]


def test_a_judges_verdicts_and_failures_are_told_apart() -> None:
    good = ["a dog", "a hound", "a cat"]
    bad = ["maybe", "nine", "both", "prose", "list", "half", "closed", "broken"]
    with ChatServer(by_prediction) as server:
        suite = OpenEndedSuite(
            ChatGrader(ChatClient(server.url, "judge-1", max_retries=0), max_ungraded_rate=1.0), types=["activitynet"]
        )
        graded = suite.grade([qa(text, text) for text in good + bad])
    assert [record["scores"]["judged"] for record in graded] == [1.0, 1.0, 0.0] + [None] * 8
    assert [record["scores"]["score"] for record in graded[:3]] == [5.0, 4.0, 1.0]
    kinds = [record["verdict"]["ungraded"] for record in graded[3:]]
    assert kinds == ["unreadable"] * 6 + ["unanswered"] * 2
    metrics = suite.metrics(graded)
    assert metrics["judged_accuracy"] == pytest.approx(2 / 3)  # of those that were judged
    assert metrics["judged_score"] == pytest.approx(10 / 3)
    assert metrics["unreadable_rate"] == pytest.approx(6 / 11)
    assert metrics["unanswered_rate"] == pytest.approx(2 / 11)
    (table,) = suite.tables(graded)
    assert row(table, "all")["n unreadable"] == 6
    assert row(table, "all")["n unanswered"] == 2
    assert table.markdown().splitlines()[-1].endswith("| 2 | 6 |")
    assert [label for label, _, _ in table.rows] == ["yes/no", "all"]
    pinned = suite.about()["judge"]
    assert (pinned["model"], pinned["base_url"]) == ("judge-1", server.url)
    assert len(pinned["instructions_sha256"]) == 16


def test_without_a_judge_nobody_is_asked() -> None:
    suite = OpenEndedSuite()
    graded = suite.grade([qa("1", "a dog"), qa("2", "a cat")])
    assert suite.metrics(graded) == {"accuracy": 0.5, "token_f1": 0.5}
    assert suite.about()["judge"] is None
    (table,) = suite.tables(suite.grade([qa("1", "a dog"), qa("2", " ")]))
    assert row(table, "all") == {"accuracy %": 0.5, "token F1 %": 0.5, "n unreadable": 1}


def test_a_repeated_grading_asks_nothing(tmp_path: Any) -> None:
    records = [qa("1", "a dog"), qa("2", "a cat")]
    with ChatServer(by_prediction) as server:
        for _ in range(2):
            judge = ChatGrader(ChatClient(server.url, "m", cache_dir=str(tmp_path)))
            assert OpenEndedSuite(judge).metrics(OpenEndedSuite(judge).grade(records))["accuracy"] == 0.5
        assert len(server.requests) == 2
    replayed = ChatGrader(ChatClient(server.url, "m", cache_dir=str(tmp_path), replay=True))
    assert OpenEndedSuite(replayed).grade(records)[0]["scores"]["score"] == 5.0


@pytest.mark.parametrize("reply", ['{"pred": "yes"}', '{"pred": true, "score": 3}', '{"score": 3}', "{}", "5", ""])
def test_verdicts_that_are_none(reply: str) -> None:
    with pytest.raises(ValueError):
        read_verdict(reply)


def test_an_object_in_prose() -> None:
    assert read_object("I say {'a': 1}.") == {"a": 1}
    with pytest.raises(ValueError, match="2 objects"):
        read_object("{'a': 1} {'a': 2}")


def test_five_dimensions() -> None:
    """The generic answer is scored three times, the pair once, the lone one not at all."""

    def record(file: str, id: str) -> dict[str, Any]:
        return {**qa(id, f"prediction {id}"), "tags": {"file": file}}

    def reply(request: dict[str, Any]) -> str:
        told = request["messages"][0]["content"]
        marks = {"facts": 5, "complete": 4, "as a whole": 3, "order and timing": 2, "say the same": 1}
        (mark,) = (value for words, value in marks.items() if words in told)
        return json.dumps({"score": mark})

    records = [
        record("generic", "generic-1"),
        record("temporal", "temporal-1"),
        record("consistency", "consistency-1/1"),
        record("consistency", "consistency-1/2"),
        record("consistency", "consistency-2/1"),
    ]
    with ChatServer(reply) as server:
        suite = VideoChatGPTSuite(ChatGrader(ChatClient(server.url, "m")))
        graded = suite.grade(records)
        pair = next(r for r in server.requests if "say the same" in r["messages"][0]["content"])
    assert len(server.requests) == 5
    assert "prediction consistency-1/1" in pair["messages"][1]["content"]
    assert "prediction consistency-1/2" in pair["messages"][1]["content"]
    (table,) = suite.tables(graded)
    assert [(label, n, values[0]) for label, n, values in table.rows] == [
        ("correctness", 1, 5.0),
        ("detail", 1, 4.0),
        ("context", 1, 3.0),
        ("temporal", 1, 2.0),
        ("consistency", 2, 1.0),
    ]
    metrics = suite.metrics(graded)
    assert metrics["score"] == 3.0
    assert metrics["unreadable_rate"] == 0.0
    assert row(table, "consistency") == {"score (0-5)": 1.0, "n unanswered": 0, "n unreadable": 0, "n unasked": 1}
