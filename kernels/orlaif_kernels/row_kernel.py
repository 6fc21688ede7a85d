"""The Triton kernel of a row: its statistics, its token's GRPO_rank loss, its gradient.

A *row* is the V logits that predict one completion token. With z = logit / temperature (after soft-capping, if any):

    lse = log sum_j exp z_j      p_j = exp(z_j - lse)      logp = z_y - lse      H = lse - sum_j p_j z_j

Any loss l(logp, H) of the token has, with c = dl/dlogp and h = dl/dH, the gradient

    dl/dz_j = c (1[j = y] - p_j) - h p_j (log p_j + H)  =  p_j (h E[d] - c - h d_j) + c 1[j = y],  d_j = z_j - max z

which needs nothing of the row but (max, lse, E[d]): a first sweep finds these, a second writes the gradient, over the
logits themselves if asked. Exponents are in units of log 2, where exp2 and log2 are single instructions, and are formed
as d = (logit - top) * scale: a difference of neighbours is exact, soft-capped ones too (``token_kernel.apart``), so a
log-prob does not inherit the rounding of a large log-sum-exp; nor does the entropy's slope, d_j - E[d], that of log p_j
and H, which are near log V and its negative where a policy is unsure.

**Confident tokens.** Where one token has nearly all probability, float32 knows 1 - p only as the sum of the others. So
the largest logit is left out of the sum (``rest``), its own lane being read once more for that, lse - top is
log1p(rest), and 1 - p_y is -expm1(logp); nothing cancels, and H, a sum of terms >= 0, is never negative.

**How a sweep reads.** Lanes of 128 bits, 8 neighbouring logits or 4 in fp32, the next block on its way while one is
used, and an online (max, sum exp, sum exp * z) *per lane*: a lane lies in one thread, so the loop has no barrier and
no shuffle, and costs 1 1/8 exponentials per logit (1 1/4); lanes meet once, at the end of the row. Where V is not
divisible by a lane's width a row starts in the middle of a 128-bit word: up to 7 logits at each end are taken apart
(``head`` and tail), and what lies between is read like any other row.

**How a row is read twice but fetched once.** There are as many programs as multiprocessors, or a few times that for
rows that are small (``rows.row_launch``), each of many warps, and they take turns at the rows; so what is in flight
(132 x 304 KB for 152,064 bf16 logits on an H100) fits an L2 cache of 50 MB. The second sweep runs backwards, starting
with what was read last, and its stores are the first to leave the cache. A cluster of multiprocessors can *hold* a
row in its registers from one sweep to the other and read it once, whatever L2 does (``rows.cluster_launch``): compiled,
its gradients tested in the interpreter, and off until a GPU has timed it.

A target outside the vocabulary is never an address: its log-prob is NaN. Programs never share an output and sums have a
fixed order: results are bitwise repeatable. No argument that changes with batch, length or schedule is specialised.
"""

from __future__ import annotations  # noqa: I001 (names of a kernel, many to a line)

import triton
import triton.language as tl
from triton.runtime import JITFunction

from orlaif_kernels.token_kernel import (
    ALL_NAN, ENTROPY, FLOOR, LN2, LOG_SUM, LOGP, MEAN,
    TOP, apart, distance, expm1, log1p, logit, term, through_cap,
)  # fmt: skip


@triton.jit
def _fold(x, scale, rate, m, s, t):
    """Fold the next logits into each lane; x is [R, WIDTH], the rest [R].

    m is the lane's maximum, s its sum of exp2(d) and t its sum of d exp2(d), with d the distance to m.
    """
    top = tl.maximum(m, tl.max(x, 1))
    base = tl.where(top == float("-inf"), 0.0, top)
    shift = distance(m, base, scale, rate)
    shrink = tl.exp2(shift)
    d = distance(x, base[:, None], scale, rate)
    e = tl.exp2(d)
    t = (t + s * shift) * shrink + tl.sum(e * d, 1)
    s = s * shrink + tl.sum(e, 1)
    return top, s, t


