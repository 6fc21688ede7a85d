from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from orlaif_kernels.mappings import disagreement, gain_of

from orlaif.advantages import (
    DCG,
    ODRPO,
    RLOO,
    Borda,
    MeanCentered,
    NDCGPenalty,
    ZScore,
    borda,
    dcg,
    mean_centered,
    ndcg_penalty,
    odrpo,
    rloo,
    zscore,
)
from orlaif.types import Completions, Ranking

U = [1.0, 1 / (2 * math.log2(3)), 1 / 6, 1 / (4 * math.log2(5))]  # u(0) .. u(3) by hand


def close(a: torch.Tensor, b: object) -> None:
    torch.testing.assert_close(a, torch.tensor(b, dtype=torch.float32), atol=1e-6, rtol=0)


def test_dcg_by_hand() -> None:
    mean = sum(U[:3]) / 3
    close(
        dcg(torch.tensor([[0, 1, 2], [2, 0, 1]])),
        [[U[0] - mean, U[1] - mean, U[2] - mean], [U[2] - mean, U[0] - mean, U[1] - mean]],
    )


def test_tied_answers_share_the_gain_of_the_positions_they_span() -> None:
    mean, tied = sum(U) / 4, (U[1] + U[2]) / 2
    expected = [[U[0] - mean, tied - mean, tied - mean, U[3] - mean]]
    close(dcg(torch.tensor([[0, 1, 1, 2]])), expected)
    close(dcg(torch.tensor([[0, 1, 1, 3]])), expected)


def test_an_unranked_answer_is_left_out_and_gets_zero() -> None:
    mean = sum(U[:2]) / 2
    close(dcg(torch.tensor([[0, -1, 1]])), [[U[0] - mean, 0.0, U[1] - mean]])
    close(borda(torch.tensor([[0, -1, 1]])), [[0.5, 0.0, -0.5]])
    for mapping in (dcg, borda):
        close(mapping(torch.tensor([[-1, -1, -1], [0, -1, -1]])), [[0.0] * 3, [0.0] * 3])


def test_borda_by_hand() -> None:
    close(borda(torch.tensor([[2, 0, 1], [0, 0, 1]])), [[-0.5, 0.5, 0.0], [0.25, 0.25, -0.5]])


def test_ndcg_penalty_by_hand() -> None:
    # The policy's order is 1, 0, 2; the oracle's is 0, 1, 2: d = 1 - u(p) / u(r).
    d = [1 - U[1] / U[0], 1 - U[0] / U[1], 0.0]
    mean = sum(d) / 3
    logps = torch.tensor([[-2.0, -1.0, -3.0]])
    close(ndcg_penalty(torch.tensor([[0, 1, 2]]), logps), [[mean - x for x in d]])


def test_ndcg_penalty_can_push_the_best_answer_down() -> None:
    """Why it is not the default: the best answer, ranked low by the policy, is punished."""
    logps = torch.tensor([[-9.0, -1.0, -2.0]])
    assert float(ndcg_penalty(torch.tensor([[0, 1, 2]]), logps)[0, 0]) < 0 < float(dcg(torch.tensor([[0, 1, 2]]))[0, 0])


def test_the_penalties_of_the_papers_appendix() -> None:
    predicted, true = gain_of(torch.arange(5), "appendix"), gain_of(torch.zeros(5, dtype=torch.long), "appendix")
    penalties = disagreement(predicted, true)
    assert penalties.tolist() == pytest.approx([0.0, 0.2075, 0.3333, 0.4195, 0.4830], abs=6e-5)
    advantages = penalties.mean() - penalties
    # As printed these sum to 0.0004, so one of them is a slip; they are met to that.
    assert advantages.tolist() == pytest.approx([0.2887, 0.0812, -0.0446, -0.1306, -0.1943], abs=3e-4)


def test_each_reading_of_the_penalty_by_hand() -> None:
    # The oracle's best is the policy's worst: gains of the oracle's places (1, u, v), of the policy's (v, u, 1).
    ranks, logps = torch.tensor([[0, 1, 2]]), torch.tensor([[-3.0, -2.0, -1.0]])
    for gain, v in (("text", 1 / 6), ("appendix", 2 / 3)):
        for quotient, d in (("literal", (1 - v, 0.0, 1 - 1 / v)), ("reversed", (1 - 1 / v, 0.0, 1 - v))):
            expected = [sum(d) / 3 - x for x in d]
            close(ndcg_penalty(ranks, logps, gain, quotient), [expected])
            best_is_pushed_down = quotient == "literal"
            assert (expected[0] < 0) == best_is_pushed_down
    assert torch.equal(ndcg_penalty(ranks, logps), ndcg_penalty(ranks, logps, "text", "literal"))


