"""Comparing answers, case by case."""

from __future__ import annotations

import pytest

from orlaif.evaluation.text_metrics import choice, numbers, rouge_l, same_choice, same_number, token_f1


@pytest.mark.parametrize(
    ("answer", "reference", "f1", "rouge"),
    [
        ("The red ball.", "a red ball", 1.0, 1.0),
        ("red", "red ball", 2 / 3, 2 / 3),
        ("ball red", "red ball", 1.0, 0.5),  # the words, but not their order
        ("a dog runs in the park", "dog park", 4 / 6, 4 / 6),
        ("red red", "red", 2 / 3, 2 / 3),  # a repeated word counts once
        ("blue", "red", 0.0, 0.0),
        ("", "red", 0.0, 0.0),
        ("The", "a", 1.0, 1.0),  # nothing but articles on both sides
    ],
)
def test_words_in_common(answer: str, reference: str, f1: float, rouge: float) -> None:
    assert token_f1(answer, reference) == pytest.approx(f1)
    assert token_f1(reference, answer) == pytest.approx(f1)
    assert rouge_l(answer, reference) == pytest.approx(rouge)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("There are three dogs and 2 cats", [3.0, 2.0]),
        ("1,200.5 m", [1200.5]),
        ("-3 or 1e3", [-3.0, 1000.0]),
        ("none, someone, twofold", []),
    ],
)
def test_numbers_in_a_text(text: str, expected: list[float]) -> None:
    assert numbers(text) == expected


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("three", "3", 1.0),
        ("There are 3.", "three dogs", 1.0),
        ("3.0", "3", 1.0),
        ("2 or 3", "3", 0.0),  # hedging is no answer
        ("four", "3", 0.0),
        ("many", "3", 0.0),
    ],
)
def test_the_same_number(answer: str, reference: str, expected: float) -> None:
    assert same_number(answer, reference) == expected


OPTIONS = ("A. a cat", "B. a dog", "C. a black cat", "D. none of these")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("B", 1),
        ("(b)", 1),
        ("b.", 1),
        ("Answer: B", 1),
        ("The answer is B.", 1),
        ("Option C.", 2),
        ("a dog", 1),
        ("B. a dog", 1),
        ("It is a dog.", 1),
        ("a cat", 0),  # the text itself, before a letter that could be an article
        ("I see a black cat there", None),  # contains two of the options
        ("a dog or none of these", None),
        ("E", None),
        ("a bird", None),
        ("", None),
    ],
)
def test_which_option_is_meant(answer: str, expected: int | None) -> None:
    assert choice(answer, OPTIONS) == expected


def test_the_same_option_by_letter_or_text() -> None:
    assert same_choice("B", "a dog", OPTIONS) == 1.0
    assert same_choice("a dog", "B", OPTIONS) == 1.0
    assert same_choice("A", "B", OPTIONS) == 0.0
    assert same_choice("a bird", "a bird", OPTIONS) == 0.0  # the reference is none of the options
