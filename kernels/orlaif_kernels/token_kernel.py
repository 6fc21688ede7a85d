"""What the row kernel computes a logit or a token at a time: soft cap, exponentials near 0, and the GRPO_rank loss.

``term`` is the objective's second form; its first, in PyTorch, is ``objective.GRPORank``.
"""
# ruff: noqa: D103, N803
# mypy: disallow-untyped-defs=False

from __future__ import annotations

import triton
import triton.language as tl

# Slots of a token's state; rows.py reads them by the same names.
TOP = tl.constexpr(0)  # the largest logit, neither soft-capped nor divided by the temperature
LOG_SUM = tl.constexpr(1)  # log sum_j exp of what lies between logit j and the top in the softmax
LOGP = tl.constexpr(2)
ENTROPY = tl.constexpr(3)
MEAN = tl.constexpr(4)  # of what lies between, under the policy
GRAD = tl.constexpr(5)  # c = dl/dlogp, not yet divided by the normaliser; this and the next with TERM only
LOSS = tl.constexpr(6)  # weighted, not yet divided by the normaliser
KL = tl.constexpr(7)
LOW = tl.constexpr(8)
HIGH = tl.constexpr(9)
RUNAWAY = tl.constexpr(10)

KL_ESTIMATORS = {"k1": 1, "k2": 2, "k3": 3}

LN2 = tl.constexpr(0.6931471805599453)
#: Stands for -inf where -inf * 0 would be NaN; exp2 of it is 0.
FLOOR = tl.constexpr(-10000.0)
ALL_NAN = tl.constexpr(tl.PropagateNan.ALL)


#: Of 2 x / softcap in units of log 2: beyond it tanh is 1 to 33 digits, and exp2 still finite.
STEEP = tl.constexpr(115.0)


@triton.jit
def logit(x, rate):
    """In f32; beyond all use to a soft cap a logit is held, so that nothing overflows. One of -inf is excluded."""
    x = x.to(tl.float32)
    if rate is not None:
        x = tl.minimum(x, STEEP / rate, propagate_nan=ALL_NAN)
    return x


@triton.jit
def apart(x, base, scale, rate):
    """(x - base) * scale, or of soft-capped logits (tanh a - tanh b) / 2 * scale, with a = x / softcap and b of base.

    tanh a - tanh b = 2 (exp(2 a - 2 b) - 1) / ((1 + exp(2 a)) (1 + exp(-2 b))), where nothing cancels, neither where
    the cap is nearly reached nor between neighbours: the first factor has a series. ``rate`` is 2 log2(e) / softcap.
    """
    if rate is None:
        far = (x - base) * scale
    else:
        base = tl.maximum(base, -STEEP / rate)
        y = (x - base) * (rate * LN2)
        near = y * (1.0 + y * (0.5 + y * (1.0 / 6.0 + y * (1.0 / 24.0 + y * (1.0 / 120.0 + y * (1.0 / 720.0))))))
        e = tl.exp2(x * rate)
        e_base = tl.exp2(-base * rate)
        growth = tl.where(tl.abs(y) < 0.25, near, e * e_base - 1.0)
        far = tl.where(x == float("-inf"), x, growth * (1.0 / (1.0 + e)) * (scale / (1.0 + e_base)))
    return far


@triton.jit
def distance(x, base, scale, rate):
    """The same, finite for an excluded x."""
    return tl.maximum(apart(x, base, scale, rate), FLOOR, propagate_nan=ALL_NAN)


@triton.jit
def through_cap(gradient, x, rate):
    """Times (1 - tanh(x / softcap)^2) / 4, which does not cancel where tanh is nearly 1; or as it is."""
    if rate is not None:
        e = tl.exp2(x * rate)
        r = 1.0 / (1.0 + e)
        gradient = gradient * ((e * r) * r)
    return gradient


