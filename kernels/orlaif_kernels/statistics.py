"""``token_statistics``: per-token log-prob and exact entropy from logits, differentiable: all that a loss needs.

One sweep over each row forward, which keeps five numbers of it, and one backward, which reads the row again and writes
its gradient: no copy of the logits in float32, no log-softmax. Rows that do not count are not read.

Shapes: N completions, T tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from orlaif_kernels import reference
from orlaif_kernels.arguments import LossSettings, check_ids, check_tokens, choose, unpack
from orlaif_kernels.rows import ENTROPY, LOGP, STATE_SLOTS, Rows

#: What a chunk of the PyTorch implementation holds, in numbers.
CHUNK_NUMBERS = 2**22


class TokenStatistics(NamedTuple):
    """Log-probs of the tokens and entropies of their distributions, [N, T] each, 0 where masked."""

    logps: Tensor
    entropy: Tensor


def token_statistics(
    logits: Tensor,
    token_ids: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    implementation: str = "auto",
) -> TokenStatistics:
    """Log-prob of each token, and exact entropy of the distribution that it was drawn from.

    Args:
        logits: [N, T, V] or [N, T + 1, V] (the last is what a model predicts after the last token, and is ignored);
            bf16, fp16, f32 (``torch`` also f64). -inf excludes an entry of the vocabulary.
        token_ids: i64[N, T] (or i32); masked places may hold anything, logits that are NaN included. Elsewhere an id
            outside ``[0, V)`` is an error on a CPU and NaN on a GPU.
        mask: bool[N, T], True where a token counts; None means all.
        temperature: divides the logits.
        softcap: final-logit soft-capping c, ``c tanh(logit / c)``, of the families that have it.
        logit_scale: multiplies the logits before that, of the families that have it.
        implementation: ``auto`` (triton on CUDA, else torch), ``torch`` or ``triton``.

    Returns:
        ``(logps, entropy)``, f32[N, T] each (f64 for f64 logits), with gradient by the logits; a gradient of that
        gradient is taken by plain PyTorch.

    Raises:
        ValueError: a setting out of range, or tensors that do not fit.
        RuntimeError: ``triton`` where it cannot run.
    """
    settings = LossSettings(temperature=temperature, softcap=softcap, logit_scale=logit_scale)
    logits = without_last(logits, token_ids)
    mask = check_tokens(logits.shape, token_ids, mask)
    return statistics_of(logits, token_ids, mask, settings, choose(implementation, logits))


def without_last(logits: Tensor, token_ids: Tensor) -> Tensor:
    """A view without the position after the last token, where there is one."""
    longer = logits.ndim == 3 and token_ids.ndim == 2 and logits.shape[1] == token_ids.shape[1] + 1
    return logits[:, :-1] if longer else logits


def statistics_of(
    logits: Tensor, token_ids: Tensor, mask: Tensor, settings: LossSettings, implementation: str
) -> TokenStatistics:
    """The same of arguments that have been checked, but for the ids."""
    check_ids(token_ids, mask, logits.shape[-1])
    state = torch.ops.orlaif_kernels.token_statistics(
        logits, token_ids.contiguous(), mask.contiguous(), settings.pack(), implementation
    )
    return TokenStatistics(state[LOGP].view(token_ids.shape), state[ENTROPY].view(token_ids.shape))


def wide(x: Tensor) -> torch.dtype:
    """The dtype that is computed in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def rows_of(logits: Tensor) -> tuple[Tensor, int]:
    """Logits whose rows the kernel can address, and how many rows lie between one completion and the next.

    ``logits[:, :-1]`` and its like are read where they are; a copy only where the strides leave no other way.
    """
    n, t, v = logits.shape
    stride_n, stride_t, stride_v = logits.stride()
    direct = stride_v == 1 and (t == 1 or stride_t == v) and (n == 1 or (stride_n % v == 0 and stride_n >= t * v))
    logits = logits if direct else logits.contiguous()
    return logits, logits.stride(0) // v if n > 1 else t


