"""From several opinions on a group to one: positions of several rankings, or wins of pairs.

Shapes: G answers, N rankings.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Method = Literal["borda", "copeland"]


def borda_points(rankings: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean share of the other answers that an answer beats, ties counting half (Borda 1781).

    Args:
        rankings: i64[N, G], 0 = best, equal answers share a rank, -1 = not ranked by that opinion.
        weights: f[N], by default all alike.

    Returns:
        f64[G] in [0, 1], more is better; NaN for an answer that no opinion ranked.
    """
    ranks = rankings.double()
    valid = rankings >= 0
    both = valid.unsqueeze(-1) & valid.unsqueeze(-2)
    both &= ~torch.eye(rankings.shape[-1], dtype=torch.bool, device=rankings.device)
    beats = (ranks.unsqueeze(-1) < ranks.unsqueeze(-2)).double()
    beats += 0.5 * (ranks.unsqueeze(-1) == ranks.unsqueeze(-2)).double()
    others = both.sum(-1)
    shares = (beats * both).sum(-1) / others.clamp(min=1)
    shares = shares.where(others > 0, torch.full_like(shares, 0.5))  # nobody to be compared with
    weight = torch.ones(len(rankings), dtype=torch.float64) if weights is None else weights.double()
    weight = weight.to(rankings.device).unsqueeze(-1) * valid
    total = weight.sum(0)
    return ((shares * weight).sum(0) / total).where(total > 0, torch.full_like(total, torch.nan))


def pair_wins(rankings: Tensor, weights: Tensor | None = None) -> Tensor:
    """How often each answer is ranked before each other one, ties counting half for both.

    Args:
        rankings: i64[N, G], -1 = not ranked.
        weights: f[N], by default all alike.

    Returns:
        f64[G, G], entry (i, j): weight of the opinions in which i is before j.
    """
    valid = rankings >= 0
    both = (valid.unsqueeze(-1) & valid.unsqueeze(-2)).double()
    both *= 1 - torch.eye(rankings.shape[-1], dtype=torch.float64, device=rankings.device)
    before = (rankings.unsqueeze(-1) < rankings.unsqueeze(-2)).double()
    before += 0.5 * (rankings.unsqueeze(-1) == rankings.unsqueeze(-2)).double()
    weight = torch.ones(len(rankings), dtype=torch.float64) if weights is None else weights.double()
    return (before * both * weight.to(rankings.device)[:, None, None]).sum(0)


def copeland(wins: Tensor) -> Tensor:
    """Pairs won minus pairs lost, by majority (Copeland 1951).

    Args:
        wins: f[G, G], entry (i, j): how often, or how surely, i is better than j; 0 both ways where they never met.

    Returns:
        f64[G], more is better; NaN for an answer that met no other.
    """
    wins = wins.double()
    points = (wins - wins.T).sign().sum(-1)
    met = ((wins + wins.T) > 0).any(-1)
    return points.where(met, torch.full_like(points, torch.nan))


def by_method(method: Method, rankings: Tensor, weights: Tensor | None = None) -> Tensor:
    """f64[G], more is better: :func:`borda_points`, or :func:`copeland` of :func:`pair_wins`."""
    return borda_points(rankings, weights) if method == "borda" else copeland(pair_wins(rankings, weights))


def bradley_terry(wins: Tensor, prior: float = 0.1, iterations: int = 200, tolerance: float = 1e-10) -> Tensor:
    """Log-strengths of the Bradley-Terry model, by Hunter's MM iteration (Hunter 2004, Annals of Statistics 32).

    Args:
        wins: f[G, G], entry (i, j): how often i is better than j; fractions are allowed.
        prior: wins and losses of every answer against one of average strength, which keeps an answer that won (or lost)
            all its pairs finite and makes the strengths unique.
        iterations: at most this many.
        tolerance: ends when no strength moves by more than this share.

    Returns:
        f64[G] of mean 0, more is better; NaN for an answer that met no other.
    """
    wins = wins.double()
    games = wins + wins.T
    met = (games > 0).any(-1)
    total = wins.sum(-1) + prior
    strength = torch.ones(len(wins), dtype=torch.float64, device=wins.device)
    for _ in range(iterations):
        shares = games / (strength.unsqueeze(-1) + strength)
        new = total / (shares.sum(-1) + 2 * prior / (strength + 1.0))
        moved = float(((new - strength) / strength).abs().max())
        strength = new
        if moved < tolerance:
            break
    logs = strength.log()
    return (logs - logs[met].mean()).where(met, torch.full_like(logs, torch.nan))
