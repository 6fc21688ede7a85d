"""Comparing a free-text answer with a reference: pure functions, each from two texts to a number in [0, 1]."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_TOKEN = re.compile(r"[-+]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?|[a-z]+")
_WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
#: "A. a dog", "(A) a dog": the letter that an option may carry.
_OPTION = re.compile(r"^\s*\(?[A-Z][.):]\s+")
#: "B", "(b)", "Option B.", "Answer: B", "B. a cat"; a lone "a" that begins a sentence is an article.
_LETTER = re.compile(r"^(?:(?:the\s+)?(?:option|answer|choice)(?:\s+is)?\W*)?\(?([A-Z])(?:[.):]|$)", re.IGNORECASE)


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation, articles and extra blanks: SQuAD's rule (Rajpurkar et al. 2016)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def is_correct(answer: str, reference: str) -> bool:
    """Whether answer and reference are the same after :func:`normalize_answer`."""
    return normalize_answer(answer) == normalize_answer(reference)


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall over the words of both, counted with repetition (Rajpurkar et al. 2016)."""
    words, expected = normalize_answer(answer).split(), normalize_answer(reference).split()
    if not words or not expected:
        return float(words == expected)
    common = sum((Counter(words) & Counter(expected)).values())
    return 2 * common / (len(words) + len(expected))


def rouge_l(answer: str, reference: str) -> float:
    """F-measure of the longest common subsequence of words (Lin 2004), precision and recall alike."""
    words, expected = normalize_answer(answer).split(), normalize_answer(reference).split()
    if not words or not expected:
        return float(words == expected)
    row = [0] * (len(expected) + 1)
    for word in words:
        diagonal = 0
        for j, other in enumerate(expected, 1):
            diagonal, row[j] = row[j], diagonal + 1 if word == other else max(row[j], row[j - 1])
    return 2 * row[-1] / (len(words) + len(expected))


def numbers(text: str) -> list[float]:
    """The numbers in a text, in order: in digits (``1,200``, ``-3.5``, ``1e3``) or in words up to twelve."""
    found = []
    for token in _TOKEN.findall(text.lower()):
        if token in _WORDS:
            found.append(float(_WORDS.index(token)))
        elif not token.isalpha():
            found.append(float(token.replace(",", "")))
    return found


def same_number(answer: str, reference: str, tolerance: float = 1e-6) -> float:
    """1 if the only number of both texts is the same, within ``tolerance`` of the reference's size; else 0."""
    found, expected = numbers(answer), numbers(reference)
    if len(found) != 1 or len(expected) != 1:
        return 0.0
    return float(math.isclose(found[0], expected[0], rel_tol=tolerance, abs_tol=tolerance))


def choice(answer: str, options: Sequence[str]) -> int | None:
    """Which of the options an answer names: by letter (``B``, ``(b)``, ``Option B.``, ``B. a cat``) or by its text.

    Args:
        answer: free text.
        options: the options' texts, with or without their letter (``A. a dog``).

    Returns:
        Its place, or None where the answer names none or could mean more than one.
    """
    texts = [normalize_answer(_OPTION.sub("", option)) for option in options]
    whole = normalize_answer(answer)
    named = [i for i, text in enumerate(texts) if whole == text]
    if not named and (letter := _LETTER.match(answer.strip())):
        named = [i for i in [string.ascii_uppercase.index(letter[1].upper())] if i < len(texts)]
    if not named:
        words = f" {whole} "
        named = [i for i, text in enumerate(texts) if text and f" {text} " in words]
    return named[0] if len(named) == 1 else None


def same_choice(answer: str, reference: str, options: Sequence[str]) -> float:
    """1 if answer and reference name the same option, else 0."""
    expected = choice(reference, options)
    return float(expected is not None and choice(answer, options) == expected)
