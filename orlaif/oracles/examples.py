"""Small functions for recipes that name a function; a template for your own."""

from __future__ import annotations

from orlaif.evaluation.text_metrics import token_f1
from orlaif.types import CandidateGroup


def word_overlap(group: CandidateGroup) -> list[float]:
    """A score: token F1 of each answer with the reference answer (0 to 1); nan where the prompt has none."""
    reference = group.prompt.answer
    return [float("nan") if reference is None else token_f1(answer, reference) for answer in group.answers]


def fewest_words_first(group: CandidateGroup) -> list[int]:
    """A ranking: 0 for the answers with the fewest words, 1 for those with the next fewest, and so on."""
    lengths = [len(answer.split()) for answer in group.answers]
    return [sorted(set(lengths)).index(length) for length in lengths]
