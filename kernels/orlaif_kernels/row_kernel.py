"""The Triton kernels: groups to advantages, and one row of logits to its loss and its gradient.

A *row* is the V logits that predict one completion token. With z = logit / temperature (after soft-capping, if any):

    lse = log sum_j exp z_j      p_j = exp(z_j - lse)      logp = z_y - lse      H = lse - sum_j p_j z_j

The loss of a token is a function l(logp, H), so that with c = dl/dlogp and e = -dl/dH

    dl/dz_j = c (1[j = y] - p_j) + e p_j (log p_j + H)  =  p_j (e H - c + e log p_j) + c 1[j = y]

which needs nothing of the row but (lse, H): a first sweep finds these, a second writes the gradient, over the logits
themselves if asked. Exponents are in units of log 2, where exp2 and log2 are single instructions, and are formed as
(logit - top) * scale: a difference of neighbours is exact, so a log-prob does not inherit the rounding of a large
log-sum-exp.

**How a sweep reads.** Lanes of 8 neighbouring logits, so that global accesses are 128 bits wide (bf16, fp16; two of
them for fp32), and an online (max, sum exp, sum exp * z) *per lane*: a lane's 8 logits lie in one thread, so the loop
has no barrier and costs 1 1/8 exponentials per logit; lanes meet once, at the end of the row. Where V is not divisible
by 8 a row starts in the middle of a 128-bit word: up to 7 logits at each end are taken apart (``head`` and tail), and
what lies between is read like any other row.

**How a row is read twice but fetched once.** The launch puts one program of many warps on a multiprocessor, so the
rows in flight (132 x 304 KB for 152,064 bf16 logits on an H100) fit its L2 cache of 50 MB, and the second sweep runs
backwards, starting with what was read last.

Programs never share an output and sums have a fixed order: results are bitwise repeatable. No argument that changes
with batch, length or schedule is specialised, so nothing recompiles after the first call of a vocabulary.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.runtime import JITFunction

# Slots of a token's state, f32[9, N * T]; rows.py reads them by the same names.
TOP = tl.constexpr(0)  # the largest logit (soft-capped), not divided by the temperature
LOG2_SUM = tl.constexpr(1)  # log2 of sum_j exp((logit_j - top) / temperature)
GRAD = tl.constexpr(2)  # c = dl/dlogp, not yet divided by the normaliser
ENTROPY = tl.constexpr(3)
LOGP = tl.constexpr(4)
LOSS = tl.constexpr(5)  # weighted, not yet divided by the normaliser
KL = tl.constexpr(6)
LOW = tl.constexpr(7)
HIGH = tl.constexpr(8)
STATE_SLOTS = tl.constexpr(9)

# Choices that the kernels know by number.
MAPPINGS = {"dcg": 0, "borda": 1, "ndcg_penalty": 2, "zscore": 3}
KL_ESTIMATORS = {"k1": 1, "k2": 2, "k3": 3}
LOSS_TYPES = {"grpo": 0, "dapo": 1, "dr_grpo": 2}

_LN2 = tl.constexpr(0.6931471805599453)
_LOG2E = tl.constexpr(1.4426950408889634)
#: Stands for -inf where -inf * 0 would be NaN; exp2 of it is 0.
_FLOOR = tl.constexpr(-10000.0)
_ALL_NAN = tl.constexpr(tl.PropagateNan.ALL)


# ------------------------------------------------------------------------------------------------------------ groups


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


@triton.jit(do_not_specialize=["num_completions", "num_tokens", "group_size"])
def group_kernel(
    ranks,  # [N] int32 or int64, or None
    scores,  # [N], for zscore
    sequence_logps,  # [N], for ndcg_penalty
    mask,  # [N, T] bool as bytes, or None
    advantages,  # out f32[N]
    weights,  # out f32[N]
    lengths,  # out int32[N]
    num_completions,
    num_tokens,
    group_size,
    zscore_eps,
    MAPPING: tl.constexpr,
    LANES: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """One group per program: advantages from ranks, and the lengths of the completions."""
    lane = tl.arange(0, LANES)
    base = tl.program_id(0) * group_size
    row = base + lane
    inside = (lane < group_size) & (row < num_completions)

    if mask is not None:
        length = tl.zeros([LANES], tl.int32)
        for start in range(0, num_tokens, TOKENS):
            token = start + tl.arange(0, TOKENS)
            at = row[:, None].to(tl.int64) * num_tokens + token[None, :]
            seen = tl.load(mask + at, mask=inside[:, None] & (token < num_tokens)[None, :], other=0)
            length += tl.sum((seen != 0).to(tl.int32), 1)
        tl.store(lengths + row, length, mask=inside)

    if ranks is not None:
        rank = tl.load(ranks + row, mask=inside, other=-1).to(tl.int32)
        valid = inside & (rank >= 0)
        if MAPPING == 3:
            score = tl.load(scores + row, mask=inside, other=0.0).to(tl.float32)
            valid = valid & (score == score)
            score = tl.where(valid, score, 0.0)
            best = tl.max(tl.where(valid, score, float("-inf")))
            signal = tl.sum((valid & (score < best)).to(tl.int32)) > 0
        else:
            worst = tl.max(tl.where(valid, rank, -1))
            signal = tl.sum((valid & (rank < worst)).to(tl.int32)) > 0
        n = tl.sum(valid.to(tl.int32))

        if MAPPING == 3:
            mean = tl.sum(score) / tl.maximum(n, 1).to(tl.float32)
            centred = tl.where(valid, score - mean, 0.0)
            variance = tl.sum(centred * centred) / tl.maximum(n - 1, 1).to(tl.float32)
            value = centred / (tl.sqrt(variance) + zscore_eps)
        else:
            first = tl.zeros([LANES], tl.int32)
            count = tl.zeros([LANES], tl.int32)
            for j in range(group_size):
                other = tl.load(ranks + base + j).to(tl.int32)
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
                    rival = tl.load(ranks + base + j).to(tl.int32) >= 0
                    rival_logp = tl.load(sequence_logps + base + j).to(tl.float32)
                    ahead += (rival & (rival_logp > logp)).to(tl.int32)
                    equal += (rival & (rival_logp == logp)).to(tl.int32)
                value = _mean_gain(ahead, tl.maximum(equal, 1), group_size) / value
            value = tl.where(valid, value, 0.0)
            value = value - tl.sum(value) / tl.maximum(n, 1).to(tl.float32)
        teaches = valid & signal
        tl.store(advantages + row, tl.where(teaches, value, 0.0), mask=inside)
        tl.store(weights + row, teaches.to(tl.float32), mask=inside)


# -------------------------------------------------------------------------------------------------------------- rows


@triton.jit
def _tanh(x):
    """Accurate near 0, where (1 - e) / (1 + e) cancels."""
    size = tl.abs(x)
    e = tl.exp2(size * (-2.0 * _LOG2E))
    far = (1.0 - e) / (1.0 + e)
    square = x * x
    near = size * (1.0 + square * (-1.0 / 3.0 + square * (2.0 / 15.0 + square * (-17.0 / 315.0))))
    size = tl.where(size < 0.1, near, far)
    return tl.where(x < 0.0, -size, size)


@triton.jit
def _logit(x, softcap):
    """In f32, soft-capped where the model does that; an excluded logit of -inf stays -inf."""
    x = x.to(tl.float32)
    if softcap is not None:
        x = tl.where(x == float("-inf"), x, softcap * _tanh(x / softcap))
    return x


@triton.jit
def _fold(x, scale, m, s, t):
    """Fold 8 more logits into each lane; x is [R, 8], the rest [R].

    m is the lane's maximum, s its sum of exp2(d) and t its sum of d exp2(d), with d = (x - m) * scale.
    """
    top = tl.maximum(m, tl.max(x, 1))
    base = tl.where(top == float("-inf"), 0.0, top)
    shift = tl.maximum((m - base) * scale, _FLOOR)
    shrink = tl.exp2(shift)
    d = tl.maximum((x - base[:, None]) * scale, _FLOOR, propagate_nan=_ALL_NAN)
    e = tl.exp2(d)
    t = (t + s * shift) * shrink + tl.sum(e * d, 1)
    s = s * shrink + tl.sum(e, 1)
    return top, s, t


@triton.jit
def _gather_lanes(m, s, t, top, scale):
    """Sums of lanes, moved to the common maximum ``top``."""
    shift = tl.maximum((m - top) * scale, _FLOOR)
    shrink = tl.exp2(shift)
    return tl.sum(s * shrink), tl.sum((t + s * shift) * shrink)


@triton.jit
def _gradient(x, is_target, top, log2_sum, scale, a, b, c):
    """dl/dlogit of logits x: p (a + b log2 p), plus c at the target."""
    log2_p = tl.maximum((x - top) * scale - log2_sum, _FLOOR, propagate_nan=_ALL_NAN)
    return tl.exp2(log2_p) * (a + b * log2_p) + tl.where(is_target, c, 0.0)


@triton.jit
def _capped(gradient, x, softcap):
    """Through the soft cap: d cap(x) / dx = 1 - (cap(x) / softcap)^2."""
    if softcap is not None:
        y = _tanh(x.to(tl.float32) / softcap)
        gradient = gradient * (1.0 - y * y)
    return gradient


@triton.jit
def _expm1(x):
    near = x * (1.0 + x * (0.5 + x * (1.0 / 6.0 + x * (1.0 / 24.0 + x * (1.0 / 120.0 + x * (1.0 / 720.0))))))
    return tl.where(tl.abs(x) < 0.1, near, tl.exp(x) - 1.0)


@triton.jit
def _expm1_minus(x):
    """exp(x) - 1 - x."""
    near = 0.5 + x * (1.0 / 6.0 + x * (1.0 / 24.0 + x * (1.0 / 120.0 + x * (1.0 / 720.0 + x * (1.0 / 5040.0)))))
    return tl.where(tl.abs(x) < 0.3, x * x * near, tl.exp(x) - 1.0 - x)


@triton.jit
def _term(
    state,
    at,
    slots,
    logp,
    log_ratio,
    entropy,
    advantage,
    weight,
    ref,
    floor,
    cap_up,
    cap_down,
    clip_edge,
    kl_coef,
    entropy_coef,
    KL_ESTIMATOR: tl.constexpr,
):
    """The loss of one token and c = dl/dlogp, into its state; returns c. The bounds are those of ``LossSettings``."""
    w = tl.exp(log_ratio)
    up = advantage > 0.0
    down = advantage < 0.0
    low = down & (w < floor)
    bounded = tl.where(up, tl.minimum(w, cap_up), tl.where(low, floor, tl.minimum(w, cap_down)))
    active = tl.where(up, w <= cap_up, (w >= floor) & (w <= cap_down))
    # With A = 0 the term is 0 whatever the ratio, also where exp overflows; NaN stays NaN.
    surrogate = tl.where(up | down, bounded * advantage, advantage * 0.0)
    c = -tl.where(active & (up | down), w * advantage, advantage * 0.0)
    c = tl.where(log_ratio == log_ratio, c, log_ratio)
    surrogate = tl.where(log_ratio == log_ratio, surrogate, log_ratio)
    loss = -surrogate - entropy_coef * entropy
    kl = 0.0
    if ref is not None:
        log_r = tl.load(ref + at).to(tl.float32) - logp
        if KL_ESTIMATOR == 1:
            kl = -log_r
            slope = 1.0
        elif KL_ESTIMATOR == 2:
            kl = 0.5 * log_r * log_r
            slope = -log_r
        else:
            kl = _expm1_minus(log_r)
            slope = -_expm1(log_r)
        if kl_coef != 0.0:
            loss += kl_coef * kl
            c += kl_coef * slope
    c = c * weight
    tl.store(state + GRAD * slots + at, c)
    tl.store(state + LOSS * slots + at, loss * weight)
    tl.store(state + KL * slots + at, kl)
    tl.store(state + LOW * slots + at, low.to(tl.float32))
    tl.store(state + HIGH * slots + at, (up & (w > clip_edge)).to(tl.float32))
    return c


@triton.jit
def _weight(length, LOSS_TYPE: tl.constexpr):
    """How much a token of a completion of this length counts."""
    if LOSS_TYPE == 0:
        return 1.0 / tl.maximum(length, 1).to(tl.float32)
    else:
        return 1.0


@triton.jit
def _own_normalizer(lengths, num_completions, num_tokens, LOSS_TYPE: tl.constexpr):
    """What all tokens count together, at least 1; from the lengths alone, so that no launch is spent on it."""
    total = tl.zeros([1024], tl.int32)
    for start in range(0, num_completions, 1024):
        at = start + tl.arange(0, 1024)
        length = tl.load(lengths + at, mask=at < num_completions, other=0)
        if LOSS_TYPE == 1:
            total += length
        else:
            total += (length > 0).to(tl.int32)
    normalizer = tl.sum(total).to(tl.float32)
    if LOSS_TYPE == 2:
        normalizer = normalizer * num_tokens.to(tl.float32)
    return tl.maximum(normalizer, 1.0)


@triton.jit(do_not_specialize=["num_completions", "num_tokens", "rows_per_completion", "first_row"])
def row_kernel(
    logits,  # [.., V]
    dlogits,  # out, like logits; may be logits; None without GRADIENT
    token_ids,  # [N, T] int32 or int64
    mask,  # [N, T] bool as bytes
    advantages,  # f32[N], None without TERM
    lengths,  # int32[N], None where neither TERM nor GRADIENT
    old_logps,  # [N, T] or None
    ref_logps,  # [N, T] or None
    index,  # int64[M]: token of each row of compacted logits, or None
    state,  # f32[9, N * T], in and out
    normalizer,  # f32[], or None for the own one
    grad_output,  # f32[], or None for 1
    num_completions,
    num_tokens,
    rows_per_completion,
    first_row,
    scale,  # log2(e) / temperature
    inverse_temperature,  # to float32, and what that leaves:
    inverse_temperature_rest,
    softcap,  # or None
    floor,
    cap_up,
    cap_down,
    clip_edge,
    kl_coef,
    entropy_coef,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
    STATISTICS: tl.constexpr,  # sweep 1: lse, entropy, logp
    TERM: tl.constexpr,  # the loss of the token, with a token-level ratio
    GRADIENT: tl.constexpr,  # sweep 2
    NORMALIZE: tl.constexpr,  # divide the gradient
    KL_ESTIMATOR: tl.constexpr,
    LOSS_TYPE: tl.constexpr,
):
    """One row of logits per program; see the module's docstring."""
    pid = tl.program_id(0)
    if index is not None:
        at = tl.load(index + first_row + pid)
        offset = pid.to(tl.int64) * V
    else:
        at = (first_row + pid).to(tl.int64)
        n_row = at // num_tokens
        # Without a first row the logits are [N, rows_per_completion, V]; chunks of a flat [N * T, V] start at theirs.
        offset = (n_row * rows_per_completion + (at - n_row * num_tokens)) * V - first_row.to(tl.int64) * V
    completion = at // num_tokens
    slots = num_completions.to(tl.int64) * num_tokens
    counted = tl.load(mask + at) != 0

    LANES: tl.constexpr = BLOCK // 8
    BLOCKS: tl.constexpr = (V + BLOCK - 1) // BLOCK
    ALIGNED: tl.constexpr = V % 8 == 0
    lane = tl.arange(0, LANES)
    spread = lane[:, None] * 8 + tl.arange(0, 8)[None, :]
    if ALIGNED:
        head = 0
        lanes_in_row = V // 8
        begin = offset
    else:
        head = tl.minimum((-offset) & 7, V).to(tl.int32)
        lanes_in_row = (V - head) // 8
        begin = tl.multiple_of(offset + head, 8)
    # The ends of a row that is not aligned: 8 places before the first full lane, 8 after the last.
    edge = tl.arange(0, 2)[:, None] * 8 + tl.arange(0, 8)[None, :]
    edge_column = tl.where(edge < 8, edge, head + lanes_in_row * 8 + edge - 8)
    on_edge = tl.where(edge < 8, edge < head, edge_column < V)

    if not counted:
        if STATISTICS:
            for slot in tl.static_range(STATE_SLOTS):
                tl.store(state + slot * slots + at, 0.0)
        if GRADIENT:
            zero = tl.zeros([LANES, 8], dlogits.dtype.element_ty)
            for i in range(BLOCKS):
                tl.store(dlogits + begin + i * BLOCK + spread, zero, mask=(i * LANES + lane < lanes_in_row)[:, None])
            if not ALIGNED:
                tl.store(dlogits + offset + edge_column, tl.zeros([2, 8], dlogits.dtype.element_ty), mask=on_edge)
        return

    target = tl.load(token_ids + at)
    if STATISTICS:
        x_target = _logit(tl.load(logits + offset + target), softcap)
        m = tl.full([LANES], float("-inf"), tl.float32)
        s = tl.zeros([LANES], tl.float32)
        t = tl.zeros([LANES], tl.float32)
        for i in range(BLOCKS):
            x = tl.load(
                logits + begin + i * BLOCK + spread,
                mask=(i * LANES + lane < lanes_in_row)[:, None],
                other=float("-inf"),
            )
            m, s, t = _fold(_logit(x, softcap), scale, m, s, t)
        top = tl.max(m)
        if not ALIGNED:
            x_edge = tl.load(logits + offset + edge_column, mask=on_edge, other=float("-inf"))
            m_edge = tl.full([2], float("-inf"), tl.float32)
            none = tl.zeros([2], tl.float32)
            m_edge, s_edge, t_edge = _fold(_logit(x_edge, softcap), scale, m_edge, none, none)
            top = tl.maximum(top, tl.max(m_edge))
            sum_e, sum_et = _gather_lanes(m, s, t, top, scale)
            more_e, more_et = _gather_lanes(m_edge, s_edge, t_edge, top, scale)
            sum_e += more_e
            sum_et += more_et
        else:
            sum_e, sum_et = _gather_lanes(m, s, t, top, scale)
        log2_sum = tl.log2(sum_e)
        # The distance of an unlikely token is large, and a factor rounded to float32 would show in its ratio.
        far = x_target - top
        logp = far * inverse_temperature + (far * inverse_temperature_rest - log2_sum * _LN2)
        # An excluded target: -inf * 0 would be NaN.
        logp = tl.where(far == float("-inf"), far, logp)
        entropy = (log2_sum - sum_et / sum_e) * _LN2
        tl.store(state + TOP * slots + at, top)
        tl.store(state + LOG2_SUM * slots + at, log2_sum)
        tl.store(state + ENTROPY * slots + at, entropy)
        tl.store(state + LOGP * slots + at, logp)
    else:
        top = tl.load(state + TOP * slots + at)
        log2_sum = tl.load(state + LOG2_SUM * slots + at)
        entropy = tl.load(state + ENTROPY * slots + at)

    if TERM:
        if old_logps is None:
            log_ratio = logp - logp
        else:
            log_ratio = logp - tl.load(old_logps + at).to(tl.float32)
        weight = _weight(tl.load(lengths + completion), LOSS_TYPE)
        advantage = tl.load(advantages + completion).to(tl.float32)
        c = _term(
            state, at, slots, logp, log_ratio, entropy, advantage, weight, ref_logps,
            floor, cap_up, cap_down, clip_edge, kl_coef, entropy_coef, KL_ESTIMATOR,
        )  # fmt: skip
    elif GRADIENT:
        c = tl.load(state + GRAD * slots + at)

    if GRADIENT:
        factor = inverse_temperature
        if grad_output is not None:
            factor = factor * tl.load(grad_output).to(tl.float32)
        if NORMALIZE:
            if normalizer is None:
                factor = factor / _own_normalizer(lengths, num_completions, num_tokens, LOSS_TYPE)
            else:
                factor = factor / tl.load(normalizer).to(tl.float32)
        e = entropy_coef * _weight(tl.load(lengths + completion), LOSS_TYPE) * factor
        c = c * factor
        a = e * entropy - c
        b = e * _LN2
        if not ALIGNED:
            x_edge = tl.load(logits + offset + edge_column, mask=on_edge, other=float("-inf"))
            g_edge = _gradient(_logit(x_edge, softcap), edge_column == target, top, log2_sum, scale, a, b, c)
            g_edge = _capped(g_edge, x_edge, softcap).to(dlogits.dtype.element_ty)
            tl.store(dlogits + offset + edge_column, g_edge, mask=on_edge)
        for k in range(BLOCKS):
            i = BLOCKS - 1 - k
            inside = (i * LANES + lane < lanes_in_row)[:, None]
            x = tl.load(logits + begin + i * BLOCK + spread, mask=inside, other=float("-inf"))
            column = head + i * BLOCK + spread
            g = _gradient(_logit(x, softcap), column == target, top, log2_sum, scale, a, b, c)
            g = _capped(g, x, softcap).to(dlogits.dtype.element_ty)
            tl.store(dlogits + begin + i * BLOCK + spread, g, mask=inside)


