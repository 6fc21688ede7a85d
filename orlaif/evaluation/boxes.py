"""Boxes in a picture, as chat models write them, and how well two agree (spatial grounding).

Coordinates are those of the reference, absolute or as shares of the sides: an answer in others cannot be told from one
that is wrong, since neither says how large the picture is. So the prompt has to say which are asked for.
"""

from __future__ import annotations

import re

from orlaif.evaluation.choices import final_answer

Box = tuple[float, float, float, float]

_N = r"(-?\d+(?:\.\d+)?)"
_COMMA = r"\s*[,\s]\s*"
#: [x1, y1, x2, y2], (x1, y1), (x2, y2), and {"x1": ..., "y1": ..., "x2": ..., "y2": ...}.
_BOXES = [
    re.compile(rf"[\[(]\s*{_N}{_COMMA}{_N}{_COMMA}{_N}{_COMMA}{_N}\s*[\])]"),
    re.compile(rf"[\[(]\s*{_N}{_COMMA}{_N}\s*[\])]\s*(?:,|and|to|-)?\s*[\[(]\s*{_N}{_COMMA}{_N}\s*[\])]"),
    re.compile(rf"^\s*{_N}{_COMMA}{_N}{_COMMA}{_N}{_COMMA}{_N}\s*\.?\s*$"),
    re.compile(rf"""\bx_?1\W+{_N}\W+y_?1\W+{_N}\W+x_?2\W+{_N}\W+y_?2\W+{_N}"""),
]


def boxes(text: str) -> list[Box]:
    """The boxes in a text, as left, top, right and bottom, in the order of their spelling; also reversed ones."""
    found = [tuple(map(float, match.groups())) for pattern in _BOXES for match in pattern.finditer(text)]
    return list(dict.fromkeys((a, b, c, d) for a, b, c, d in found))


def box(answer: str) -> Box | None:
    """The one box that an answer states.

    Args:
        answer: ``[10, 20, 110, 220]``, ``<box>(10,20),(110,220)</box>``, ``{"bbox_2d": [10, 20, 110, 220]}``.

    Returns:
        Left, top, right, bottom; None where there is none, one without extent, or two that differ.
    """
    found = boxes(final_answer(answer))
    return found[0] if len(found) == 1 and _area(found[0]) > 0 else None


def intersection_over_union(one: Box, other: Box) -> float:
    """Area that two boxes share, over the area that either covers."""
    left, top = max(one[0], other[0]), max(one[1], other[1])
    shared = _area((left, top, min(one[2], other[2]), min(one[3], other[3])))
    return shared / (_area(one) + _area(other) - shared)


def box_iou(answer: str, reference: str) -> float | None:
    """IoU of the answer's box with that of the reference, the best one where the reference names several.

    Returns:
        0 to 1, or None where the answer cannot be read.

    Raises:
        ValueError: the reference names no box.
    """
    expected = [one for one in boxes(final_answer(reference)) if _area(one) > 0]
    if not expected:
        raise ValueError(f"the reference answer is {reference!r}; it must name a box, such as '[10, 20, 110, 220]'")
    given = box(answer)
    return None if given is None else max(intersection_over_union(given, one) for one in expected)


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])
