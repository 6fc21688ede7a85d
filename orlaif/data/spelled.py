"""Texts of a prompt that spell what a model does not take for text: the tokens that stand for a video, or end a turn.

A processor replaces them by frames that are not there, a tokenizer ends an answer at them, and their log-prob is -inf:
so they are refused by row and field, before anything is trained on them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from orlaif.types import PreferencePrompt, Prompt


@lru_cache(maxsize=8)
def _any_of(tokens: frozenset[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(token) for token in sorted(tokens, key=lambda token: (-len(token), token))))


def spelled_in(text: str, tokens: frozenset[str]) -> str | None:
    """The first of ``tokens`` that ``text`` spells, if any."""
    match = _any_of(tokens).search(text) if tokens else None
    return match.group() if match else None


def spelled_token(prompt: Prompt, tokens: frozenset[str]) -> str | None:
    """Which field of a prompt spells one of ``tokens``, and which, in words; None where none does."""
    for field, text in _texts(prompt) if tokens else ():
        if (token := spelled_in(text, tokens)) is not None:
            return f"field {field!r} spells {token!r}, which is no text to this model; write it differently"
    return None


def _texts(prompt: Prompt) -> Iterator[tuple[str, str]]:
    yield "question", prompt.question
    yield from (("answer", text) for text in (prompt.answer,) if text is not None)
    yield from (("options", text) for text in prompt.options or ())
    yield from (("history", text) for turn in prompt.history for text in turn)
    if isinstance(prompt, PreferencePrompt):
        yield from (("answers", text) for text in prompt.answers)
