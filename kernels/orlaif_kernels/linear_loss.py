"""A token-level loss through a head as PyTorch sees it: an operator for GRPO_rank, a function for any other objective.

The gradients are made in the forward pass and given away by the backward pass: a second one raises, and so does a
gradient of the gradient; neither is ever silently zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from orlaif_kernels import linear
from orlaif_kernels.arguments import LossSettings, unpack
from orlaif_kernels.batch import Batch
from orlaif_kernels.linear import Gradients, Head, narrow
from orlaif_kernels.objective import METRICS, GRPORank, Objective
from orlaif_kernels.rows import wide
from orlaif_kernels.statistics import no_second_order

_NAMES = ("entropy", *METRICS)


def linear_loss(
    head: Head, batch: Batch, objective: Objective, settings: LossSettings
) -> tuple[Tensor, dict[str, Tensor]]:
    """The undivided loss of a token-level objective, with gradient, and sums of metrics."""
    if isinstance(objective, GRPORank):
        operator = torch.ops.orlaif_kernels.linear_grpo_rank_loss
        total, metrics, *_ = operator(*head.tensors, batch.tensors, settings.pack(), head.how, head.wanted)
        sums = dict(zip(_NAMES, metrics.detach().unbind(), strict=True))
        if batch.ref_logps is None:
            del sums["kl"]
        return total, sums
    sums, wanted = dict[str, Tensor](), head.wanted
    run = lambda: linear.losses(head, batch, objective, settings, wanted)  # noqa: E731
    return _AnyLoss.apply(*head.tensors, run, sums, wanted), sums


@torch.library.custom_op("orlaif_kernels::linear_grpo_rank_loss", mutates_args=())
def _forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: list[Tensor],
    packed: str,
    how: str,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    settings, head, batch = unpack(packed), Head(hidden, weight, bias, how), Batch.of_tensors(tokens)
    total, sums, gradients = linear.losses(head, batch, GRPORank(settings), settings, wanted)
    metrics = torch.stack([sums.get(name, torch.zeros_like(total)).to(total.dtype) for name in _NAMES])
    return total, metrics, *gradients.done()


@_forward.register_fake
def _(hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Any, packed: str, how: str, wanted: Any) -> Any:
    made = Gradients(Head(hidden, weight, bias, how), wanted)
    total = hidden.new_empty((), dtype=wide(hidden))
    return total, total.new_empty(len(_NAMES)), made.hidden, *made.halves, made.bias


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[2:])
    ctx.dtype, ctx.wanted = inputs[1].dtype, inputs[-1]
    ctx.rest = [[None] * len(x) if isinstance(x, list) and x is not inputs[-1] else None for x in inputs[3:]]


def _give_away(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    no_second_order()
    if grad is None:
        return (None, None, None, *ctx.rest)
    d_hidden, first, second, d_bias = ctx.saved_tensors
    # A saved tensor that is written to makes autograd refuse a second backward pass. Float64 is for gradcheck, which
    # makes many; and a traced graph plans its own memory.
    ours = type(first) is Tensor and first.dtype != torch.float64
    hidden = head = bias = None
    if ctx.wanted[0]:
        hidden = d_hidden.mul_(grad) if ours else d_hidden * grad
    if ctx.wanted[1] and ours:
        head = narrow(first, second, grad, ctx.dtype) if ctx.dtype.itemsize == 2 else first.mul_(grad)
    elif ctx.wanted[1]:
        head = (torch.cat([first, second]) * grad).to(ctx.dtype)
    if ctx.wanted[2]:
        bias = (d_bias * grad).to(ctx.dtype)
    return (hidden, head, bias, *ctx.rest)


_forward.register_autograd(_give_away, setup_context=_setup_context)


class _AnyLoss(torch.autograd.Function):
    """The same of any objective: a Python function does not pass an operator's schema."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        run: Callable[[], tuple[Tensor, dict[str, Tensor], Gradients]],
        sums: dict[str, Tensor],
        wanted: list[bool],
    ) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            total, more, gradients = run()
        sums |= more
        _setup_context(ctx, (hidden, weight, bias, run, sums, wanted), (total, total, *gradients.done()))
        return total

    backward = staticmethod(_give_away)
