"""Signs of trouble, computed from what a run kept: each with its value, what is usual, and the groups that show it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from math import sqrt
from statistics import fmean, variance
from typing import Any

#: Groups that a sign is shown by.
_EXAMPLES = 5
#: Groups that a sign needs to be more than chance.
_FEWEST = 20


def signs(groups: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Signs of a run, those of trouble first.

    Args:
        groups: of :func:`~orlaif.view.summaries.summary`, in the order of the run.

    Returns:
        For each sign ``name``, ``value`` (None: not known), ``limit`` past which it is ``trouble``, ``meaning``, and
        ``groups``: places in ``groups`` of those that show it.
    """
    found = [
        _share(groups, "tied groups", "tied", 0.5, "all answers share a rank, so the group teaches nothing"),
        _share(groups, "unranked groups", "failed", 0.05, "the oracle failed"),
        _share(
            groups,
            "reference answers overruled",
            "overruled",
            0.1,
            "of groups in which the reference answer was sampled, those in which it was not ranked best: the judge or "
            "the data is wrong, or the judge prefers another wording",
        ),
        _tau(groups, "rank follows length", "longest_best", 0.3, "longer (or, negative, shorter) answers rank better"),
        _tau(
            groups, "rank follows place", "first_best", 0.15, "answers shown first (or last) rank better: a lazy judge"
        ),
        _collapse(groups),
        _repetition(groups),
        _length(groups),
        _loss(groups),
        _mismatch(groups),
    ]
    return sorted(found, key=lambda sign: not sign["trouble"])


def _sign(name: str, value: float | None, limit: float, meaning: str, places: Sequence[int]) -> dict[str, Any]:
    trouble = value is not None and abs(value) > limit
    return {
        "name": name,
        "value": value,
        "limit": limit,
        "meaning": meaning,
        "trouble": trouble,
        "groups": list(places)[:_EXAMPLES],
    }


def _share(groups: Sequence[dict[str, Any]], name: str, field: str, limit: float, meaning: str) -> dict[str, Any]:
    """Of groups in which ``field`` is true, among those in which it is known; the latest show it."""
    known = [i for i, group in enumerate(groups) if group[field] is not None]
    shown = [i for i in reversed(known) if groups[i][field]]
    value = len(shown) / len(known) if len(known) >= _FEWEST else None
    return _sign(name, value, limit, meaning, shown)


def _tau(groups: Sequence[dict[str, Any]], name: str, field: str, limit: float, meaning: str) -> dict[str, Any]:
    """Mean of ``field`` over the groups in which it is known; those show it that are furthest to its side."""
    known = [i for i, group in enumerate(groups) if group[field] is not None]
    if len(known) < _FEWEST:
        return _sign(name, None, limit, meaning, ())
    value = sum(groups[i][field] for i in known) / len(known)
    side: Callable[[int], float] = lambda i: -groups[i][field] if value > 0 else groups[i][field]  # noqa: E731
    return _sign(name, value, limit, meaning, sorted(known, key=side))


def _collapse(groups: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The share of the last fifth's prompts whose best answer is one and the same text."""
    meaning = "of the last fifth of the run, prompts whose best answer is the same text: one answer for everything"
    last = range(len(groups) - len(groups) // 5, len(groups))
    prompts: dict[str, set[str]] = defaultdict(set)
    for i in last:
        if groups[i]["best"] is not None:
            prompts[groups[i]["best"]].add(groups[i]["id"])
    everyone = {groups[i]["id"] for i in last}
    if len(everyone) < _FEWEST:
        return _sign("one answer for everything", None, 0.5, meaning, ())
    text = max(prompts, key=lambda one: len(prompts[one]), default="")
    value = len(prompts[text]) / len(everyone) if prompts else 0.0
    return _sign("one answer for everything", value, 0.5, meaning, [i for i in last if groups[i]["best"] == text])


def _ends(groups: Sequence[dict[str, Any]], field: str) -> tuple[list[int], list[float], list[float]] | None:
    """Groups of the last fifth in which ``field`` is known, its values in the first fifth and in the last."""
    known = [i for i, group in enumerate(groups) if group[field] is not None]
    fifth = len(known) // 5
    if fifth < _FEWEST // 5:
        return None
    first, last = ([groups[i][field] for i in part] for part in (known[:fifth], known[-fifth:]))
    return known[-fifth:], first, last


def _repetition(groups: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How much of the last fifth's answers says again what they have said."""
    meaning = "of the last fifth's tokens, those that end three in a row which the same answer has said before: babble"
    if (ends := _ends(groups, "repeats")) is None:
        return _sign("repetition", None, 0.2, meaning, ())
    late, _, last = ends
    return _sign("repetition", fmean(last), 0.2, meaning, sorted(late, key=lambda i: -groups[i]["repeats"]))


def _length(groups: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By what part the answers of the last fifth are longer than those of the first; negative: these than those."""
    meaning = "answers end longer (or, negative, shorter) than they began, by this part of the shorter: what is it for?"
    ends = _ends(groups, "length")
    if ends is None or min(map(sum, ends[1:])) == 0:
        return _sign("changing length", None, 0.5, meaning, ())
    late, first, last = ends[0], fmean(ends[1]), fmean(ends[2])
    value = last / first - 1 if last > first else 1 - first / last
    side = -1 if value > 0 else 1
    return _sign("changing length", value, 0.5, meaning, sorted(late, key=lambda i: side * groups[i]["length"]))


def _loss(groups: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How much rarer reference answers are among those sampled in the last fifth than in the first; 0 if not.

    The limit is three standard errors of that difference, so that few groups that happen to differ are no trouble.
    """
    meaning = "share of answers that were the reference answer in the first fifth and no longer are in the last: "
    meaning += "the policy has learned to fool the judge"
    if (ends := _ends(groups, "right")) is None:
        return _sign("reference answers lost", None, 0.05, meaning, ())
    late, first, last = ends
    limit = max(0.05, 3 * sqrt((variance(first) + variance(last)) / len(late)))
    shown = sorted(late, key=lambda i: groups[i]["right"])
    return _sign("reference answers lost", max(0.0, fmean(first) - fmean(last)), limit, meaning, shown)


def _mismatch(groups: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How much further sampler and trainer are apart in the last fifth than in the first, nats a token."""
    meaning = "nats a token by which sampler and trainer are further apart at the end than at the start: stale weights"
    if (ends := _ends(groups, "apart")) is None:
        return _sign("growing mismatch", None, 0.05, meaning, ())
    late, first, last = ends
    return _sign(
        "growing mismatch", fmean(last) - fmean(first), 0.05, meaning, sorted(late, key=lambda i: -groups[i]["apart"])
    )
