"""Units of measure, and the quantity that a text states: a number with its unit, in the base unit of its kind.

``1.5 min`` and ``90 seconds`` are the same; ``90`` has no unit and is read in that of what it is compared with. Units
whose name is a common word as well (``in``) are not read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from orlaif.evaluation.choices import final_answer
from orlaif.evaluation.figures import located

#: Kind, size in the base unit of its kind, and how a unit is spelled.
_SPELLINGS: tuple[tuple[str, float, str], ...] = (
    ("time", 1e-3, "ms millisecond milliseconds"),
    ("time", 1.0, "s sec secs second seconds 秒"),
    ("time", 60.0, "min mins minute minutes 分钟"),
    ("time", 3600.0, "h hr hrs hour hours 小时"),
    ("time", 86400.0, "day days"),
    ("length", 1e-3, "mm millimeter millimeters millimetre millimetres"),
    ("length", 1e-2, "cm centimeter centimeters centimetre centimetres"),
    ("length", 1.0, "m meter meters metre metres"),
    ("length", 1e3, "km kilometer kilometers kilometre kilometres"),
    ("length", 0.0254, "inch inches"),
    ("length", 0.3048, "ft foot feet"),
    ("length", 1609.344, "mile miles"),
    ("mass", 1e-6, "mg milligram milligrams"),
    ("mass", 1e-3, "g gram grams"),
    ("mass", 1.0, "kg kgs kilo kilos kilogram kilograms"),
    ("mass", 1e3, "t ton tons tonne tonnes"),
    ("mass", 0.45359237, "lb lbs pound pounds"),
    ("volume", 1e-3, "ml milliliter milliliters millilitre millilitres"),
    ("volume", 1e-2, "cl centiliter centiliters centilitre centilitres"),
    ("volume", 1.0, "l liter liters litre litres"),
    ("speed", 1.0, "m/s"),
    ("speed", 1 / 3.6, "km/h kph kmh"),
    ("speed", 0.44704, "mph"),
    ("area", 1.0, "m2 m² sqm"),
    ("share", 0.01, "% percent"),
)
UNITS: dict[str, tuple[str, float]] = {name: (kind, size) for kind, size, names in _SPELLINGS for name in names.split()}
_UNIT = re.compile(
    r"[\s-]?(" + "|".join(re.escape(name) for name in sorted(UNITS, key=len, reverse=True)) + r")(?![\w/²³])"
)
#: A fraction that is a share, with a whole number before it or not; 7/10 may be a score, and 1/2/24 a date.
_FRACTION = re.compile(r"(?<![\w./,^])(?:(\d+)\s+)?(\d)\s?[/⁄]\s?([234568])(?![\w/⁄]|[.,]\d)")
_POWER = re.compile(r"(?<![\w.,^])(?<![x×*·])(?<![x×*·]\s)(\d{1,3})\s?(?:\^|\*\*)\s?([-−]?\d{1,2})(?![\w.^])")
#: "1h30", "1h30m", "5m30s", "1:30 min", "1:30 h": the second part is in the next smaller unit.
_PARTS = (
    (
        re.compile(
            r"(?<![\w.,])(\d+)(?:h|\s?h\s?(?=\d{1,2}\W*$))(\d{1,2})(?:m(?:in)?)?(?![\w.]|\s?[a-z]{1,3}\b)",
            re.IGNORECASE,
        ),
        r"\1 h \2 min",
    ),
    (re.compile(r"(?<![\w.,])(\d+)\s?m(?:in)?\s?(\d{1,2})\s?s\b", re.IGNORECASE), r"\1 min \2 s"),
    (re.compile(r"(?<![\w.,])(\d+)\s?m(?:in)?(\d\d)(?!\w)", re.IGNORECASE), r"\1 min \2 s"),
    (re.compile(r"(?<![\w.,:])(\d+):(\d\d)\s?(?:minutes?|mins?)\b", re.IGNORECASE), r"\1 min \2 s"),
    (re.compile(r"(?<![\w.,:])(\d+):(\d\d)\s?(?:hours?|hrs?|h)\b", re.IGNORECASE), r"\1 h \2 min"),
)
_JOINED = re.compile(r"\s*(?:,|and)?\s*")


@dataclass(frozen=True)
class Quantity:
    """A number, and its unit where it has one.

    Args:
        value: in the base unit of its kind (seconds, metres, kilograms, litres); as written where there is no unit.
        kind: ``time``, ``length``, ``mass``, ``volume``, ``speed``, ``area`` or ``share``; None without a unit.
        size: of the unit as written, in base units.
    """

    value: float
    kind: str | None = None
    size: float = 1.0


def quantity(text: str) -> Quantity | None:
    """The one quantity that a text states.

    Args:
        text: ``about 1.5 minutes``, ``1 min 30 s``, ``5 km``, ``twenty-one``, ``7 (seven)``, ``1h30``, ``1:30 min``,
            ``1/2``, ``10^3``.

    Returns:
        It, or None where there is none, or two that differ.
    """
    said: list[Quantity] = []
    last = -1
    text = _spelt_out(text)
    lowered = text.lower()
    for value, start, end in located(text):
        unit = _UNIT.match(lowered, end)
        kind, size = UNITS[unit[1]] if unit else (None, 1.0)
        before = said[-1] if said else None
        if before and kind and before.kind == kind and size < before.size and _JOINED.fullmatch(lowered, last, start):
            said[-1] = Quantity(before.value + value * size, kind, size)  # 1 min 30 s
        else:
            said.append(Quantity(value * size, kind, size))
        last = unit.end() if unit else end
    # "90 s (90)": the same number without its unit says nothing new.
    stated = [one for one in said if one.kind] or said
    plain = {one.value for one in said} if stated is said else {one.value for one in said if one.kind is None}
    known = {one.value for one in stated} | {one.value / one.size for one in stated}
    same = len({(one.value, one.kind) for one in stated}) == 1 and plain <= known
    return stated[0] if same else None


def _spelt_out(text: str) -> str:
    """A text with its fractions and powers as plain numbers, and its times in parts with the unit of each."""
    for pattern, parts in _PARTS:
        text = pattern.sub(parts, text)
    text = _FRACTION.sub(
        lambda m: m[0] if int(m[2]) >= int(m[3]) else repr(int(m[1] or 0) + int(m[2]) / int(m[3])), text
    )
    return _POWER.sub(_power, text)


def _power(match: re.Match[str]) -> str:
    base, exponent = int(match[1]), int(match[2].replace("−", "-"))
    return match[0] if base == 0 else f"{float(base) ** exponent:.17e}"


def relative_error(answer: str, reference: str) -> float | None:
    """How far an answer's quantity is from the reference's, as a share of that.

    Units of a kind are converted; an answer without unit is read in the reference's, and the other way round.

    Returns:
        ``|answer - reference| / |reference|`` (the plain distance where the reference is 0), or None where the
        answer states no quantity, or one of another kind.

    Raises:
        ValueError: the reference states none.
    """
    given, expected = quantity(final_answer(answer)), quantity(reference)
    if expected is None:
        raise ValueError(f"the reference answer is {reference!r}; it must state one number, such as '1.5 minutes'")
    if given is None or (given.kind and expected.kind and given.kind != expected.kind):
        return None
    value, right = given.value, expected.value
    if given.kind is None or expected.kind is None:
        value, right = (given.value / given.size, expected.value / expected.size)
    return abs(value - right) / (abs(right) or 1.0)
