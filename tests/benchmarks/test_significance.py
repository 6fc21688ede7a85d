"""P-values against tables of Student's t, and Holm's correction by hand."""

from __future__ import annotations

import pytest

from benchmarks.demo_controls import T_975
from benchmarks.significance import holm, paired_p, two_sided


@pytest.mark.parametrize(("seeds", "t"), T_975.items())
def test_the_bound_of_the_interval_has_p_of_one_in_twenty(seeds: int, t: float) -> None:
    assert two_sided(t, seeds - 1) == pytest.approx(0.05, abs=2e-4)
    assert two_sided(-t, seeds - 1) == two_sided(t, seeds - 1)


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