@triton.jit
def _fold_but_top(x, scale, rate, top):
    """Sums of exp2(d) and d exp2(d) over logits x that are not ``top``, and how many are."""
    at_top = x == top
    d = distance(x, top, scale, rate)
    e = tl.where(at_top, 0.0, tl.exp2(d))
    return tl.sum(e), tl.sum(e * d), tl.sum(at_top.to(tl.float32))


@triton.jit
def _gradient(x, is_target, top, scale, rate, a, b, of_target):
    """dl/dlogit of logits x: exp2(d) (a + b d), but ``of_target`` at the target; and through the soft cap."""
    d = distance(x, top, scale, rate)
    return through_cap(tl.where(is_target, of_target, tl.exp2(d) * (a + b * d)), x, rate)


@triton.jit(do_not_specialize=["num_rows", "num_tokens", "slots", "rows_per_completion"])
def row_kernel(
    logits,  # [.., V]
    dlogits,  # out, laid out like logits, of any float dtype; may be logits; None without GRADIENT
    token_ids,  # [N, T] int32 or int64
    mask,  # [N, T] bool as bytes
    index,  # int64[M]: token of each row of compacted logits, or None
    state,  # f32[5 or, with TERM, 11, N * T]: written with STATISTICS, else read
    grad_logps,  # f32[N * T], dl/dlogp; None with TERM or without GRADIENT
    grad_entropy,  # f32[N * T], dl/dH; likewise
    advantages,  # f32[N * T], these four with TERM
    weights,  # f32[N * T]
    old_logps,  # [N, T] or None
    ref_logps,  # [N, T] or None
    normalizer,  # f32[], divides the gradient, or None
    num_rows,
    num_tokens,
    slots,  # N * T
    rows_per_completion,
    scale,  # of a distance, to units of log 2: log2(e) / temperature
    inverse_temperature,  # to float32, and what that leaves:
    inverse_temperature_rest,
    rate,  # 2 log2(e) / soft cap, or None; distances are then in units of twice the cap
    floor,
    cap_up,
    cap_down,
    clip_edge,
    max_log_ratio,
    kl_coef,
    entropy_coef,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
    STATISTICS: tl.constexpr,  # sweep 1: lse, entropy, logp
    TERM: tl.constexpr,  # the GRPO_rank loss of the token, with a token-level ratio
    GRADIENT: tl.constexpr,  # sweep 2
    KL_ESTIMATOR: tl.constexpr,
    HELD: tl.constexpr,  # a row is one block, which stays in registers from one sweep to the other
):
    """Rows of logits, a program's one after the other; see the module's docstring."""
    WIDTH: tl.constexpr = 128 // logits.dtype.element_ty.primitive_bitwidth
    LANES: tl.constexpr = BLOCK // WIDTH
    BLOCKS: tl.constexpr = (V + BLOCK - 1) // BLOCK
    BLOCKS_2: tl.constexpr = triton.next_power_of_2(BLOCKS)
    ALIGNED: tl.constexpr = V % WIDTH == 0
    slots = tl.cast(slots, tl.int64)
    lane = tl.arange(0, LANES)
    within_lane = tl.arange(0, WIDTH)[None, :]
    spread = lane[:, None] * WIDTH + within_lane
    edge = tl.arange(0, 2)[:, None] * WIDTH + within_lane

    for pid in range(tl.program_id(0), num_rows, tl.num_programs(0)):
        if index is not None:
            at = tl.load(index + pid)
            offset = tl.cast(pid, tl.int64) * V
        else:
            at = tl.cast(pid, tl.int64)
            completion = at // num_tokens
            offset = (completion * rows_per_completion + (at - completion * num_tokens)) * V
        if ALIGNED:
            head = 0
            lanes_in_row = V // WIDTH
            begin = offset
        else:
            head = tl.minimum((-offset) & (WIDTH - 1), V).to(tl.int32)
            lanes_in_row = (V - head) // WIDTH
            begin = tl.multiple_of(offset + head, WIDTH)
        # The ends of a row that is not aligned: a lane's places before the first full lane, and after the last.
        edge_column = tl.where(edge < WIDTH, edge, head + lanes_in_row * WIDTH + edge - WIDTH)
        on_edge = tl.where(edge < WIDTH, edge < head, edge_column < V)

        if tl.load(mask + at) != 0:
            target = tl.load(token_ids + at)
            within = (target >= 0) & (target < V)
            x_target = logit(tl.load(logits + offset + target, mask=within, other=float("nan")), rate)
            if STATISTICS:
                m = tl.full([LANES], float("-inf"), tl.float32)
                s = tl.zeros([LANES], tl.float32)
                t = tl.zeros([LANES], tl.float32)
                x = tl.load(logits + begin + spread, mask=(lane < lanes_in_row)[:, None], other=float("-inf"))
                for i in range(0 if HELD else BLOCKS):
                    ahead = tl.load(
                        logits + begin + (i + 1) * BLOCK + spread,
                        mask=((i + 1) * LANES + lane < lanes_in_row)[:, None],
                        other=float("-inf"),
                    )
                    m, s, t = _fold(logit(x, rate), scale, rate, m, s, t)
                    x = ahead
                if HELD:
                    m, s, t = _fold(logit(x, rate), scale, rate, m, s, t)
                top = tl.max(m)
                if not ALIGNED:
                    x_edge = tl.load(logits + offset + edge_column, mask=on_edge, other=float("-inf"))
                    x_edge = logit(x_edge, rate)
                    top = tl.maximum(top, tl.max(x_edge))
                # The lane with the largest logit once more, without it.
                best = tl.min(tl.where(m == top, lane, LANES))
                shift = distance(m, top, scale, rate)
                shrink = tl.where(lane == best, 0.0, tl.exp2(shift))
                block = tl.arange(0, BLOCKS_2)[:, None]
                x_best = tl.load(
                    logits + begin + block * BLOCK + best * WIDTH + within_lane,
                    mask=block * LANES + best < tl.where(best < LANES, lanes_in_row, 0),
                    other=float("-inf"),
                )
                e_lane, t_lane, tops = _fold_but_top(logit(x_best, rate), scale, rate, top)
                rest = tl.sum(s * shrink) + e_lane
                sum_et = tl.sum((t + s * shift) * shrink) + t_lane
                if not ALIGNED:
                    e_edge, t_edge, more = _fold_but_top(x_edge, scale, rate, top)
                    rest += e_edge
                    sum_et += t_edge
                    tops += more
                # A logit of +inf is no probability: NaN, not a certain token.
                rest = tl.where(top == float("inf"), float("nan"), rest + (tops - 1.0))
                log_sum = log1p(rest)
                # The distance of an unlikely token is large, and a factor rounded to float32 would show in its ratio.
                far = apart(x_target, top, 1.0, rate)
                logp = far * inverse_temperature + (far * inverse_temperature_rest - log_sum)
                # An excluded target: -inf * 0 would be NaN; beside a logit of +inf it is.
                logp = tl.where((far == float("-inf")) & (rest == rest), far, logp)
                mean = sum_et / (1.0 + rest) * LN2
                entropy = log_sum - mean
                tl.store(state + TOP * slots + at, top)
                tl.store(state + LOG_SUM * slots + at, log_sum)
                tl.store(state + LOGP * slots + at, logp)
                tl.store(state + ENTROPY * slots + at, entropy)
                tl.store(state + MEAN * slots + at, mean)
            else:
                top = tl.load(state + TOP * slots + at)
                log_sum = tl.load(state + LOG_SUM * slots + at)
                logp = tl.load(state + LOGP * slots + at)
                mean = tl.load(state + MEAN * slots + at)

            if TERM:
                c, h = term(
                    state, at, slots, logp, entropy, advantages, weights, old_logps, ref_logps,
                    floor, cap_up, cap_down, clip_edge, max_log_ratio, kl_coef, entropy_coef, KL_ESTIMATOR,
                )  # fmt: skip
            elif GRADIENT:
                c = tl.load(grad_logps + at)
                h = tl.load(grad_entropy + at)

            if GRADIENT:
                factor = inverse_temperature
                if normalizer is not None:
                    factor = factor / tl.load(normalizer)
                if rate is not None:
                    factor = factor * (rate * LN2)
                c = c * factor
                h = h * factor
                per_sum = tl.exp(-log_sum)  # of exp2(d), a probability
                a = (h * mean - c) * per_sum
                b = -h * LN2 * per_sum
                log_p = tl.maximum(logp, FLOOR, propagate_nan=ALL_NAN)
                d_target = distance(x_target, top, inverse_temperature, rate)
                of_target = -c * expm1(log_p) - h * tl.exp(log_p) * (d_target - mean)
                if not ALIGNED:
                    x_edge = tl.load(logits + offset + edge_column, mask=on_edge, other=float("-inf"))
                    at_target = edge_column == target
                    g_edge = _gradient(logit(x_edge, rate), at_target, top, scale, rate, a, b, of_target)
                    tl.store(dlogits + offset + edge_column, g_edge.to(dlogits.dtype.element_ty), mask=on_edge)
                ahead_of_target = target.to(tl.int32) - head
                for k in range(BLOCKS):
                    i = BLOCKS - 1 - k
                    inside = (i * LANES + lane < lanes_in_row)[:, None]
                    if STATISTICS and HELD:
                        z = x
                    else:
                        z = tl.load(logits + begin + i * BLOCK + spread, mask=inside)
                    is_target = within_lane == (ahead_of_target - i * BLOCK - lane * WIDTH)[:, None]
                    g = _gradient(logit(z, rate), is_target, top, scale, rate, a, b, of_target)
                    g = g.to(dlogits.dtype.element_ty)
                    tl.store(dlogits + begin + i * BLOCK + spread, g, mask=inside, eviction_policy="evict_first")
        else:
            if STATISTICS:
                for slot in tl.static_range(11 if TERM else 5):
                    tl.store(state + slot * slots + at, 0.0)
            if GRADIENT:
                zero = tl.zeros([LANES, WIDTH], dlogits.dtype.element_ty)
                for i in range(BLOCKS):
                    inside = (i * LANES + lane < lanes_in_row)[:, None]
                    tl.store(dlogits + begin + i * BLOCK + spread, zero, mask=inside)
                if not ALIGNED:
                    tl.store(
                        dlogits + offset + edge_column, tl.zeros([2, WIDTH], dlogits.dtype.element_ty), mask=on_edge
                    )


