"""``rank_advantage``: what holds of every mapping, whatever the ranks."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.test_rank_advantage import MAPPINGS, advantages

hypothesis = pytest.importorskip("hypothesis", reason="Hypothesis is a test dependency: pip install -e '.[dev]'")
given, settings, st = hypothesis.given, hypothesis.settings, hypothesis.strategies

groups = st.integers(1, 9).flatmap(
    lambda g: st.lists(st.lists(st.integers(-1, 4), min_size=g, max_size=g), min_size=1, max_size=4)
)


@settings(max_examples=25, deadline=None)
@given(groups, st.sampled_from(MAPPINGS), st.randoms(use_true_random=False))
def test_properties_of_every_mapping(rows: list[list[int]], mapping: str, random: object) -> None:
    ranks = torch.tensor(rows)
    p, g = ranks.shape
    generator = torch.Generator().manual_seed(random.getrandbits(32))  # type: ignore[attr-defined]
    scores = torch.randint(3, (p, g), generator=generator).float()
    logps = torch.randint(3, (p, g), generator=generator).float()
    more = {"scores": scores, "sequence_logps": logps}
    found, weights = advantages(ranks, "torch", mapping, **more)
    # Both implementations agree, whatever integer type and shape the ranks come in.
    fused, fused_weights = advantages(ranks.int(), "triton", mapping, **more)
    torch.testing.assert_close(fused, found, atol=2e-6, rtol=2e-6)
    assert torch.equal(fused_weights, weights)
    # Sums are zero; what has no rank has neither advantage nor weight; nothing is learnt without weight.
    assert found.sum(-1).abs().max() < 1e-5
    assert bool((weights[ranks < 0] == 0).all())
    assert bool((found[weights == 0] == 0).all())
    # Permuting a group permutes its advantages.
    order = torch.randperm(g, generator=generator)
    permuted, _ = advantages(
        ranks[:, order], "triton", mapping, scores=scores[:, order], sequence_logps=logps[:, order]
    )
    torch.testing.assert_close(permuted, fused[:, order], atol=2e-6, rtol=2e-6)
    # Equal ranks mean equal advantages, where only ranks count; and a group teaches unless all its ranks are equal.
    if mapping in ("dcg", "borda"):
        for row, values, weight in zip(rows, fused.tolist(), weights.tolist(), strict=True):
            by_rank: dict[int, float] = {}
            for rank, value in zip(row, values, strict=True):
                assert value == pytest.approx(by_rank.setdefault(rank, value), abs=1e-6)
            teaches = len(set(row) - {-1}) > 1
            assert weight == [float(teaches and rank >= 0) for rank in row]
