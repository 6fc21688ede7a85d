"""Several opinions as one, against small cases worked out by hand."""

from __future__ import annotations

import pytest
import torch

from orlaif.oracles.aggregate import borda_points, bradley_terry, copeland, pair_wins


def test_borda_by_hand() -> None:
    rankings = torch.tensor([[0, 1, 2], [0, 2, 1], [1, 0, 1]])
    # Shares of the two others beaten: 1, 1, 0 (one of a tie: 1/4); 1/2, 0, 1; 0, 1/2, 1/4.
    assert borda_points(rankings).tolist() == pytest.approx([(1 + 1 + 0.25) / 3, (0.5 + 0 + 1) / 3, 0.75 / 3])


def test_borda_with_weights_and_gaps() -> None:
    rankings = torch.tensor([[0, 1, -1], [1, 0, -1]])
    points = borda_points(rankings, torch.tensor([3.0, 1.0]))
    assert points[:2].tolist() == pytest.approx([0.75, 0.25])
    assert bool(points[2].isnan())


def test_a_lone_opinion_on_one_answer_says_nothing() -> None:
    assert borda_points(torch.tensor([[0, -1]]))[0] == 0.5


def test_wins_by_hand() -> None:
    wins = pair_wins(torch.tensor([[0, 1, 1], [2, 0, 1]]))
    assert wins.tolist() == [[0, 1, 1], [1, 0, 1.5], [1, 0.5, 0]]
    assert copeland(wins).tolist() == [0, 1, -1]


def test_copeland_prefers_the_condorcet_winner_that_borda_misses() -> None:
    """Three voters a > b > c, two voters b > c > a: a wins each pair, b has more points."""
    rankings = torch.tensor([[0, 1, 2]] * 3 + [[2, 0, 1]] * 2)
    assert int(copeland(pair_wins(rankings)).argmax()) == 0
    assert int(borda_points(rankings).argmax()) == 1


def test_bradley_terry_finds_the_strengths_that_made_the_wins() -> None:
    true = torch.tensor([1.0, 0.3, -0.2, -1.1], dtype=torch.float64)
    expected = torch.sigmoid(true[:, None] - true[None, :]).fill_diagonal_(0) * 1000
    found = bradley_terry(expected, prior=1e-6, iterations=5000)
    torch.testing.assert_close(found, true - true.mean(), atol=1e-3, rtol=0)


def test_bradley_terry_stays_finite_for_an_unbeaten_answer() -> None:
    wins = torch.tensor([[0.0, 2, 2, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    found = bradley_terry(wins)
    assert bool(found[:3].isfinite().all())
    assert float(found[0]) > float(found[1])
    assert float(found[1]) == pytest.approx(float(found[2]))
    assert bool(found[3].isnan())  # met nobody
