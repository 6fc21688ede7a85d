"""Signs of trouble, computed from what a run kept: each with its value, what is usual, and the groups that show it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
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
            "an answer that is the reference answer was not ranked best: the judge or the data is wrong",
        ),
        _tau(groups, "rank follows length", "longest_best", 0.3, "longer (or, negative, shorter) answers rank better"),
        _tau(
            groups, "rank follows place", "first_best", 0.15, "answers shown first (or last) rank better: a lazy judge"
        ),
        _collapse(groups),
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


def _mismatch(groups: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How much further sampler and trainer are apart in the last fifth than in the first, nats a token."""
    meaning = "nats a token by which sampler and trainer are further apart at the end than at the start: stale weights"
    known = [i for i, group in enumerate(groups) if group["apart"] is not None]
    fifth = len(known) // 5
    if fifth < 4:
        return _sign("growing mismatch", None, 0.05, meaning, ())
    early, late = known[:fifth], known[-fifth:]
    value = sum(groups[i]["apart"] for i in late) / fifth - sum(groups[i]["apart"] for i in early) / fifth
    return _sign("growing mismatch", value, 0.05, meaning, sorted(late, key=lambda i: -groups[i]["apart"]))