def _chunks(mask: Tensor, vocabulary: int) -> Any:
    """Places (n, t) of the tokens that count, and their numbers, a chunk at a time."""
    at = mask.flatten().nonzero().squeeze(1)
    for some in at.split(max(1, CHUNK_NUMBERS // max(1, vocabulary))):
        yield some, (some // mask.shape[1], some % mask.shape[1])


def transient_bytes(logits: Tensor, implementation: str) -> int:
    """What either operator below holds at its height beside its arguments and results, in bytes.

    With ``torch``, for the rows of a chunk: a copy, that in float32 if it is narrower, distances to the largest logit
    and exponentials in float32 (or wider), and a flag each. (A soft cap, which needs more, is not counted.)
    """
    if implementation == "triton":
        return 0
    narrow, size = logits.element_size(), wide(logits).itemsize
    chunk = min(logits.numel(), max(CHUNK_NUMBERS, logits.shape[-1]))
    return chunk * (narrow + (size if narrow < size else 0) + 2 * size + 1)


@torch.library.custom_op("orlaif_kernels::token_statistics", mutates_args=())
def _forward(logits: Tensor, token_ids: Tensor, mask: Tensor, packed: str, implementation: str) -> Tensor:
    full = implementation == "triton" and token_ids.numel() > 0
    make = torch.empty if full else torch.zeros
    state = make(STATE_SLOTS, token_ids.numel(), dtype=wide(logits), device=logits.device)
    rows = Rows(token_ids, mask, unpack(packed), implementation, state)
    if full:
        logits, stride = rows_of(logits)
        rows.launch(logits, rows_per_completion=stride, statistics=True)
        return state
    for at, place in _chunks(mask, logits.shape[-1]):
        rows.statistics(logits[place], at)
    return state


@_forward.register_fake
def _(logits: Tensor, token_ids: Tensor, *_: Any) -> Tensor:
    return logits.new_empty((STATE_SLOTS, token_ids.shape[0] * token_ids.shape[1]), dtype=wide(logits))


@torch.library.custom_op("orlaif_kernels::token_statistics_backward", mutates_args=())
def _backward(
    grad: Tensor, state: Tensor, logits: Tensor, token_ids: Tensor, mask: Tensor, packed: str, implementation: str
) -> Tensor:
    rows = Rows(token_ids, mask, unpack(packed), implementation, state)
    gradients = grad[LOGP].contiguous(), grad[ENTROPY].contiguous()
    if implementation == "triton" and token_ids.numel():
        logits, stride = rows_of(logits)
        # The layout of the logits, so that one address serves both; a view such as logits[:, :-1] has gaps.
        dlogits = torch.empty_strided(logits.shape, logits.stride(), dtype=logits.dtype, device=logits.device)
        rows.launch(logits, rows_per_completion=stride, gradients=gradients, out=dlogits)
        return dlogits
    dlogits = torch.zeros_like(logits)
    for at, place in _chunks(mask, logits.shape[-1]):
        some = logits[place]  # a copy
        rows.gradient(some, at, *gradients, out=some)
        dlogits[place] = some
    return dlogits


@_backward.register_fake
def _(grad: Tensor, state: Tensor, logits: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(logits)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, token_ids, mask, ctx.packed, ctx.implementation = inputs
    ctx.save_for_backward(output, logits, token_ids, mask)


def _apply_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    state, logits, token_ids, mask = ctx.saved_tensors
    if torch.is_grad_enabled():  # someone will differentiate this gradient
        both = reference.statistics(logits, token_ids, mask, unpack(ctx.packed))
        gradients = [grad[slot].view(token_ids.shape) for slot in (LOGP, ENTROPY)]
        return (*torch.autograd.grad(both, logits, gradients, create_graph=True), None, None, None, None)
    operator = torch.ops.orlaif_kernels.token_statistics_backward
    return operator(grad, state, logits, token_ids, mask, ctx.packed, ctx.implementation), None, None, None, None


_forward.register_autograd(_apply_backward, setup_context=_setup_context)
