"""``rank_advantage``: numbers worked out by hand, and both implementations alike."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from orlaif_kernels import rank_advantage
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IMPLEMENTATIONS = ("torch", "triton")
MAPPINGS = ("dcg", "borda", "ndcg_penalty", "zscore")


def advantages(ranks: Tensor, implementation: str, mapping: str = "dcg", **more: Tensor) -> tuple[Tensor, Tensor]:
    found = rank_advantage(
        ranks.to(DEVICE),
        group_size=ranks.shape[-1],
        mapping=mapping,
        implementation=implementation,
        **{name: tensor.to(DEVICE) for name, tensor in more.items()},
    )
    return found[0].cpu(), found[1].cpu()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_dcg_by_hand(implementation: str) -> None:
    """Gains of ranks 0, 1, 2: 1, 1 / (2 log2 3), 1 / (3 * 2)."""
    gains = torch.tensor([1.0, 1 / (2 * math.log2(3)), 1 / 6])
    found, weights = advantages(torch.tensor([[2, 0, 1]]), implementation)
    torch.testing.assert_close(found[0], (gains - gains.mean())[[2, 0, 1]], atol=1e-6, rtol=1e-6)
    assert weights.tolist() == [[1.0, 1.0, 1.0]]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_ties_in_either_numbering_and_unranked_answers(implementation: str) -> None:
    ranks = torch.tensor([[0, 1, 1, 2, -1], [0, 1, 1, 3, -1], [4, 4, 4, 4, 4], [-1, -1, 2, -1, -1], [-1] * 5])
    found, weights = advantages(ranks, implementation)
    assert torch.equal(found[0], found[1])
    u = [1 / ((1 + r) * math.log2(2 + r)) for r in range(4)]
    tied = (u[1] + u[2]) / 2
    mean = (u[0] + 2 * tied + u[3]) / 4
    expected = torch.tensor([u[0] - mean, tied - mean, tied - mean, u[3] - mean, 0.0])
    torch.testing.assert_close(found[0], expected, atol=1e-6, rtol=1e-6)
    assert bool((found[2:] == 0).all())
    assert weights.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 0], [0] * 5, [0] * 5, [0] * 5]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_borda_zscore_and_penalty_by_hand(implementation: str) -> None:
    ranks = torch.tensor([[0, 1, 1, 2]])
    assert advantages(ranks, implementation, "borda")[0].tolist() == [pytest.approx([0.5, 0.0, 0.0, -0.5])]
    scores = torch.tensor([[3.0, 1.0, math.nan, 2.0]])
    found, weights = advantages(torch.zeros(1, 4, dtype=torch.long), implementation, "zscore", scores=scores)
    assert found.tolist() == [pytest.approx([1 / 1.0001, -1 / 1.0001, 0.0, 0.0], abs=1e-6)]
    assert weights.tolist() == [[1.0, 1.0, 0.0, 1.0]]
    # The policy's order is the oracle's: every d is 0, nothing to learn from agreement.
    logps = torch.tensor([[-1.0, -2.0, -3.0]])
    same = advantages(torch.tensor([[0, 1, 2]]), implementation, "ndcg_penalty", sequence_logps=logps)[0]
    assert same.tolist() == [pytest.approx([0.0, 0.0, 0.0], abs=1e-6)]
    # Reversed, the best answer is pushed down: u(2) / u(0) = 1/6 against 6 for the worst.
    against = advantages(torch.tensor([[2, 1, 0]]), implementation, "ndcg_penalty", sequence_logps=logps)[0]
    mean = (6 + 1 + 1 / 6) / 3
    assert against.tolist() == [pytest.approx([6 - mean, 1 - mean, 1 / 6 - mean], rel=1e-5)]


def test_all_groups_in_one_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    from orlaif_kernels import group_kernel

    grids: list[Any] = []

    class Launches:
        def __getitem__(self, grid: Any) -> Any:
            grids.append(grid)
            return original[grid]

    original = group_kernel.group_kernel
    monkeypatch.setattr(group_kernel, "group_kernel", Launches())
    ranks = torch.randint(-1, 5, (37, 6))
    found, _ = advantages(ranks, "triton")
    torch.testing.assert_close(found, advantages(ranks, "torch")[0], atol=2e-6, rtol=2e-6)
    assert grids == [(37,)]


@pytest.mark.parametrize(
    ("ranks", "settings", "message"),
    [
        (torch.zeros(6), {"group_size": 3}, "torch.float32"),
        (torch.zeros(7, dtype=torch.long), {"group_size": 3}, r"\(7,\)"),
        (torch.zeros(2, 4, dtype=torch.long), {"group_size": 3}, r"\(2, 4\)"),
        (torch.zeros(6, dtype=torch.long), {"group_size": 0}, "group_size is 0"),
        (torch.zeros(6, dtype=torch.long), {"group_size": 3, "mapping": "zscore"}, "needs scores"),
        (torch.zeros(6, dtype=torch.long), {"group_size": 3, "mapping": "ndcg_penalty"}, "needs sequence_logps"),
        (torch.zeros(6, dtype=torch.long), {"group_size": 3, "mapping": "elo"}, "'elo'"),
        (torch.zeros(6, dtype=torch.long), {"group_size": 3, "implementation": "cuda"}, "'cuda'"),
    ],
)
def test_mistakes_are_named(ranks: Tensor, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rank_advantage(ranks, **settings)


def test_shape_follows_the_ranks() -> None:
    flat, _ = rank_advantage(torch.tensor([0, 1, 1, 0]), group_size=2)
    grid, _ = rank_advantage(torch.tensor([[0, 1], [1, 0]]), group_size=2)
    assert flat.shape == (4,)
    assert torch.equal(flat.view(2, 2), grid)
    empty, weights = rank_advantage(torch.zeros(0, 4, dtype=torch.long), group_size=4)
    assert empty.shape == weights.shape == (0, 4)
