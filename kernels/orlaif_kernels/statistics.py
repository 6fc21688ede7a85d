"""Per-token log-prob and exact entropy, differentiable: all that a loss needs; from logits, or through an LM head.

One sweep over each row forward, which keeps five numbers of it, and one backward, which reads the row again and writes
its gradient: no copy of the logits in float32, no log-softmax. Rows that do not count are not read. From a head the
logits are made a chunk at a time, forward, and again backward, where they become their own gradient (``linear.py``).

Shapes: N completions, T tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor

from orlaif_kernels import reference
from orlaif_kernels.arguments import LossSettings, check_ids, check_tokens, choose, unpack
from orlaif_kernels.keywords import HeadArguments
from orlaif_kernels.linear import Head
from orlaif_kernels.logits import Logits, alike
from orlaif_kernels.rows import ENTROPY, LOGP, STATE_SLOTS, wide


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
    mask = check_tokens(logits, token_ids, mask)
    return statistics_of(Logits(logits, None, None, choose(implementation, logits)), token_ids, mask, settings)


def linear_token_statistics(
    hidden: Tensor,
    weight: Tensor,
    token_ids: Tensor,
    *,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    implementation: str = "auto",
    **given: Unpack[HeadArguments],
) -> TokenStatistics:
    """:func:`orlaif_kernels.token_statistics` of ``hidden @ weight.T + bias``, which never exist at once.

    Args:
        hidden: [N, T, H].
        weight: [V, H], same dtype as ``hidden`` (under autocast both are cast); a sharded ``DTensor`` is gathered.
        token_ids: i64[N, T] (or i32); masked places may hold anything.
        mask: bool[N, T]; None means all.
        temperature: divides the logits.
        softcap: final-logit soft-capping, as there.
        logit_scale: multiplies the logits before that.
        implementation: ``auto``, ``torch`` or ``triton``.
        given: :class:`HeadArguments`; give every function whose log-probs meet in a ratio the same ``chunk_size``.

    Returns:
        ``(logps, entropy)``, f32[N, T] each (f64 for f64 hidden states), with gradient by hidden states, head and bias,
        but no gradient of that gradient.

    Raises:
        ValueError: a setting out of range, shapes or dtypes that do not fit.
        RuntimeError: ``triton`` where it cannot run.
    """
    settings = LossSettings(temperature=temperature, softcap=softcap, logit_scale=logit_scale)
    mask = check_tokens(hidden, token_ids, mask, "hidden")
    return statistics_of(Head.of(hidden, weight, implementation, **given), token_ids, mask, settings)


@torch.no_grad()
def linear_logps(hidden: Tensor, weight: Tensor, token_ids: Tensor, **given: Any) -> Tensor:
    """The log-probs of :func:`linear_token_statistics`, f32[N, T], without gradient: for reference and old policy."""
    return linear_token_statistics(hidden, weight, token_ids, **given).logps


def statistics_of(source: Logits | Head, token_ids: Tensor, mask: Tensor, settings: LossSettings) -> TokenStatistics:
    """The same of arguments that have been checked, but for the ids."""
    check_ids(token_ids, mask, source.vocabulary)
    state = torch.ops.orlaif_kernels.token_statistics(
        *source.tensors, token_ids.contiguous(), mask.contiguous(), settings.pack(), source.how, source.wanted
    )
    return TokenStatistics(state[LOGP].view(token_ids.shape), state[ENTROPY].view(token_ids.shape))


def _source(x: Tensor, weight: Tensor | None, bias: Tensor | None, how: str) -> Logits | Head:
    return (Logits if weight is None else Head)(x, weight, bias, how)


@torch.library.custom_op("orlaif_kernels::token_statistics", mutates_args=())
def _forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    token_ids: Tensor,
    mask: Tensor,
    packed: str,
    how: str,
    wanted: list[bool],
) -> Tensor:
    source = _source(x, weight, bias, how)
    rows = source.rows(token_ids, mask, unpack(packed))
    source.statistics(rows)
    return rows.state


@_forward.register_fake
def _(x: Tensor, weight: Tensor | None, bias: Tensor | None, token_ids: Tensor, *_: Any) -> Tensor:
    return x.new_empty((STATE_SLOTS, token_ids.shape[0] * token_ids.shape[1]), dtype=wide(x))


def _gradients(
    grad: Tensor,
    state: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    token_ids: Tensor,
    mask: Tensor,
    packed: str,
    how: str,
    wanted: list[bool],
) -> list[Tensor]:
    source = _source(x, weight, bias, how)
    rows = source.rows(token_ids, mask, unpack(packed), state)
    made = source.gradients(rows, grad[LOGP].contiguous(), grad[ENTROPY].contiguous(), wanted)
    return [x.new_empty(0) if g is None else g for g in made]


_backward = torch.library.custom_op("orlaif_kernels::token_statistics_backward", _gradients, mutates_args=())


@_backward.register_fake
def _(grad: Tensor, state: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, *rest: Any) -> list[Tensor]:
    made = (alike(x) if weight is None else x, weight, bias)
    empty = x.new_empty(0)
    return [torch.empty_like(empty if g is None or not want else g) for g, want in zip(made, rest[-1], strict=True)]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(output, *inputs[:5])
    ctx.rest = inputs[5:]


def _apply_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    tensors = _, x, weight, _, token_ids, mask = ctx.saved_tensors
    packed, how, wanted = ctx.rest
    if torch.is_grad_enabled():  # someone will differentiate this gradient
        if weight is not None:
            no_second_order()
        both = reference.statistics(x[:, : mask.shape[1]], token_ids, mask, unpack(packed))
        gradients = [grad[slot].view(token_ids.shape) for slot in (LOGP, ENTROPY)]
        return (*torch.autograd.grad(both, x, gradients, create_graph=True), *[None] * 7)
    if "inplace" in how:  # whoever else saved the logits, or comes again, is told by autograd
        torch.autograd.graph.increment_version(x)
    # What an operator returns may not be what it was given.
    made = (_gradients if "inplace" in how else _backward)(grad, *tensors, *ctx.rest)
    return (*(x if want else None for x, want in zip(made, wanted, strict=True)), *[None] * 5)


_forward.register_autograd(_apply_backward, setup_context=_setup_context)


def no_second_order() -> None:
    """Raise a RuntimeError in a backward pass through a head that is to be differentiated."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "a gradient of the gradient through a fused head is not computed; take it through the logits: "
            "token_statistics or grpo_rank_loss of hidden @ weight.T"
        )
