"""Comparing a free-text answer with a reference: pure functions, each from two texts to a number in [0, 1].

What is read off a text is in ``figures`` (numbers) and ``choices`` (options): one place, for oracles and evaluation.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter

from orlaif.evaluation.figures import numbers

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


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
    from torchmetrics.functional.text.rouge import rouge_score  # slow to import

    scores = rouge_score(answer, reference, normalizer=normalize_answer, tokenizer=str.split, rouge_keys="rougeL")
    return float(scores["rougeL_fmeasure"])


def chrf(answer: str, reference: str) -> float:
    """F-measure of common character and word n-grams, chrF++ (Popovic 2017): the measure for open captions.

    Of the measures for captions it is the one that means something for a single answer: CIDEr weighs words by how many
    other references have them, and METEOR needs WordNet.
    """
    from torchmetrics.functional.text import chrf_score  # slow to import

    score = chrf_score([answer], [[reference]])
    return float(score[0] if isinstance(score, tuple) else score)


def same_number(answer: str, reference: str, tolerance: float = 1e-6) -> float:
    """1 if both texts have one number, said once or more ("seven (7)"), and it is the same; else 0.

    Args:
        answer: free text.
        reference: free text.
        tolerance: a share of the reference's size.
    """
    given, expected = list(dict.fromkeys(numbers(answer))), list(dict.fromkeys(numbers(reference)))
    if len(given) != 1 or len(expected) != 1:
        return 0.0
    return float(math.isclose(given[0], expected[0], rel_tol=tolerance, abs_tol=tolerance))
