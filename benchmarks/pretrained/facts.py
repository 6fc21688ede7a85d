"""Facts of a clip, sentences that say them, and what a free sentence says of them: the oracle that is a rule.

Four facts: the shape's color, what shape it is, which way it moves first, and what it does then. A sentence may say
them in any words that :data:`WORDS` knows. A fact that is not said, or is said in two ways, is not read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from orlaif.types import CandidateGroup

#: Each value of each fact, and the words by which a sentence says it; the first are those of the labels.
WORDS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "color": {
        "red": ("red",),
        "green": ("green",),
        "blue": ("blue",),
        "yellow": ("yellow",),
        "purple": ("purple", "violet"),
        "white": ("white",),
    },
    "shape": {
        "circle": ("circle", "ball", "disc"),
        "square": ("square", "box"),
        "triangle": ("triangle",),
        "cross": ("cross", "plus sign"),
    },
    "way": {
        "left": ("left",),
        "right": ("right",),
        "up": ("up", "upwards", "upward"),
        "down": ("down", "downwards", "downward"),
    },
    "then": {
        "stops": ("stops", "stop", "stands still", "halts"),
        "goes back": ("goes back", "go back", "turns back", "turns around", "returns", "comes back", "moves back"),
        "grows": ("grows", "grow", "gets bigger", "gets larger", "becomes bigger", "becomes larger"),
        "shrinks": ("shrinks", "shrink", "gets smaller", "becomes smaller"),
        "vanishes": ("vanishes", "vanish", "disappears", "disappear"),
    },
}
FACTS = tuple(WORDS)
#: How the labels say it.
FORMS = (
    "A {color} {shape} moves {way}, then {then}.",
    "The {color} {shape} moves {way} and {then}.",
)
_PATTERNS = {
    fact: {value: re.compile(rf"\b(?:{'|'.join(words)})\b") for value, words in values.items()}
    for fact, values in WORDS.items()
}


def sentence(facts: Mapping[str, str], form: int) -> str:
    """The facts in words."""
    return FORMS[form].format(**facts)


def read(text: str) -> dict[str, str]:
    """The facts that a sentence says, each in one way."""
    lowered = text.lower()
    found = {}
    for fact, patterns in _PATTERNS.items():
        said = [value for value, pattern in patterns.items() if pattern.search(lowered)]
        if len(said) == 1:
            found[fact] = said[0]
    return found


def right(answer: str, reference: str) -> dict[str, bool]:
    """Of each fact, whether ``answer`` says what ``reference`` does."""
    said, true = read(answer), read(reference)
    return {fact: said.get(fact) == true[fact] for fact in FACTS}


def rank(group: CandidateGroup) -> list[int]:
    """Most facts right first; equally many share a rank, and a sentence in which nothing is read comes last.

    Args:
        group: whose prompt's ``answer`` says all facts that were rendered.
    """
    reference = group.prompt.answer or ""
    scores = [sum(right(answer, reference).values()) if read(answer) else -1 for answer in group.answers]
    order = sorted(set(scores), reverse=True)
    return [order.index(score) for score in scores]