@triton.jit(do_not_specialize=["num_completions", "num_tokens"])
def sequence_term_kernel(
    mask,
    advantages,
    lengths,
    old_logps,
    ref_logps,
    state,
    num_completions,
    num_tokens,
    floor,
    cap_up,
    cap_down,
    clip_edge,
    kl_coef,
    entropy_coef,
    KL_ESTIMATOR: tl.constexpr,
    LOSS_TYPE: tl.constexpr,
):
    """One completion per program: the loss of its tokens under the ratio of the whole sequence.

    With s = mean_t (logp_t - old_t) and w = exp(s), every token's surrogate is f(w A). Its derivative by logp_t is
    f' w / length, and the length's equally weighted surrogates sum to f' w per token: the token-level formula with
    w in the place of its ratio.
    """
    completion = tl.program_id(0)
    slots = num_completions.to(tl.int64) * num_tokens
    length = tl.load(lengths + completion)
    base = completion.to(tl.int64) * num_tokens
    log_ratio = 0.0
    if old_logps is not None:
        total = tl.zeros([256], tl.float32)
        for start in range(0, num_tokens, 256):
            token = start + tl.arange(0, 256)
            counted = tl.load(mask + base + token, mask=token < num_tokens, other=0) != 0
            logp = tl.load(state + LOGP * slots + base + token, mask=counted, other=0.0)
            old = tl.load(old_logps + base + token, mask=counted, other=0.0).to(tl.float32)
            total += logp - old
        log_ratio = tl.sum(total) / tl.maximum(length, 1).to(tl.float32)
    weight = _weight(length, LOSS_TYPE)
    advantage = tl.load(advantages + completion).to(tl.float32)
    for token in range(num_tokens):
        at = base + token
        if tl.load(mask + at) != 0:
            logp = tl.load(state + LOGP * slots + at)
            entropy = tl.load(state + ENTROPY * slots + at)
            _term(
                state, at, slots, logp, log_ratio + logp * 0.0, entropy, advantage, weight, ref_logps,
                floor, cap_up, cap_down, clip_edge, kl_coef, entropy_coef, KL_ESTIMATOR,
            )  # fmt: skip


