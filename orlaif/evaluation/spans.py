"""Time spans in a text, as chat models write them, and how well two agree (temporal grounding).

Read are two times joined by a dash or ``to``, two in brackets, ``between ... and ...``, and a start with an end or with
how long it lasts; a time is seconds, a number with its unit, or a clock (``1:02:03``, ``00:00:05,000`` of subtitles).
Numbers of frames are no times. An answer states one span: where it names none, one that
ends before it begins, or two that differ, it cannot be read.
"""

from __future__ import annotations

import re

from orlaif.evaluation.choices import final_answer
from orlaif.evaluation.units import UNITS

Span = tuple[float, float]

_NUMBER = r"\d+(?:\.\d+)?"
_H, _M, _S = r"(?:hours?|hrs?|h)", r"(?:minutes?|mins?|m)", r"(?:seconds?|secs?|s)"
_AND = r"\s*,?\s*(?:and\s+)?"


def _time(name: str) -> str:
    """The pattern of a time whose groups begin with ``name``: a clock, parts with units, or a number."""
    return (
        rf"(?:(?:(?P<{name}ch>\d{{1,3}}):)?(?P<{name}cm>\d{{1,3}}):(?P<{name}cs>\d\d(?:\.\d+|,\d{{3}})?)|"
        rf"(?:(?P<{name}h>{_NUMBER})\s*{_H}(?![a-z]){_AND})?(?:(?P<{name}m>{_NUMBER})\s*{_M}(?![a-z]){_AND})?"
        rf"(?P<{name}s>{_NUMBER})(?:\s*|-){_S}(?![a-z])|"
        rf"(?:(?P<{name}h2>{_NUMBER})\s*{_H}(?![a-z]){_AND})?(?P<{name}m2>{_NUMBER})\s*{_M}(?![a-z])|"
        rf"(?P<{name}h3>{_NUMBER})\s*{_H}(?![a-z])|(?P<{name}n>{_NUMBER}))"
    )


_FIRST, _SECOND = rf"(?<![\w.:−–-])(?<!\d,){_time('a')}", rf"{_time('b')}(?![\d:%]|\.\d|,\d|[^\W\d_]|\s*[-–]\s*\d)"
_FILL = r"[^\d\n]{0,40}?"
#: What may stand behind a time, and before the second one.
_MARK = r"(?:\s*(?:marks?|in|into the (?:video|clip)))?"
_ABOUT = r"(?:(?:the|about|around|approximately|approx\.?|roughly|second|t\s*=)\s*)*"
_START = r"\b(?:start|begin)(?:s|ning|ing)?(?:_?time(?:stamp)?|_s(?:ec(?:onds?)?)?)?\b"
_END = r"\b(?:(?:end|stop|finish)(?:s|ing|es)?(?:_?time(?:stamp)?|_s(?:ec(?:onds?)?)?)?|lasts?\s+(?:un)?till?)\b"
_LASTS = r"\b(?:last(?:s|ing)?|duration|goes on|going on|continu(?:es|ing))\b"
_SPANS = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"{_FIRST}{_MARK}\s*(?:-+>?|[–—−~→]|\bto\b|\buntil\b|\btill\b|\bthrough\b)\s*{_ABOUT}{_SECOND}",
        rf"\bbetween\b\D{{0,20}}?{_FIRST}\s*(?:\band\b|&)\s*{_SECOND}",
        rf"[\[(<]\s*{_FIRST}\s*,\s*{_SECOND}\s*[\])>]",
        rf"^\s*{_FIRST}\s*,\s*{_SECOND}\s*\.?\s*$",
        rf"{_START}{_FILL}{_FIRST}(?:\s*seconds?)?[^\d]{{0,60}}?{_END}{_FILL}{_SECOND}(?!\D{{0,12}}\blater\b)",
    )
]
#: A start, and how long it lasts.
_LASTING = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"(?:{_START}{_FILL}|\b(?:at|from)\s+){_FIRST}\D{{0,60}}?{_LASTS}(?:(?!till?\b|\bto\b)[^\d\n]){{0,20}}?{_SECOND}",
        rf"(?:{_START}{_FILL}|\b(?:at|from)\s+){_FIRST}{_MARK}\s*,?\s*(?:and\s+)?for\s+{_ABOUT}{_SECOND}",
        rf"{_START}{_FILL}{_FIRST}\D{{0,60}}?{_END}{_FILL}{_SECOND}\s*later\b",
    )
]
#: Before two numbers: they are of other things, or denied.
_NO_TIMES = re.compile(
    r"(?:\b(?:frames?\s*#?|aged?|ages|years?|scores?(?:\s+(?:is|was|of))?|result(?:\s+(?:is|was))?|pages?|chapters?|rows?|steps?|"
    r"(?:jan|febr)uary|march|april|may|june|july|august|(?:sept|nov|dec)ember|october|"
    r"(?:jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec)\.?)|"
    r"(?:\bnot|n['’]t|\bnever)\b(?:\s+\w+){0,3})(?:\s+(?:from|between|at))?\s*[:\[(]?\s*$",
    re.IGNORECASE,
)
#: Behind them: a unit of something else, a third time, or another one to choose from.
_NO_TIME = re.compile(
    rf"\s*(?:(?:{'|'.join(re.escape(name) for name, (kind, _) in UNITS.items() if kind != 'time')}|"
    r"people|persons|men|women|points?|times|years?|steps?|frames?|pages?|degrees?)(?!\w)|(?:to|until|through)\s+\d|or\s+(?:later|earlier)\b)",
    re.IGNORECASE,
)