@triton.jit
def expm1(x):
    near = x * (1.0 + x * (0.5 + x * (1.0 / 6.0 + x * (1.0 / 24.0 + x * (1.0 / 120.0 + x * (1.0 / 720.0))))))
    return tl.where(tl.abs(x) < 0.1, near, tl.exp(x) - 1.0)


@triton.jit
def expm1_minus(x):
    """exp(x) - 1 - x."""
    near = 0.5 + x * (1.0 / 6.0 + x * (1.0 / 24.0 + x * (1.0 / 120.0 + x * (1.0 / 720.0 + x * (1.0 / 5040.0)))))
    return tl.where(tl.abs(x) < 0.3, x * x * near, tl.exp(x) - 1.0 - x)


@triton.jit
def log1p(x):
    """Of x >= 0; by the series of 2 artanh(x / (2 + x)) where 1 + x would round."""
    u = x / (2.0 + x)
    s = u * u
    near = 2.0 * u * (1.0 + s * (1.0 / 3.0 + s * (1.0 / 5.0 + s * (1.0 / 7.0 + s * (1.0 / 9.0)))))
    return tl.where(x < 0.25, near, tl.log2(1.0 + x) * LN2)


@triton.jit
def bound(x, most):
    """x within +-most, and whether it was beyond; NaN stays NaN."""
    beyond = tl.abs(x) > most
    return tl.where(beyond, tl.where(x > 0.0, most, -most), x), beyond


@triton.jit
def term(
    state, at, slots, logp, entropy, advantages, weights, old_logps, ref_logps,
    floor, cap_up, cap_down, clip_edge, max_log_ratio, kl_coef, entropy_coef, KL_ESTIMATOR: tl.constexpr,
):  # fmt: skip
    """The loss of one token into its state; returns dl/dlogp and dl/dH. The bounds are those of ``LossSettings``."""
    weight = tl.load(weights + at)
    advantage = tl.load(advantages + at)
    old = logp
    if old_logps is not None:
        old = tl.load(old_logps + at).to(tl.float32)
    log_ratio, runaway = bound(logp - old, max_log_ratio)
    w = tl.exp(log_ratio)
    up = advantage > 0.0
    down = advantage < 0.0
    low = down & (w < floor)
    bounded = tl.where(up, tl.minimum(w, cap_up), tl.where(low, floor, tl.minimum(w, cap_down)))
    active = tl.where(up, w <= cap_up, (w >= floor) & (w <= cap_down)) & (runaway == 0)
    # With A = 0 the term is 0 whatever the ratio, also where exp overflows; NaN stays NaN.
    surrogate = tl.where(up | down, bounded * advantage, advantage * 0.0)
    c = -tl.where(active & (up | down), w * advantage, advantage * 0.0)
    c = tl.where(log_ratio == log_ratio, c, log_ratio)
    surrogate = tl.where(log_ratio == log_ratio, surrogate, log_ratio)
    loss = -surrogate - entropy_coef * entropy
    kl = 0.0
    if ref_logps is not None:
        log_r = tl.load(ref_logps + at).to(tl.float32) - logp
        if KL_ESTIMATOR == 1:
            kl = -log_r
            slope = 1.0
        elif KL_ESTIMATOR == 2:
            kl = 0.5 * log_r * log_r
            slope = -log_r
        else:
            log_r, beyond = bound(log_r, max_log_ratio)
            runaway = runaway | beyond
            kl = expm1_minus(log_r)
            slope = tl.where(beyond, 0.0, -expm1(log_r))
        if kl_coef != 0.0:
            loss += kl_coef * kl
            c += kl_coef * slope
    c = c * weight
    tl.store(state + GRAD * slots + at, c)
    tl.store(state + LOSS * slots + at, loss * weight)
    tl.store(state + KL * slots + at, kl)
    tl.store(state + LOW * slots + at, low.to(tl.float32))
    tl.store(state + HIGH * slots + at, (up & (w > clip_edge)).to(tl.float32))
    tl.store(state + RUNAWAY * slots + at, runaway.to(tl.float32))
    return c, -entropy_coef * weight
