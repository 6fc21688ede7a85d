"""P-values against tables of Student's t, and Holm's correction by hand."""

from __future__ import annotations

import math

import pytest

from benchmarks.significance import holm, interval, paired_p, t_bound, two_sided


@pytest.mark.parametrize(
    ("freedom", "t"), [(1, 12.706), (2, 4.303), (4, 2.776), (7, 2.365), (15, 2.131), (30, 2.042), (120, 1.980)]
)
def test_the_bound_of_the_interval_is_that_of_the_tables(freedom: int, t: float) -> None:
    """Tables of Student's t, 97.5 %."""
    assert t_bound(freedom) == pytest.approx(t, abs=5e-4)
    assert two_sided(t_bound(freedom), freedom) == pytest.approx(0.05, abs=1e-12)
    assert two_sided(-t, freedom) == two_sided(t, freedom)


def test_the_interval_of_a_mean() -> None:
    """Deviation 1 over three values: 4.303 / sqrt(3); seventeen and more values have their own bound as well."""
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2.4843), abs=1e-3)
    assert interval([0.0, 2.0] * 10)[1] == pytest.approx(2.0930 * (20 / 19 / 20) ** 0.5, abs=1e-4)
    assert math.isnan(interval([5.0])[1])
    with pytest.raises(ValueError, match=r"freedom=0; Student's t needs 1 or more"):
        t_bound(0)


def test_values_of_the_tables() -> None:
    assert two_sided(0.0, 7) == 1.0
    assert two_sided(4.073, 15) == pytest.approx(0.001, abs=2e-5)
    assert two_sided(2.228, 10) == pytest.approx(0.05, abs=1e-4)
    assert paired_p([1.0, -1.0]) == 1.0
    assert paired_p([0.0, 0.0, 0.0]) == 1.0
    assert paired_p([2.0, 2.0]) == 0.0


def test_holm_stops_at_the_first_that_is_too_large() -> None:
    """Bounds of the ordered p-values: 0.05 / 4, / 3, / 2, / 1."""
    assert holm([0.03, 0.001, 0.016, 0.04]) == [False, True, True, False]
    assert holm([0.02, 0.02, 0.02, 0.04]) == [False] * 4
    assert holm([]) == []
