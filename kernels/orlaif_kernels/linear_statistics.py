"""``linear_token_statistics``: per-token log-prob and exact entropy from hidden states and the LM head, differentiable.

The logits are made a chunk at a time, forward, and again backward, where they become their own gradient
(``linear.py``).

Shapes: N completions, T tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor

from orlaif_kernels import linear
from orlaif_kernels.arguments import LossSettings, check_ids, check_tokens, unpack
from orlaif_kernels.keywords import HeadArguments
from orlaif_kernels.linear import Head, narrow
from orlaif_kernels.rows import ENTROPY, LOGP, STATE_SLOTS, Rows
from orlaif_kernels.statistics import TokenStatistics, wide


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
    mask = check_tokens(hidden.shape, token_ids, mask, "hidden")
    return statistics_of(Head.of(hidden, weight, implementation, **given), token_ids, mask, settings)


@torch.no_grad()
def linear_logps(hidden: Tensor, weight: Tensor, token_ids: Tensor, **given: Any) -> Tensor:
    """The log-probs of :func:`linear_token_statistics`, f32[N, T], without gradient: for reference and old policy."""
    return linear_token_statistics(hidden, weight, token_ids, **given).logps


def statistics_of(head: Head, token_ids: Tensor, mask: Tensor, settings: LossSettings) -> TokenStatistics:
    """The same of arguments that have been checked, but for the ids."""
    check_ids(token_ids, mask, head.weight.shape[0])
    state = torch.ops.orlaif_kernels.linear_token_statistics(
        *head.tensors, token_ids.contiguous(), mask.contiguous(), settings.pack(), head.how, head.wanted
    )
    return TokenStatistics(state[LOGP].view(token_ids.shape), state[ENTROPY].view(token_ids.shape))


def no_second_order() -> None:
    """Raise a RuntimeError in a backward pass that is to be differentiated."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "a gradient of the gradient through a fused head is not computed; take it through the logits: "
            "token_statistics or grpo_rank_loss of hidden @ weight.T"
        )


@torch.library.custom_op("orlaif_kernels::linear_token_statistics", mutates_args=())
def _forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    token_ids: Tensor,
    mask: Tensor,
    packed: str,
    how: str,
    wanted: list[bool],
) -> Tensor:
    return linear.statistics(Head(hidden, weight, bias, how), token_ids, mask, unpack(packed))


@_forward.register_fake
def _(hidden: Tensor, weight: Tensor, bias: Tensor | None, token_ids: Tensor, *_: Any) -> Tensor:
    return hidden.new_empty((STATE_SLOTS, token_ids.shape[0] * token_ids.shape[1]), dtype=wide(hidden))


@torch.library.custom_op("orlaif_kernels::linear_token_statistics_backward", mutates_args=())
def _backward(
    grad: Tensor,
    state: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    token_ids: Tensor,
    mask: Tensor,
    packed: str,
    how: str,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    head = Head(hidden, weight, bias, how)
    rows = Rows(token_ids, mask, unpack(packed), head.implementation, state)
    d_hidden, first, second, d_bias = linear.statistics_backward(head, rows, grad, wanted).done()
    if wanted[1] and weight.dtype.itemsize == 2:
        first = narrow(first, second, torch.ones((), dtype=first.dtype, device=first.device), weight.dtype)
    return d_hidden, first, d_bias.to(weight.dtype)


@_backward.register_fake
def _(grad: Tensor, state: Tensor, hidden: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    sizes = (hidden.shape, weight.shape, weight.shape[:1])
    empty = ((0,), (0, weight.shape[1]), (0,))
    return tuple(hidden.new_empty(s if want else e) for s, e, want in zip(sizes, empty, rest[-1], strict=True))  # type: ignore[return-value]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(output, *inputs[:5])
    ctx.rest = inputs[5:]


def _apply_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    no_second_order()
    made = _backward(grad, *ctx.saved_tensors, *ctx.rest)
    return (*(x if want else None for x, want in zip(made, ctx.rest[-1], strict=True)), *[None] * 5)


_forward.register_autograd(_apply_backward, setup_context=_setup_context)
