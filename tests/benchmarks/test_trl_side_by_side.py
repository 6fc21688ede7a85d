"""The task that orlaif and TRL are given alike: its rows, its reward, and the parts that its recipe names."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from benchmarks.trl_side_by_side.sides import recipe
from benchmarks.trl_side_by_side.task import questions, reward


def test_no_question_of_the_test_is_trained_on() -> None:
    train, test = ({asked for asked, _ in questions(split, seed=3)} for split in ("train", "test"))
    assert (len(train), len(test), len(train & test)) == (2048, 500, 0)
    asked, answer = questions("test", seed=3)[0]
    assert asked.removeprefix("reverse ") == answer[::-1]


@pytest.mark.parametrize(
    ("answer", "share"), [("a b c d", 1.0), ("a b d c", 0.5), ("a b c", 0.0), ("a b c d e", 0.0), ("", 0.0)]
)
def test_the_reward_is_the_share_of_places(answer: str, share: float) -> None:
    assert reward(answer, "a b c d") == share


@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_what_the_recipe_names_is_there(stage: str, tmp_path: Path) -> None:
    named = re.findall(r"(?:class_path|score): (\S+)", Path(recipe(tmp_path, 0, stage, 2)).read_text(encoding="utf-8"))
    assert any(name.startswith("benchmarks.") for name in named)
    for name in named:
        module, _, last = name.rpartition(".")
        assert hasattr(importlib.import_module(module), last), name
