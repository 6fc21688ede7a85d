"""Comparing a free-text answer with a reference."""

from __future__ import annotations

import re
import string

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation, articles and extra blanks: SQuAD's rule (Rajpurkar et al. 2016)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def is_correct(answer: str, reference: str) -> bool:
    """Whether answer and reference are the same after :func:`normalize_answer`."""
    return normalize_answer(answer) == normalize_answer(reference)
