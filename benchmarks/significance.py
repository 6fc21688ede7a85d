"""Whether paired differences are more than noise: Student's t, and Holm's correction for many of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


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


def holm(p_values: Sequence[float], level: float = 0.05) -> list[bool]:
    """Which hypotheses Holm's step-down rejects, so that a false one among all is rejected with at most ``level``."""
    order = sorted(range(len(p_values)), key=lambda k: p_values[k])
    rejected = [False] * len(p_values)
    for place, k in enumerate(order):
        if p_values[k] > level / (len(p_values) - place):
            break
        rejected[k] = True
    return rejected
