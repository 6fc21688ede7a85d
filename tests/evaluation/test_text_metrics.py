"""Comparing answers, case by case."""

from __future__ import annotations

import random

import pytest

from orlaif.evaluation.text_metrics import normalize_answer, rouge_l, same_number, token_f1


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
    ("answer", "reference", "expected"),
    [
        ("three", "3", 1.0),
        ("There are 3.", "three dogs", 1.0),
        ("3.0", "3", 1.0),
        ("2 or 3", "3", 0.0),  # hedging is no answer
        ("four", "3", 0.0),
        ("many", "3", 0.0),
        ("seven (7)", "7", 1.0),  # one number, said twice
        ("twenty one", "1", 0.0),
        ("twenty one", "21", 1.0),
        ("minus three", "3", 0.0),
        ("minus three", "-3", 1.0),
        ("3-4", "4", 0.0),
        ("-4", "4", 0.0),
        ("1,000", "1000", 1.0),
        ("1,000", "1", 0.0),
        ("50%", "fifty percent", 1.0),
        ("no one", "1", 0.0),
    ],
)
def test_the_same_number(answer: str, reference: str, expected: float) -> None:
    assert same_number(answer, reference) == expected


def by_hand(answer: str, reference: str) -> float:
    """The longest common subsequence, word by word."""
    words, expected = normalize_answer(answer).split(), normalize_answer(reference).split()
    if not words or not expected:
        return float(words == expected)
    row = [0] * (len(expected) + 1)
    for word in words:
        diagonal = 0
        for j, other in enumerate(expected, 1):
            diagonal, row[j] = row[j], diagonal + 1 if word == other else max(row[j], row[j - 1])
    return 2 * row[-1] / (len(words) + len(expected))


def test_rouge_is_that_of_the_longest_common_subsequence() -> None:
    words = ["a", "red", "dog", "the", "runs", "in", "park,", "and", "--", "jumps", "over.", "café", "狗"]
    rng = random.Random(0)
    for _ in range(200):
        answer, reference = (" ".join(rng.choices(words, k=rng.randint(0, 8))) for _ in range(2))
        assert rouge_l(answer, reference) == pytest.approx(by_hand(answer, reference), abs=1e-6)
