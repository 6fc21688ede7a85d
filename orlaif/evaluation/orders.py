"""Orders of events in a text, as chat models write them, and how well two agree.

An order is written by letters (``B, A, C``), by numbers (``2 1 3``) or by the events' texts (``first the dog jumps,
then ...``). It has to name each event once; an answer that does not cannot be read.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from itertools import combinations

from orlaif.evaluation.choices import final_answer
from orlaif.evaluation.text_metrics import normalize_answer

_BETWEEN = r"(?:\s*(?:->|=>|→|>|,|;|-|–|\bthen\b|\band\b)\s*)+|\s+"
_LETTERS = re.compile(rf"(?<![\w'’])\(?[A-Z]\)?\.?(?:(?:{_BETWEEN})\(?[A-Z]\)?)+(?![\w'’])")
_NUMBERS = re.compile(rf"(?<![\w.])\(?\d{{1,2}}\)?(?:(?:{_BETWEEN})\(?\d{{1,2}}\)?)+(?![\w])")
_CLOSE = re.compile(r"(?:[Tt]he\s+(?:correct\s+)?order\s+is:?\s*)?((?:[A-Z]|\([A-Z]\)){2,})\s*\.?")
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "last")
#: What says that one event comes before another, in whatever order the two are named; "after that" goes on.
_AFTER = re.compile(r"\b(?:after(?!\s+(?:that|this|which|it)\b)|follows|following|later than)\b")
_BEFORE = re.compile(r"\b(?:before|precedes|preceding|prior to|earlier than)\b")
_BACK = re.compile(
    r"\b(?:(?:before|prior to) (?:that|this|which|it|them)|preceded by|preceding that|not|never|reverse\w*)\b"
)
_PARTS = re.compile(r"\s*(?:->|=>|→|;|\n|,)\s*")
_LABEL = re.compile(r"^\s*\(?(?:[A-Z]|\d{1,2})[.):]\s+")


def order(text: str, events: Sequence[str]) -> list[int] | None:
    """The order in which a text puts the events.

    Args:
        text: free text.
        events: their texts, with or without label; a text may also name them by letter or number, from A and 1 on.

    Returns:
        Places in ``events``, the first event first; None where not each is named once.
    """
    said = final_answer(text)
    lettered = len(events) > 1 and all(re.match(r"\s*\(?[A-Z][.):]\s", event) for event in events)
    if lettered and (close := _CLOSE.fullmatch(said)):  # "BAC", "(B)(A)(C)"
        run = [string.ascii_uppercase.index(letter) for letter in re.findall("[A-Z]", close[1])]
        return run if sorted(run) == list(range(len(events))) else None
    for pattern, place in ((_LETTERS, string.ascii_uppercase.index), (_NUMBERS, lambda number: int(number) - 1)):
        runs = {tuple(place(label) for label in re.findall(r"[A-Z]|\d+", run)) for run in pattern.findall(said)}
        whole = [run for run in runs if sorted(run) == list(range(len(events)))]
        if whole or (runs and not any(character.islower() for character in said)):
            return list(whole[0]) if len(whole) == 1 and len(runs) == 1 else None
    return _by_text(normalize_answer(said), [normalize_answer(_LABEL.sub("", event)) for event in events])


def pairs_in_order(answer: str, reference: str, events: Sequence[str] = ()) -> float | None:
    """Share of the pairs of events that an answer puts as the reference does; Kendall's tau is twice that minus 1.

    Args:
        answer: free text.
        reference: the right order, in any of the spellings.
        events: their texts; without them, the labels or texts of the reference are the events.

    Returns:
        0 to 1, or None where the answer cannot be read.

    Raises:
        ValueError: the reference is no order of two or more events.
    """
    named = list(events) or _events_of(reference)
    right = order(reference, named) if events else list(range(len(named)))
    if right is None or len(named) < 2:
        raise ValueError(f"the reference answer is {reference!r}; it must be an order of events, such as 'B, A, C'")
    if not events and all(re.fullmatch(r"[A-Z]|\d+", name) for name in named):
        given = _labels(answer, named)
    else:
        given = order(answer, named)
    if given is None:
        return None
    place = {event: i for i, event in enumerate(given)}
    pairs = list(combinations(right, 2))
    return sum(place[first] < place[second] for first, second in pairs) / len(pairs)


def _events_of(reference: str) -> list[str]:
    """What a reference orders: labels, or the parts between arrows, semicolons, line ends or commas."""
    for pattern in (_LETTERS, _NUMBERS):
        if match := pattern.fullmatch(reference.strip().rstrip(".")):
            return re.findall(r"[A-Z]|\d+", match[0])
    return [part for part in _PARTS.split(reference.strip().rstrip(".")) if part]


def _labels(answer: str, named: Sequence[str]) -> list[int] | None:
    """The order of labels in an answer, as places in ``named``."""
    said = final_answer(answer)
    runs = {tuple(re.findall(r"[A-Z]|\d+", run)) for pattern in (_LETTERS, _NUMBERS) for run in pattern.findall(said)}
    whole = [run for run in runs if sorted(run) == sorted(named)]
    return [named.index(label) for label in whole[0]] if len(whole) == 1 else None


def _by_text(said: str, events: Sequence[str]) -> list[int] | None:
    """By the events' texts: by ordinals, by "after" and "before", else by the place where each stands.

    Longer ones are looked for first, for one may stand within another; what says more than can be read is None.
    """
    places = {}
    for i in sorted(range(len(events)), key=lambda i: -len(events[i])):
        found = [match.start() for match in re.finditer(rf"(?<!\S){re.escape(events[i])}(?!\S)", said)]
        if not events[i] or len(found) != 1:
            return None
        places[i] = found[0]
        end = found[0] + len(events[i])
        said = said[: found[0]] + "_" * len(events[i]) + said[end:]
    named = sorted(places, key=places.__getitem__)
    between = re.split(r"_+", said)
    if len(between) != len(events) + 1 or any(_BACK.search(part) for part in between):
        return None
    numbered = _by_ordinals(between, named)
    if numbered != named or any(word in said.split() for word in _ORDINALS[1:]):
        return numbered
    after = [_AFTER.search(part) is not None for part in between[1:-1]]
    if _AFTER.search(between[-1]) or _BEFORE.search(between[0]) or _BEFORE.search(between[-1]):
        return None
    if any(after):  # "swim after run, which is after jump"
        return named[::-1] if all(after) and not _AFTER.search(between[0]) else None
    return named


def _by_ordinals(between: Sequence[str], named: list[int]) -> list[int] | None:
    """The events as "first", "second" beside them say, which stand before each or behind each.

    Args:
        between: what stands before, between and behind the events.
        named: the events in the order of their mention, which holds where ordinals do not speak against it.
    """
    said = [[_ORDINALS.index(word) for word in part.split() if word in _ORDINALS] for part in between]
    flat = [ordinal for part in said for ordinal in part]
    if not any(flat) and flat in ([], [0]) and not (flat and said[-1]):
        # "First" alone, before the first event or right behind it, says no more than the order of mention.
        return named if not flat or said[0] or said[1] else None
    for beside in (said[1:], said[:-1]):
        if len(flat) == len(named) == len(set(flat)) and all(len(part) == 1 for part in beside):
            return [event for _, event in sorted(zip((part[0] for part in beside), named, strict=True))]
    return named if flat == sorted(set(flat)) and said[0] == [0] and not said[-1] else None
