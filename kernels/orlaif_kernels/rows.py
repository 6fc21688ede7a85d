"""One pass over rows of logits, by either implementation: the hand-over between the public operations and the
arithmetic.

A pass does up to three things to each row (see ``row_kernel``): its *statistics* (log-sum-exp, log-prob, entropy), the
loss *term* of its token, and the *gradient*, written over the logits or elsewhere. ``torch_pass`` is the closed form of
the Triton kernel in PyTorch, not autograd; the truth that both are tested against is ``reference.py``.

Shapes: N completions, T tokens, V vocabulary, M rows in this pass.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from orlaif_kernels.arguments import LossSettings
from orlaif_kernels.reference import loss_weights

#: Slots of a token's state [9, N * T], as in ``row_kernel``.
TOP, LOG2_SUM, GRAD, ENTROPY, LOGP, LOSS, KL, LOW, HIGH = range(9)
STATE_SLOTS = 9
METRICS = ("entropy", "kl", "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean")


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """What a pass knows of the tokens, and where it leaves what it found.

    Args:
        token_ids: int[N, T].
        mask: bool[N, T].
        lengths: int32[N], completion tokens of each completion.
        state: f32[9, N * T] (f64 for f64 logits), the slots above.
        settings: of the loss.
        advantages: f32[N], for the term.
        old_logps: [N, T] or None.
        ref_logps: [N, T] or None.
    """

    token_ids: Tensor
    mask: Tensor
    lengths: Tensor
    state: Tensor
    settings: LossSettings
    advantages: Tensor | None = None
    old_logps: Tensor | None = None
    ref_logps: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(N, T)."""
        return self.token_ids.shape[0], self.token_ids.shape[1]