def spans(text: str) -> list[Span]:
    """The time spans in a text, in seconds, as they stand there.

    Args:
        text: ``12.5 - 20 s``, ``from 00:12 to 00:20``, ``[12.5, 20]``, ``between 12 and 20 seconds``, ``1-2 min``.

    Returns:
        Start and end of each, also where the end comes first. Where some carry units or clocks, those without do not
        count ("3 to 5 people, from 12 s to 20 s").
    """
    text = _plain(text)
    found: dict[Span, bool] = {}
    for pattern in (*_SPANS, *_LASTING):
        for match in pattern.finditer(text):
            before, after = text[max(0, match.start() - 40) : match.start()], text[match.end() :]
            if _NO_TIMES.search(before) or _NO_TIME.match(after):
                continue
            start, end = _seconds(match, "a"), _seconds(match, "b")
            named = [match[f"{one}n"] is None for one in "ab"]
            if not named[0] and named[1] and match["bcm"] is None:
                start *= _unit_of(match)  # "1-2 min"
            span = (start, start + end if pattern in _LASTING else end)
            found[span] = found.get(span, False) or any(named)
    timed = [span for span, named in found.items() if named]
    return timed or list(found)


def span(answer: str) -> Span | None:
    """The one span that an answer states, in seconds; None where it cannot be read."""
    found = spans(final_answer(answer))
    return found[0] if len(found) == 1 and found[0][0] < found[0][1] else None


def _plain(text: str) -> str:
    """A text without what keeps its times from being read: decimal commas, quotes in a list, milliseconds."""
    text = re.sub(r"""([\[(,]\s*)(["'])([\d.:]+)\2(?=\s*[\]),])""", r"\1\3", text)
    if re.fullmatch(r"\D*\d+,\d{1,2}\s*(?:s\b|sec\w*)?\s*(?:-|–|to)\s*\d+,\d{1,2}\s*(?:s|sec\w*)?\W*", text):
        text = re.sub(r"(\d),(\d)", r"\1.\2", text)
    joined = re.compile(r"(?<![\d.])(\d+(?:\.\d+)?)(\s*(?:-|–|to|and)\s*)(?=\d+(?:\.\d+)?\s*(?:ms|milliseconds?)\b)")
    text = joined.sub(r"\1 ms\2", text)
    return re.sub(r"(?<![\d.])(\d+(?:\.\d+)?)\s*(?:ms|milliseconds?)\b", lambda m: f"{float(m[1]) / 1000:.6f} s", text)


def temporal_iou(one: Span, other: Span) -> float:
    """Seconds that two spans share, over the seconds that either covers."""
    shared = max(0.0, min(one[1], other[1]) - max(one[0], other[0]))
    return shared / (one[1] - one[0] + other[1] - other[0] - shared)


def span_iou(answer: str, reference: str) -> float | None:
    """tIoU of the answer's span with that of the reference, the best one where the reference names several.

    The best of several is how QVHighlights (Lei et al. 2021) scores R1 of a query with several moments.

    Returns:
        0 to 1, or None where the answer cannot be read.

    Raises:
        ValueError: the reference names no span.
    """
    expected = [one for one in spans(reference) if one[0] < one[1]]
    if not expected:
        raise ValueError(f"the reference answer is {reference!r}; it must name a time span, such as '12.5 - 20 s'")
    given = span(answer)
    return None if given is None else max(temporal_iou(given, one) for one in expected)


def _seconds(match: re.Match[str], name: str) -> float:
    """The time of a group of names, in seconds."""
    parts = {"ch": 3600.0, "cm": 60.0, "cs": 1.0, "h": 3600.0, "m": 60.0, "s": 1.0}
    parts |= {"h2": 3600.0, "m2": 60.0, "h3": 3600.0, "n": 1.0}
    return sum(
        size * float(match[name + part].replace(",", "."))
        for part, size in parts.items()
        if match[name + part] is not None
    )


def _unit_of(match: re.Match[str]) -> float:
    """Seconds of the largest unit of the second time."""
    if match["bh"] or match["bh2"] or match["bh3"]:
        return UNITS["h"][1]
    return UNITS["min"][1] if match["bm"] or match["bm2"] else 1.0