def test_a_reading_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="gain is 'dcg'; it must be one of 'text', 'appendix'"):
        NDCGPenalty(gain="dcg")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="quotient is 'inverse'; it must be one of 'literal', 'reversed'"):
        NDCGPenalty(quotient="inverse")  # type: ignore[arg-type]


def test_zscore_by_hand() -> None:
    close(zscore(torch.tensor([[1.0, 0.0, 2.0]]), eps=0.0), [[0.0, -1.0, 1.0]])
    close(zscore(torch.tensor([[1.0, math.nan, 0.0]]), eps=0.0), [[math.sqrt(0.5), 0.0, -math.sqrt(0.5)]])
    close(zscore(torch.tensor([[0.3, 0.3, 0.3], [math.nan] * 3])), [[0.0] * 3] * 2)


def test_mean_centered_by_hand() -> None:
    close(mean_centered(torch.tensor([[1.0, 4.0, 4.0, 2.0]])), [[-1.75, 1.25, 1.25, -0.75]])
    close(
        mean_centered(torch.tensor([[1.0, math.nan, 0.0], [0.3] * 3, [math.nan] * 3])),
        [[0.5, 0.0, -0.5], *[[0.0] * 3] * 2],
    )


def test_rloo_by_hand() -> None:
    # Against the others: 1 - 10/3, 4 - 7/3, 2 - 3.
    close(rloo(torch.tensor([[1.0, 4.0, 4.0, 2.0]])), [[-7 / 3, 5 / 3, 5 / 3, -1.0]])
    close(rloo(torch.tensor([[1.0, math.nan, 0.0], [1.0, math.nan, math.nan]])), [[1.0, 0.0, -1.0], [0.0] * 3])


def test_odrpo_by_hand() -> None:
    # Three of four pass 2: 1/4 and -3/4 over a deviation of 1/2. Two pass 3 and 4: 1/2 over sqrt(1/3). None passes 5.
    scores, half = torch.tensor([[1.0, 4.0, 4.0, 2.0]]), 0.5 / math.sqrt(1 / 3)
    best, eased = 0.5 + 2 * half, 0.5 - 2 * half
    torch.testing.assert_close(
        odrpo(scores, (2, 3, 4, 5)), torch.tensor([[-1.5 - 2 * half, best, best, eased]]), atol=1e-3, rtol=0
    )
    assert torch.equal(odrpo(scores, (5, 3, 2, 4)), odrpo(scores, (2, 3, 4, 5)))
    # The scores that occur, each once, are the thresholds by default: the gap between 2 and 4 counts once.
    torch.testing.assert_close(odrpo(scores), odrpo(scores, (1, 2, 4)))
    torch.testing.assert_close(odrpo(scores), odrpo(10 * scores.exp()))
    # One threshold is GRPO of success at it; an answer without a score is in no mean.
    torch.testing.assert_close(odrpo(scores, (2,)), zscore(torch.tensor([[0.0, 1.0, 1.0, 1.0]])))
    missing = odrpo(torch.tensor([[1.0, math.nan, 4.0]]))
    torch.testing.assert_close(missing, zscore(torch.tensor([[0.0, math.nan, 1.0]])))


@pytest.mark.parametrize("thresholds", [[], [2, 2], [math.nan], [1, math.inf], 3, "23", [1, "2"], [None]])
def test_thresholds_that_are_none(thresholds: Any) -> None:
    with pytest.raises(ValueError, match=r"advantage\.thresholds is .* one or more different finite numbers"):
        ODRPO(thresholds)


