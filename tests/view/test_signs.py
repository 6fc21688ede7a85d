"""Signs of trouble are there where there is trouble, and show it."""

from __future__ import annotations

import random
from typing import Any

import pytest

from orlaif.view.signs import signs
from orlaif.view.summaries import kendall, summary
from tests.view.runs import answer, group


def value(groups: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(sign for sign in signs([summary(one) for one in groups]) if sign["name"] == name)


def healthy(step: int) -> dict[str, Any]:
    """Length, place and rank in no relation."""
    texts = ["a b", f"right {step}", "c d", "e"]
    ranks = [[1, 0, 2, 3], [3, 0, 1, 2], [2, 0, 3, 1], [3, 1, 0, 2]][step % 4]
    return group(step, f"p{step}", *(answer(text, rank) for text, rank in zip(texts, ranks, strict=True)))


def test_a_summary() -> None:
    one = summary(
        group(
            3,
            "p",
            answer("a long one", 0, trainer_logps=[-0.6, -1.5, -2.5]),
            answer("red", 1, trainer_logps=[-0.8]),
            answer("x y", -1, trainer_logps=[-0.5, -1.5]),
            reference="Red.",
        )
    )
    assert one == {
        "step": 3,
        "id": "p",
        "question": "What is in p?",
        "task": "what",
        "best": "a long one",
        "tied": False,
        "failed": False,
        "length": 2.0,
        "longest_best": 1.0,
        "first_best": 1.0,
        "agrees": -1.0,
        "kl": pytest.approx(0.1),
        "apart": pytest.approx((0.1 + 0 + 0 + 0.3 + 0 + 0) / 6),
        "overruled": True,
        "right": pytest.approx(1 / 3),
        "repeats": 0.0,
    }


def test_kendalls_tau() -> None:
    assert kendall([1, 2, 3], [1, 2, 3]) == 1
    assert kendall([1, 2, 3], [3, 2, 1]) == -1
    assert kendall([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / (2 * 3) ** 0.5)
    assert kendall([1, 1], [1, 2]) is None


def test_a_healthy_run_has_no_trouble_and_a_short_one_is_not_judged() -> None:
    groups = [healthy(step) for step in range(100)]
    assert [sign["name"] for sign in signs([summary(one) for one in groups]) if sign["trouble"]] == []
    assert {sign["value"] for sign in signs([summary(one) for one in groups[:8]])} == {None}
    assert {sign["value"] for sign in signs([])} == {None}


def test_answers_that_please_the_judge_and_nobody_else() -> None:
    """A run as SmolLM2 judged it: from sentences, some of them right, to one word over and over."""
    sober = [
        group(i, f"p{i}", answer(f"a cat runs {i}", 0), answer("it sleeps here", 1), reference="It sleeps here.")
        for i in range(50)
    ]
    babble = [
        group(i, f"p{i}", answer(f"yes {i} yes yes yes yes yes yes", 0), answer("yes " * 7, 1), reference="It sleeps.")
        for i in range(50, 100)
    ]
    repeated = value(sober + babble, "repetition")
    assert repeated["value"] == pytest.approx((3 / 6 + 4 / 5) / 2)
    assert value(sober + babble, "reference answers lost")["value"] == 0.5
    longer = value(sober + babble, "changing length")
    assert longer["value"] == pytest.approx(7.5 / 3.5 - 1)
    assert value(babble + sober, "changing length")["value"] == pytest.approx(1 - 7.5 / 3.5)
    for sign in (repeated, longer, value(sober + babble, "reference answers lost")):
        assert sign["trouble"]
        assert set(sign["groups"]) <= set(range(80, 100))
    assert not any(sign["trouble"] for sign in signs([summary(one) for one in sober]) if "lost" in sign["name"])
    assert value(babble + sober, "reference answers lost")["value"] == 0


def test_a_run_that_does_not_change_has_lost_nothing() -> None:
    """Groups in any order, of a run in which two in five answers are the reference answer."""
    false = 0
    for seed in range(200):
        drawn = random.Random(seed)
        groups = [
            group(
                i, f"p{i}", *(answer("red" if drawn.random() < 0.4 else "blue", j) for j in range(8)), reference="red"
            )
            for i in range(30)
        ]
        false += value(groups, "reference answers lost")["trouble"]
    assert false <= 5  # 48 with a limit of 0.05


def test_each_trouble_is_seen_and_shown() -> None:
    fine = [healthy(step) for step in range(100)]
    longer = [group(i, f"p{i}", answer("a", 1), answer("a b c", 0), answer("a b", 0)) for i in range(100)]
    assert value(longer, "rank follows length")["value"] > 0.8
    first = [group(i, f"p{i}", *(answer(f"{i} {j}", j) for j in range(3))) for i in range(100)]
    assert value(first, "rank follows place")["value"] == 1
    tied = [group(i, f"p{i}", answer("a", 0), answer("b", 0)) for i in range(40)]
    assert value(fine[:60] + tied, "tied groups") | {"groups": 0} == {
        "name": "tied groups",
        "value": 0.4,
        "limit": 0.5,
        "meaning": "all answers share a rank, so the group teaches nothing",
        "trouble": False,
        "groups": 0,
    }
    failed = [group(i, f"p{i}", answer("a", -1), answer("b", -1), failure="no idea") for i in range(10)]
    sign = value(fine[:90] + failed, "unranked groups")
    assert sign["value"] == 0.1
    assert sign["groups"] == [99, 98, 97, 96, 95]
    wrong = [group(i, f"p{i}", answer("blue", 0), answer("red", 1), reference="red") for i in range(20)]
    assert value(fine + wrong, "reference answers overruled")["value"] == 1.0
    same = [group(i, f"p{i}", answer("a cat", 0), answer(f"a dog {i}", 1)) for i in range(100)]
    assert value(fine + same, "one answer for everything")["value"] == 1.0
    drifting = [
        group(i, f"p{i}", answer("a", 0, trainer_logps=[-0.5 - i / 100]), answer("b", 1, trainer_logps=[-0.5]))
        for i in range(100)
    ]
    assert value(drifting, "growing mismatch")["value"] == pytest.approx(0.4)
    for groups, name in ((longer, "rank follows length"), (same, "one answer for everything")):
        assert value(groups, name)["trouble"]
        assert len(value(groups, name)["groups"]) == 5