# --------------------------------------------------------------------------------------------------------- reductions


@triton.jit(do_not_specialize=["num_completions", "num_tokens"])
def finish_kernel(
    state,
    lengths,
    normalizer,  # f32[], or None for the own one
    loss,  # out f32[]
    metrics,  # out f32[5]: entropy, kl, low, high, region, means over tokens
    num_completions,
    num_tokens,
    LOSS_TYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A single program: the sums over all tokens, in a fixed order."""
    slots = num_completions.to(tl.int64) * num_tokens
    sum_loss = tl.zeros([BLOCK], tl.float32)
    sum_entropy = tl.zeros([BLOCK], tl.float32)
    sum_kl = tl.zeros([BLOCK], tl.float32)
    sum_low = tl.zeros([BLOCK], tl.float32)
    sum_high = tl.zeros([BLOCK], tl.float32)
    for start in range(0, num_completions * num_tokens, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < slots
        sum_loss += tl.load(state + LOSS * slots + at, mask=inside, other=0.0)
        sum_entropy += tl.load(state + ENTROPY * slots + at, mask=inside, other=0.0)
        sum_kl += tl.load(state + KL * slots + at, mask=inside, other=0.0)
        sum_low += tl.load(state + LOW * slots + at, mask=inside, other=0.0)
        sum_high += tl.load(state + HIGH * slots + at, mask=inside, other=0.0)
    if normalizer is None:
        divisor = _own_normalizer(lengths, num_completions, num_tokens, LOSS_TYPE)
    else:
        divisor = tl.load(normalizer).to(tl.float32)
    tl.store(loss, tl.sum(sum_loss) / divisor)
    tokens = _own_normalizer(lengths, num_completions, num_tokens, 1)
    low = tl.sum(sum_low) / tokens
    high = tl.sum(sum_high) / tokens
    tl.store(metrics + 0, tl.sum(sum_entropy) / tokens)
    tl.store(metrics + 1, tl.sum(sum_kl) / tokens)
    tl.store(metrics + 2, low)
    tl.store(metrics + 3, high)
    tl.store(metrics + 4, low + high)


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