def test_how_far_down_the_penalty_of_the_text_s_gain_reaches() -> None:
    """The docs' figures: 1 - G log2(1 + G) for an answer that one of policy and oracle has first, the other last."""
    for size, lowest in ((5, -11.9), (8, -24.4)):
        gains = gain_of(torch.tensor([0.0, size - 1]), "text")
        for quotient, (predicted, true) in (("literal", (0, 1)), ("reversed", (1, 0))):
            d = float(disagreement(gains[predicted], gains[true], quotient))  # type: ignore[arg-type]
            assert d == pytest.approx(1 - size * math.log2(1 + size), rel=1e-5)
            assert round(d, 1) == lowest


def test_gopo_is_borda_times_four() -> None:
    # Linear ranks from 2 to -2 (arXiv 2602.03876).
    close(4 * borda(torch.tensor([[0, 1, 2, 3, 4]])), [[2.0, 1.0, 0.0, -1.0, -2.0]])


@pytest.mark.parametrize("mapping", [mean_centered, rloo, odrpo])
def test_an_infinite_score_is_named(mapping) -> None:
    with pytest.raises(ValueError, match=r"scores are inf at \[0, 1\]"):
        mapping(torch.tensor([[0.0, math.inf]]))


groups = st.integers(2, 9).flatmap(lambda g: st.lists(st.integers(-1, g - 1), min_size=g, max_size=g))


@settings(deadline=None, max_examples=200)
@given(groups, st.randoms(use_true_random=False))
def test_properties_of_every_mapping(group: list[int], random) -> None:
    ranks = torch.tensor([group])
    order = list(range(len(group)))
    random.shuffle(order)
    logps = torch.tensor([[random.uniform(-9, 0) for _ in group]])
    scores = -ranks.float().masked_fill(ranks < 0, math.nan)
    of_scores = [(mapping, (scores,)) for mapping in (zscore, mean_centered, rloo, odrpo)]
    for mapping, inputs in ((dcg, (ranks,)), (borda, (ranks,)), (ndcg_penalty, (ranks, logps)), *of_scores):
        advantages = mapping(*inputs)
        assert abs(float(advantages.sum())) < 1e-5
        assert bool((advantages[ranks < 0] == 0).all())
        if len({rank for rank in group if rank >= 0}) <= 1:
            assert bool((advantages == 0).all())
        torch.testing.assert_close(mapping(*(x[:, order] for x in inputs)), advantages[:, order], atol=1e-6, rtol=0)
    for mapping in (dcg, borda):  # a better rank is never worth less
        a = mapping(ranks)[0]
        assert all(a[i] >= a[j] - 1e-6 for i, x in enumerate(group) for j, y in enumerate(group) if 0 <= x <= y)


def test_the_classes_a_recipe_names() -> None:
    ranking = Ranking(ranks=torch.tensor([[0, 1, 2]]), scores=torch.tensor([[1.0, 0.5, 0.0]]))
    ids = torch.zeros(1, 3, 2, dtype=torch.int64)
    mask = torch.tensor([[[True, True], [True, False], [True, True]]])
    logps = torch.tensor([[[-1.0, -1.0], [-1.0, 0.0], [-2.0, -1.0]]])
    completions = Completions(ids=ids, mask=mask, texts=(("a", "b", "c"),), logps=logps)
    assert torch.equal(DCG()(ranking, completions), dcg(ranking.ranks))
    assert torch.equal(Borda()(ranking, completions), borda(ranking.ranks))
    assert torch.equal(ZScore()(ranking, completions), zscore(ranking.scores))
    assert torch.equal(MeanCentered()(ranking, completions), mean_centered(ranking.scores))
    assert torch.equal(RLOO()(ranking, completions), rloo(ranking.scores))
    assert torch.equal(ODRPO()(ranking, completions), odrpo(ranking.scores))
    assert torch.equal(ODRPO([1.0])(ranking, completions), zscore(torch.tensor([[1.0, 0.0, 0.0]])))
    expected = ndcg_penalty(ranking.ranks, torch.tensor([[-2.0, -1.0, -3.0]]))
    assert torch.equal(NDCGPenalty()(ranking, completions), expected)
    for mapping in (ZScore(), MeanCentered(), RLOO(), ODRPO()):
        with pytest.raises(ValueError, match=f"{type(mapping).__name__} needs an oracle with scores"):
            mapping(Ranking(ranks=ranking.ranks), completions)
    with pytest.raises(ValueError, match="logps"):
        NDCGPenalty()(ranking, Completions(ids=ids, mask=mask, texts=(("a", "b", "c"),)))
