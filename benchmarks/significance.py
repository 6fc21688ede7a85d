"""How sure a mean over seeds is, and whether differences are more than noise: Student's t, Holm's correction."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval (Student's t); NaN for a single value."""
    n = len(values)
    if n < 2:
        return values[0], math.nan
    return statistics.fmean(values), t_bound(n - 1) * statistics.stdev(values) / math.sqrt(n)


def paired_p(differences: Sequence[float]) -> float:
    """Two-sided p-value of the mean of ``differences`` under Student's t; 1 where all are 0."""
    spread = statistics.stdev(differences)
    mean = statistics.fmean(differences)
    if spread == 0:
        return 1.0 if mean == 0 else 0.0
    return two_sided(mean / spread * math.sqrt(len(differences)), len(differences) - 1)


def two_sided(t: float, freedom: int) -> float:
    """P(|T| > ``t``) of Student's t with ``freedom`` degrees (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(abs(t) / math.sqrt(freedom))
    cosine, odd = math.cos(angle), freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= cosine * cosine * k / (k + 1)
    inside = math.sin(angle) * total
    return max(0.0, 1.0 - (2 / math.pi * (angle + inside) if odd else inside))


def t_bound(freedom: int, level: float = 0.05) -> float:
    """The t that ``two_sided`` gives ``level``: half the width of a 95 % interval, in standard errors of the mean.

    Raises:
        ValueError: ``freedom`` is below 1: a single value has no interval.
    """
    if freedom < 1:
        raise ValueError(f"freedom={freedom}; Student's t needs 1 or more: two values at least")
    low, high = 0.0, 1.0
    while two_sided(high, freedom) > level:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if two_sided(middle, freedom) > level else (low, middle)
    return high


def holm(p_values: Sequence[float], level: float = 0.05) -> list[bool]:
    """Which hypotheses Holm's step-down rejects, so that a false one among all is rejected with at most ``level``."""
    order = sorted(range(len(p_values)), key=lambda k: p_values[k])
    rejected = [False] * len(p_values)
    for place, k in enumerate(order):
        if p_values[k] > level / (len(p_values) - place):
            break
        rejected[k] = True
    return rejected
