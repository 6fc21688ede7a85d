"""Numbers in a text: whole numbers, and never a part of one."""

from __future__ import annotations

import pytest

from orlaif.evaluation.figures import numbers

READ: list[tuple[str, list[float]]] = [
    ("thirty‑two", [32]),
    ("one-third", [1 / 3]),
    ("two thirds", [2 / 3]),
    ("three quarters of an hour", [0.75]),
    ("one second", [1]),
    ("twenty third", [23]),
    ("-1,000", [-1000]),
    ("minus twenty one", [-21]),
    ("5-6-7", [5, 6, 7]),
    ("twenty one", [21]),
    ("twenty-one", [21]),
    ("minus three", [-3]),
    ("3-4 people", [3, 4]),
    ("-3.5", [-3.5]),
    ("1,000", [1000]),
    ("1,200.5 m", [1200.5]),
    ("There are three dogs and 2 cats", [3, 2]),
    ("-3 or 1e3", [-3, 1000]),
    ("none, someone, twofold", []),
    ("a hundred and five", [105]),
    ("one hundred", [100]),
    ("two thousand twenty", [2020]),
    ("three point five", [3.5]),
    ("two and a half", [2.5]),
    ("2½", [2.5]),
    ("50%", [50]),
    ("50 percent", [50]),
    ("fifty percent", [50]),
    ("1.5 million", [1500000.0]),
    ("3 thousand", [3000]),
    ("a dozen", [12]),
    ("two dozen eggs", [24]),
    ("twelve hundred", [1200]),
    ("no one", []),
    ("the one on the left", []),
    ("only one", [1]),
    ("COVID-19", []),
    ("mp4", []),
    ("H264", []),
    ("F-16", []),
    ("5cm-7cm", [5, 7]),
    ("1.2.3", []),
    ("−5", [-5]),
    ("–5", [-5]),
    ("3 – 4", [3, 4]),
    ("3–4", [3, 4]),
    ("3 to 4", [3, 4]),
    ("negative two", [-2]),
    ("$5", [5]),
    ("+7", [7]),
    ("twenty first", [21]),
    ("the 2nd", [2]),
    ("10²", []),
    ("2x10^3", [2000]),
    ("1.5×10³", [1500]),
    ("5k", [5000]),
    ("5km", [5]),
    ("nineteen ninety", [19, 90]),
    ("one two three", [1, 2, 3]),
    ("twenty, one", [20, 1]),
    ("two and three", [2, 3]),
    ("hundreds", []),
    ("one hundred twenty-three thousand four hundred fifty six", [123456]),
    ("1.000,5", [1, 5]),
    ("1,0000", [1, 0]),
    ("ninety nine", [99]),
    ("forty-two.", [42]),
    ("zero", [0]),
    ("a few", []),
    ("30s", [30]),
    ("12:30", [12, 30]),
    ("1/2", [1, 2]),
    ("I have 5.", [5]),
    ("5.", [5]),
    (".5", [0.5]),
    ("0.5", [0.5]),
    ("v2", []),
    ("(3)", [3]),
    ("(-3)", [-3]),
    ("eleven o'clock", [11]),
    ("a one-eyed man", [1]),
    ("one million two hundred thousand", [1200000.0]),
    ("x = -2", [-2]),
    ("1 000", [1, 0]),
    ("One", [1]),
    ("100-200", [100, 200]),
    ("10 - 20", [10, 20]),
    ("about 7", [7]),
    ("seven (7)", [7, 7]),
    ("2,5", [2, 5]),
    ("１２", [12]),
]


@pytest.mark.parametrize(("text", "expected"), READ, ids=[text for text, _ in READ])
def test_numbers_in_a_text(text: str, expected: list[float]) -> None:
    assert numbers(text) == expected


def test_every_number_in_words_up_to_a_thousand() -> None:
    """As num2words writes them, with "and" and without, with hyphens and without."""
    num2words = pytest.importorskip("num2words").num2words
    for value in [*range(1000), 1001, 1234, 20_000, 123_456, 7_000_001]:
        for text in (num2words(value), num2words(value).replace(" and ", " "), num2words(value).replace("-", " ")):
            assert numbers(text.replace(",", "")) == [value], text
