"""A group in a line: what the list of the page shows, filters and sorts by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orlaif.evaluation.text_metrics import is_correct

#: Characters of a text in the list.
_SHOWN = 160


#: What a summary has.
FIELDS: tuple[str, ...] = ("step", "id", "question", "task", "best", "tied", "failed", "length", "longest_best")
FIELDS += ("first_best", "agrees", "kl", "apart", "overruled", "right", "repeats")


def summary(group: dict[str, Any]) -> dict[str, Any]:
    """Plain values of one group.

    Args:
        group: as :class:`~orlaif.training.callbacks.KeepSamples` writes it.

    Returns:
        ``step``, ``id``, ``question``, ``task`` (its category), ``best`` (text of the best answer), ``tied`` (all ranks
        alike), ``failed``, ``length`` (mean tokens), ``longest_best`` and ``first_best`` (Kendall's tau of rank with
        length and with place; positive: longer or earlier is better), ``agrees`` (tau with the policy's log-probs),
        ``kl`` (mean over answers), ``apart`` (mean difference of a token's log-prob, trainer against sampler),
        ``overruled`` (an answer that is the reference answer was not ranked best), ``right`` (share of answers that are
        the reference answer) and ``repeats`` (mean share of an answer's tokens that end three in a row which it has
        said before). None where it is not known.
    """
    answers, prompt = group["answers"], group["prompt"]
    ranked = [a for a in answers if a["rank"] >= 0]
    ranks = [-a["rank"] for a in ranked]
    best = min(ranked, key=lambda a: a["rank"]) if ranked else None
    sums = [_sum(a["logps"]) for a in ranked]
    return {
        "step": group["step"],
        "id": prompt["id"],
        "question": _short(prompt["question"]),
        "task": prompt.get("category"),
        "best": None if best is None else _short(best["text"]),
        "tied": bool(ranked) and len(set(ranks)) == 1,
        "failed": group["failure"] is not None,
        "length": _mean([len(a["tokens"]) for a in answers]),
        "longest_best": kendall(ranks, [len(a["tokens"]) for a in ranked]),
        "first_best": kendall(ranks, [-i for i, a in enumerate(answers) if a["rank"] >= 0]),
        "agrees": None if None in sums else kendall(ranks, [one for one in sums if one is not None]),
        "kl": _mean([a["kl"] for a in answers]),
        "apart": _apart(answers),
        "overruled": _overruled(ranked, prompt.get("answer")),
        "right": _right(answers, prompt.get("answer")),
        "repeats": _mean([_repeats(a["tokens"]) for a in answers]),
    }


def kendall(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Kendall's tau-b of two orders (Kendall 1945), ties allowed; None where one of them orders nothing."""
    agree = less_x = less_y = 0
    for i in range(len(x)):
        for j in range(i):
            a, b = (x[i] > x[j]) - (x[i] < x[j]), (y[i] > y[j]) - (y[i] < y[j])
            agree, less_x, less_y = agree + a * b, less_x + abs(a), less_y + abs(b)
    return agree / (less_x * less_y) ** 0.5 if less_x and less_y else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _sum(values: Sequence[float | None] | None) -> float | None:
    """None where one of them is not known, or was no number (which is kept as null)."""
    if values is None or None in values:
        return None
    return sum(value for value in values if value is not None)


def _apart(answers: Sequence[dict[str, Any]]) -> float | None:
    pairs = [(a["logps"], a["trainer_logps"]) for a in answers]
    if any(None in pair for pair in pairs):
        return None
    return _mean([abs(p - q) for one, other in pairs for p, q in zip(one, other, strict=True) if None not in (p, q)])


def _overruled(ranked: Sequence[dict[str, Any]], reference: str | None) -> bool | None:
    if reference is None or not ranked:
        return None
    right = [a["rank"] for a in ranked if is_correct(a["text"], reference)]
    return max(right) > 0 if right else None


def _right(answers: Sequence[dict[str, Any]], reference: str | None) -> float | None:
    return None if reference is None else _mean([float(is_correct(a["text"], reference)) for a in answers])


def _repeats(tokens: Sequence[str]) -> float:
    threes = [tuple(tokens[i : i + 3]) for i in range(len(tokens) - 2)]
    return 1 - len(set(threes)) / len(threes) if threes else 0.0


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