def row_launch(vocabulary: int, itemsize: int, softcap: bool = False) -> dict[str, int]:
    """Block and warps of the row kernel.

    One program fills a multiprocessor (1024 threads) where the vocabulary is large, so that few rows are in flight and
    the second sweep finds them in L2. A thread takes 32 bytes a step, and half as many 16-bit logits where the soft cap
    needs the registers: what fits without spilling (benchmarks/static.py).
    """
    per_thread = 16 if itemsize == 2 and not softcap else 8
    block = max(256, min(1024 * per_thread, 1 << max(0, vocabulary - 1).bit_length()))
    lanes = 64 if torch.version.hip else 32
    return {"BLOCK": block, "num_warps": max(1, block // (lanes * per_thread))}


def triton_pass(
    logits: Tensor,
    tokens: Tokens,
    *,
    num_rows: int,
    first_row: int = 0,
    rows_per_completion: int | None = None,
    index: Tensor | None = None,
    out: Tensor | None = None,
    statistics: bool = False,
    term: bool = False,
    normalize: bool = False,
    normalizer: Tensor | None = None,
    grad_output: Tensor | None = None,
) -> None:
    """A pass of the Triton kernel over ``num_rows`` rows from ``first_row`` on; ``out`` asks for the gradient."""
    from orlaif_kernels import row_kernel as k

    settings = tokens.settings
    n, t = tokens.shape
    floor, cap_up, cap_down = settings.bounds
    with _on(logits):
        k.row_kernel[(num_rows,)](
            logits,
            out,
            tokens.token_ids,
            tokens.mask.view(torch.uint8),
            tokens.advantages,
            tokens.lengths,
            tokens.old_logps,
            tokens.ref_logps,
            index,
            tokens.state,
            normalizer,
            grad_output,
            n,
            t,
            t if rows_per_completion is None else rows_per_completion,
            first_row,
            math.log2(math.e) / settings.temperature,
            *_two_floats(1.0 / settings.temperature),
            settings.softcap,
            floor,
            cap_up,
            cap_down,
            1.0 + settings.clip_high,
            settings.kl_coef,
            settings.entropy_coef,
            V=logits.shape[-1],
            STATISTICS=statistics,
            TERM=term,
            GRADIENT=out is not None,
            NORMALIZE=normalize,
            KL_ESTIMATOR=k.KL_ESTIMATORS[settings.kl_estimator],
            LOSS_TYPE=k.LOSS_TYPES[settings.loss_type],
            **row_launch(logits.shape[-1], logits.element_size(), settings.softcap is not None),
        )


def _two_floats(x: float) -> tuple[float, float]:
    """The float32 nearest to x, and the rest."""
    (high,) = struct.unpack("f", struct.pack("f", x))
    return high, x - high


def sequence_terms(tokens: Tokens, implementation: str) -> None:
    """The loss terms under the ratio of whole sequences, from the statistics of all their tokens."""
    if implementation == "torch":
        at = torch.arange(tokens.token_ids.numel(), device=tokens.mask.device)[tokens.mask.flatten()]
        _torch_term(tokens, at)
        return
    from orlaif_kernels import row_kernel as k

    settings = tokens.settings
    n, t = tokens.shape
    floor, cap_up, cap_down = settings.bounds
    with _on(tokens.state):
        k.sequence_term_kernel[(n,)](
            tokens.mask.view(torch.uint8),
            tokens.advantages,
            tokens.lengths,
            tokens.old_logps,
            tokens.ref_logps,
            tokens.state,
            n,
            t,
            floor,
            cap_up,
            cap_down,
            1.0 + settings.clip_high,
            settings.kl_coef,
            settings.entropy_coef,
            KL_ESTIMATOR=k.KL_ESTIMATORS[settings.kl_estimator],
            LOSS_TYPE=k.LOSS_TYPES[settings.loss_type],
        )


def finish(tokens: Tokens, normalizer: Tensor | None, implementation: str) -> tuple[Tensor, Tensor]:
    """The loss, 0-dim, and the metrics [5] in the order of ``METRICS``."""
    state, settings = tokens.state, tokens.settings
    n, t = tokens.shape
    if implementation == "torch":
        own = loss_weights(tokens.mask, settings.loss_type, t, state.dtype)[1]
        divisor = own.clamp(min=1) if normalizer is None else normalizer.to(state.dtype)
        means = state[[ENTROPY, KL, LOW, HIGH]].sum(-1) / tokens.mask.sum().clamp(min=1)
        return state[LOSS].sum() / divisor, torch.cat([means, means[2:].sum(0, keepdim=True)])
    from orlaif_kernels import row_kernel as k

    loss, metrics = state.new_empty(()), state.new_empty(5)
    with _on(state):
        k.finish_kernel[(1,)](
            state,
            tokens.lengths,
            normalizer,
            loss,
            metrics,
            n,
            t,
            LOSS_TYPE=k.LOSS_TYPES[settings.loss_type],
            BLOCK=2048,
            num_warps=8,
        )
    return loss, metrics


def scale_in_place(x: Tensor, factor: Tensor) -> None:
    """``x *= factor`` for a 0-dim factor on the device; nothing is read or written where it is 1."""
    from orlaif_kernels import row_kernel as k

    block = 8192
    with _on(x):
        k.scale_kernel[(min(-(-x.numel() // block), 2048),)](x, factor, x.numel(), BLOCK=block, num_warps=8)


def torch_pass(
    logits: Tensor,
    tokens: Tokens,
    at: Tensor,
    *,
    statistics: bool = False,
    term: bool = False,
    gradient: bool = False,
) -> None:
    """The same pass in PyTorch over rows ``[M, V]`` of the tokens ``at`` (i64[M]); the gradient replaces the logits.

    It is not divided by the normaliser.
    """
    state, settings = tokens.state, tokens.settings
    wide = state.dtype
    z = logits.to(wide)
    if settings.softcap is not None:
        bent = torch.tanh(z / settings.softcap)
        z, slope = (settings.softcap * bent).masked_fill_(z == -torch.inf, -torch.inf), 1 - bent.square()
    top = z.amax(-1) if statistics else state[TOP, at]
    # Out of place, for z may be the logits. Distances to the largest logit are exact where it matters.
    z = (z - top.unsqueeze(-1)).div_(settings.temperature)
    target = tokens.token_ids.flatten()[at].long().unsqueeze(-1)
    if statistics:
        p = z.exp()
        total = p.sum(-1)
        state[TOP, at] = top
        state[LOG2_SUM, at] = total.log2()
        state[LOGP, at] = z.gather(-1, target).squeeze(-1) - total.log()
        state[ENTROPY, at] = total.log() - p.mul_(z.masked_fill(p == 0, 0)).sum(-1) / total
    if term:
        _torch_term(tokens, at)
    if gradient:
        weight = loss_weights(tokens.mask, settings.loss_type, 1, wide)[0].flatten()[at]
        c, e = state[GRAD, at] / settings.temperature, settings.entropy_coef * weight / settings.temperature
        log_p = z.sub_((state[LOG2_SUM, at] * math.log(2)).unsqueeze(-1))
        p = log_p.exp()
        log_p.masked_fill_(p == 0, 0)
        g = log_p.mul_(e.unsqueeze(-1)).add_((e * state[ENTROPY, at] - c).unsqueeze(-1)).mul_(p)
        g.scatter_add_(-1, target, c.unsqueeze(-1))
        if settings.softcap is not None:
            g.mul_(slope)
        logits.copy_(g)


def _torch_term(tokens: Tokens, at: Tensor) -> None:
    """Loss term and its derivative by logp for the tokens ``at``, from their statistics."""
    state, settings = tokens.state, tokens.settings
    assert tokens.advantages is not None
    logp = state[LOGP, at]
    completion = at // tokens.shape[1]
    log_ratio = torch.zeros_like(logp)
    if tokens.old_logps is not None:
        log_ratio = logp - tokens.old_logps.flatten()[at].to(logp.dtype)
        if settings.ratio == "sequence":
            sums = torch.zeros_like(tokens.lengths, dtype=logp.dtype).index_add_(0, completion, log_ratio)
            log_ratio = (sums / tokens.lengths.clamp(min=1))[completion]
    a = tokens.advantages.to(logp.dtype)[completion]
    w = log_ratio.exp()
    floor, cap_up, cap_down = settings.bounds
    up, down = a > 0, a < 0
    low = down & (w < floor)
    bounded = torch.where(up, w.clamp(max=cap_up), w.clamp(min=floor, max=cap_down))
    active = torch.where(up, w <= cap_up, (w >= floor) & (w <= cap_down)) & (up | down)
    zero = a * 0
    loss = -torch.where(up | down, bounded * a, zero) - settings.entropy_coef * state[ENTROPY, at]
    c = -torch.where(active, w * a, zero)
    broken = log_ratio.isnan()
    loss, c = loss.masked_fill(broken, torch.nan), c.masked_fill(broken, torch.nan)
    if tokens.ref_logps is not None:
        log_r = tokens.ref_logps.flatten()[at].to(logp.dtype) - logp
        if settings.kl_estimator == "k1":
            kl, slope = -log_r, torch.ones_like(log_r)
        elif settings.kl_estimator == "k2":
            kl, slope = log_r.square() / 2, -log_r
        else:
            kl, slope = torch.expm1(log_r) - log_r, -torch.expm1(log_r)
        state[KL, at] = kl
        if settings.kl_coef:
            loss, c = loss + settings.kl_coef * kl, c + settings.kl_coef * slope
    weight = loss_weights(tokens.mask, settings.loss_type, 1, logp.dtype)[0].flatten()[at]
    state[GRAD, at] = c * weight
    state[LOSS, at] = loss * weight
    state[LOW, at] = low.to(logp.dtype)
    state[HIGH, at] = (up & (w > 1.0 + settings.clip_high)).to(logp.dtype)


def _on(tensor: Tensor) -> Any:
    """Triton launches on the current device; make it the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else _NOTHING


class _Nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


_NOTHING = _Nothing()
