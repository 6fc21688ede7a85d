"""The Triton kernel of rank -> advantage: one group per program, all groups in one launch.

The formulas are those of ``mappings.py``, which is its plain-PyTorch reference; nothing in an address comes from data.
"""
# ruff: noqa: N803
# mypy: disallow-untyped-defs=False

from __future__ import annotations

import triton
import triton.language as tl

MAPPINGS = {"dcg": 0, "borda": 1, "ndcg_penalty": 2, "zscore": 3}


@triton.jit
def _gain(position):
    r = position.to(tl.float32)
    return 1.0 / ((1.0 + r) * tl.log2(2.0 + r))


@triton.jit
def _mean_gain(first, count, group_size):
    """Mean of u over the ``count`` positions from ``first`` on."""
    total = tl.zeros_like(first).to(tl.float32)
    for k in range(group_size):
        total += tl.where((k >= first) & (k < first + count), _gain(k + tl.zeros_like(first)), 0.0)
    return total / count.to(tl.float32)


@triton.jit(do_not_specialize=["num_completions", "group_size"])
def group_kernel(
    ranks,  # [N] int32 or int64
    scores,  # [N], for zscore, or None
    sequence_logps,  # [N], for ndcg_penalty, or None
    advantages,  # out f32[N]
    weights,  # out f32[N]
    num_completions,
    group_size,
    zscore_eps,
    MAPPING: tl.constexpr,
    LANES: tl.constexpr,
):
    """One group per program. Scores are taken in float64: the mean of a million and a bit needs it, and G is small."""
    lane = tl.arange(0, LANES)
    base = tl.program_id(0) * group_size
    row = base + lane
    inside = (lane < group_size) & (row < num_completions)

    rank = tl.load(ranks + row, mask=inside, other=-1)
    valid = inside & (rank >= 0)
    if MAPPING == 3:
        score = tl.load(scores + row, mask=inside, other=0.0).to(tl.float64)
        valid = valid & (score == score)
        score = tl.where(valid, score, 0.0)
        best = tl.max(tl.where(valid, score, float("-inf")))
        signal = tl.sum((valid & (score < best)).to(tl.int32)) > 0
    else:
        worst = tl.max(tl.where(valid, rank, -1))
        signal = tl.sum((valid & (rank < worst)).to(tl.int32)) > 0
    n = tl.sum(valid.to(tl.int32))

    if MAPPING == 3:
        mean = tl.sum(score) / tl.maximum(n, 1).to(tl.float64)
        centred = tl.where(valid, score - mean, 0.0)
        variance = tl.sum(centred * centred) / tl.maximum(n - 1, 1).to(tl.float64)
        value = centred / (tl.sqrt(variance) + zscore_eps)
    else:
        first = tl.zeros([LANES], tl.int32)
        count = tl.zeros([LANES], tl.int32)
        for j in range(group_size):
            other = tl.load(ranks + base + j)
            first += ((other >= 0) & (other < rank)).to(tl.int32)
            count += ((other >= 0) & (other == rank)).to(tl.int32)
        count = tl.maximum(count, 1)
        if MAPPING == 1:
            position = first.to(tl.float32) + (count - 1).to(tl.float32) * 0.5
            value = 0.5 - position / tl.maximum(n - 1, 1).to(tl.float32)
        else:
            value = _mean_gain(first, count, group_size)
        if MAPPING == 2:
            logp = tl.load(sequence_logps + row, mask=inside, other=0.0).to(tl.float32)
            ahead = tl.zeros([LANES], tl.int32)
            equal = tl.zeros([LANES], tl.int32)
            for j in range(group_size):
                rival = tl.load(ranks + base + j) >= 0
                rival_logp = tl.load(sequence_logps + base + j).to(tl.float32)
                ahead += (rival & (rival_logp > logp)).to(tl.int32)
                equal += (rival & (rival_logp == logp)).to(tl.int32)
            value = _mean_gain(ahead, tl.maximum(equal, 1), group_size) / value
            value = tl.where(logp == logp, value, float("nan"))
        value = tl.where(valid, value, 0.0)
        value = value - tl.sum(value) / tl.maximum(n, 1).to(tl.float32)
    teaches = valid & signal
    tl.store(advantages + row, tl.where(teaches, value, 0.0).to(tl.float32), mask=inside)
    tl.store(weights + row, teaches.to(tl.float32), mask=inside)
