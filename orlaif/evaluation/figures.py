"""The numbers in a text, in digits or words; a part of a number is never read as the number.

``twenty-one`` is 21 and not 1, ``3-4 people`` are 3 and 4 and not -4, ``COVID-19`` and ``mp4`` hold none.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

_UNITS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth"]
_VALUES = {
    **{word: float(i) for i, word in enumerate(_UNITS)},
    **{word: 10.0 * (i + 2) for i, word in enumerate(_TENS)},
    "fourty": 40.0,
}
_SCALES = {"dozen": 12.0, "hundred": 1e2, "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
#: What a number in words may count the parts of; a second is a time.
_PARTS = {
    "half": 2,
    "halves": 2,
    "third": 3,
    "quarter": 4,
    "fourth": 4,
    "fifth": 5,
    "sixth": 6,
    "eighth": 8,
    "tenth": 10,
}
_PARTS |= {f"{word}s": parts for word, parts in _PARTS.items() if parts > 2}
#: Digits, with commas between thousands, a fraction, a power of ten; or a word.
_TOKEN = re.compile(
    r"(?P<version>\d+(?:\.\d+){2,})|"
    r"(?P<digits>(?:\d{1,3}(?:[,\u00a0\u202f\u2009]\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\d\w])\.\d+)"
    r"(?P<power>e[-+]?\d+(?![a-z\d])|\s?[x×*]\s?10(?:\^|\*\*)?(?P<exponent>[-+−]?\d+|[⁻⁺]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+))?"
    r"(?P<vulgar>\s?[¼½¾⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞])?(?P<kilo>k(?![a-z]))?"
    r"|(?P<alone>[¼½¾⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞])|(?P<word>[a-z]+(?:['’][a-z]+)?)"
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺−", "0123456789-+-")
#: With these before it, "one" stands for a thing, and is no count.
_NOT_COUNTING = {"no", "the", "this", "that", "which", "each", "every", "any", "some", "another", "other", "same"}
_MINUS = ("minus", "negative")


@dataclass(frozen=True)
class _Token:
    """A word, or a number in digits."""

    word: str
    value: float | None
    start: int
    end: int


def numbers(text: str) -> list[float]:
    """The numbers in a text, in order.

    Args:
        text: with digits (``1,200``, ``-3.5``, ``1e3``, ``2½``, ``50%``), words (``twenty-one``, ``a hundred and
            five``, ``three point five``, ``minus two``), or both (``1.5 million``).

    Returns:
        Their values; a percentage is its figure, an ordinal in digits its number.
    """
    return [value for value, _, _ in located(text)]


def located(text: str) -> list[tuple[float, int, int]]:
    """The numbers in a text, as :func:`numbers` reads them, and where each begins and ends in its lower case."""
    lowered = text.lower()
    tokens = _tokens(lowered)
    found: list[tuple[float, int, int]] = []
    i = 0
    while i < len(tokens):
        value, following = _number(lowered, tokens, i)
        if value is not None:
            negative = i > 0 and tokens[i - 1].word in _MINUS and lowered[tokens[i - 1].end : tokens[i].start].isspace()
            found.append((-value if negative else value, tokens[i].start, tokens[following - 1].end))
        i = following
    return found


def _tokens(text: str) -> list[_Token]:
    tokens = []
    for match in _TOKEN.finditer(text):
        value, start = None, match.start()
        if match["digits"]:
            value, start = _digits(text, match)
        elif match["alone"]:
            value = unicodedata.numeric(match["alone"])
        # A number that cannot be read stands between others all the same.
        tokens.append(_Token(match["word"] or "", value, start, match.end()))
    return tokens


def _digits(text: str, match: re.Match[str]) -> tuple[float | None, int]:
    """The value of a number in digits, and where it begins with its sign; None where it belongs to a name."""
    value = float(re.sub(r"[,\s]", "", match["digits"]))
    power = match["power"] or ""
    if match["exponent"]:
        value *= 10.0 ** int(match["exponent"].translate(_SUPERSCRIPTS))
    elif power:
        value = float(re.sub(r"[,\s]", "", match["digits"]) + power)
    if match["vulgar"]:
        value += unicodedata.numeric(match["vulgar"].strip())
    value *= 1000 if match["kilo"] else 1
    before, after = text[: match.start()], text[match.end() :]
    if re.search(r"[^\W\d]$", before) or re.match(r"[⁰¹²³⁴⁵⁶⁷⁸⁹^]|\.?\d", after):
        return None, match.start()  # mp4, 10², a grouping that is none
    if not (sign := re.search(r"[-+−–—]$", before)):
        return value, match.start()
    earlier = before[:-1]
    if re.search(r"[^\W\d]$", earlier) and not re.search(r"\d\s?[^\W\d]{1,3}$", earlier):
        return None, match.start()  # COVID-19; but 5cm-7cm
    if re.search(r"[\w.)%°]$", earlier) or (sign[0] in "–—" and earlier.strip()):
        return value, match.start()  # a range
    return (value if sign[0] == "+" else -value), match.start() - 1


def _number(text: str, tokens: list[_Token], i: int) -> tuple[float | None, int]:
    """The number that begins at a token, and the token behind it; None where none begins there."""
    token = tokens[i]
    if token.value is None and token.word not in _VALUES and not _a_scale(text, tokens, i):
        return None, i + 1
    if token.word == "one" and ((i and tokens[i - 1].word in _NOT_COUNTING) or _word(tokens, i + 1) == "another"):
        return None, i + 1
    total, last = 0.0, "start"
    current = 0.0
    j = i
    while j < len(tokens):
        token = tokens[j]
        if j > i and not re.fullmatch(r"[\s\-‐‑–]+", text[tokens[j - 1].end : token.start]):
            break
        word, value = token.word, _VALUES.get(token.word, 0.0)
        if last == "start" and (token.value is not None or word == "a"):
            current, last = (1.0 if token.value is None else token.value), "digits"
        elif word in _UNITS and (last in ("start", "scale", "and") or (last == "tens" and 0 < value < 10)):
            current, last = current + value, "unit"
        elif word in _VALUES and value >= 20 and last in ("start", "scale", "and"):
            current, last = current + value, "tens"
        elif word in _ORDINALS and last == "tens":
            current, last = current + 1 + _ORDINALS.index(word), "end"
        elif word in _PARTS and last == "unit":
            return total + current / _PARTS[word], j + 1
        elif word in _SCALES and last in ("digits", "unit", "tens", "scale"):
            if _SCALES[word] <= 100:
                current *= _SCALES[word]
            else:
                total, current = total + current * _SCALES[word], 0.0
            last = "scale"
        elif word == "and" and [_word(tokens, j + 1), _word(tokens, j + 2)] == ["a", "half"] and last != "start":
            return total + current + 0.5, j + 3
        elif word == "and" and last == "scale" and _word(tokens, j + 1) in _VALUES:
            last = "and"
        elif word == "point" and last in ("unit", "tens") and _word(tokens, j + 1) in _UNITS[:10]:
            digits, j = _decimals(tokens, j + 1)
            return total + current + float(f"0.{digits}"), j
        else:
            break
        j += 1
    return total + current, j


def _a_scale(text: str, tokens: list[_Token], i: int) -> bool:
    """Whether an article stands for the number one before a scale: ``a hundred``, ``a dozen``."""
    return (
        tokens[i].word == "a" and _word(tokens, i + 1) in _SCALES and text[tokens[i].end : tokens[i + 1].start] == " "
    )


def _decimals(tokens: list[_Token], j: int) -> tuple[str, int]:
    digits = ""
    while (word := _word(tokens, j)) in _UNITS[:10]:
        digits, j = digits + str(_UNITS.index(word)), j + 1
    return digits, j


def _word(tokens: list[_Token], i: int) -> str:
    return tokens[i].word if i < len(tokens) else ""