@triton.jit(do_not_specialize=["num_elements"])
def scale_kernel(x, factor, num_elements, BLOCK: tl.constexpr):
    """x (in and out) times factor (f32[]); reads and writes nothing of x where that is 1."""
    factor = tl.load(factor).to(tl.float32)
    if factor != 1.0:
        LANES: tl.constexpr = BLOCK // 8
        lanes = num_elements // 8
        programs = tl.num_programs(0).to(tl.int64)
        eight = tl.arange(0, 8)
        for start in range(tl.program_id(0).to(tl.int64) * LANES, lanes, programs * LANES):
            lane = start + tl.arange(0, LANES)
            at = lane[:, None] * 8 + eight[None, :]
            value = tl.load(x + at, mask=(lane < lanes)[:, None], other=0.0).to(tl.float32) * factor
            tl.store(x + at, value.to(x.dtype.element_ty), mask=(lane < lanes)[:, None])
        if tl.program_id(0) == 0:
            rest = lanes.to(tl.int64) * 8 + eight
            value = tl.load(x + rest, mask=rest < num_elements, other=0.0).to(tl.float32) * factor
            tl.store(x + rest, value.to(x.dtype.element_ty), mask=rest < num_elements)


#: Whether the kernels run in the interpreter (TRITON_INTERPRET=1 at import), on any device.
INTERPRETED = not isinstance(row_kernel, JITFunction)
