"""A loss whose gradient takes the place of the logits.

GRPO_rank with a token-level ratio is one launch, both sweeps over each row, the second from cache. Any other objective
is a sweep, the objective on the statistics, and a second sweep in the backward pass. So is fp16, which has no room for
a gradient divided by thousands of tokens, nor precision for rounding it twice: it is made when the gradient scaler's
factor is known.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from orlaif_kernels.arguments import LossSettings
from orlaif_kernels.batch import Batch
from orlaif_kernels.objective import GRPORank, Objective
from orlaif_kernels.rows import ENTROPY, LOGP, STATE_SLOTS, TERM_SLOTS, Rows, on_device_of


class InPlace(torch.autograd.Function):
    """Logits [N, T or T + 1, V], contiguous, to the loss; sums of metrics are left in ``sums``."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, batch: Batch, objective: Objective, settings: LossSettings, sums: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The loss, and the logits that it has taken."""
        ids, mask = batch.token_ids, batch.mask
        fused = isinstance(objective, GRPORank) and objective.fusible and logits.dtype != torch.float16
        slots = TERM_SLOTS if fused else STATE_SLOTS
        state = torch.empty(slots, ids.numel(), dtype=torch.float32, device=logits.device)
        rows, stride, ctx.again = Rows(ids, mask, settings, "triton", state), logits.shape[1], None
        if fused:
            out: dict[str, Any] = {"term": batch, "normalizer": batch.normalizer, "out": logits}
            rows.launch(logits, rows_per_completion=stride, statistics=True, **out)
            logits[:, ids.shape[1] :].zero_()
            total, more = batch.of_state(state)
        else:
            rows.launch(logits, rows_per_completion=stride, statistics=True)
            statistics = (state[slot].view(ids.shape) for slot in (LOGP, ENTROPY))
            total, more, c, h = batch.derivatives(objective, *statistics)
            ctx.again = (rows, c.flatten() / batch.normalizer, h.flatten() / batch.normalizer)
        sums |= more
        ctx.mark_dirty(logits)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits)
        ctx.spent = False
        return total / batch.normalizer, logits

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_logits: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradient, once."""
        if grad_logits is not None:
            raise RuntimeError(
                "a loss with inplace=True replaced these logits by its gradient, and another loss has used them since; "
                "compute that loss first, or pass inplace=False"
            )
        if ctx.spent:
            raise RuntimeError(
                "a second backward pass through a loss with inplace=True: the gradient has been given away"
            )
        if torch.is_grad_enabled():
            raise RuntimeError(
                "a gradient of the gradient of a loss with inplace=True is not there; pass inplace=False"
            )
        if grad is None:
            return (None,) * 5
        ctx.spent = True
        (logits,) = ctx.saved_tensors
        dlogits = logits.detach()
        if ctx.again is None:
            scale_in_place(dlogits, grad)
        else:
            rows, c, h = ctx.again
            stride = dlogits.shape[1]
            rows.launch(dlogits, rows_per_completion=stride, gradients=(c * grad, h * grad), out=dlogits)
            dlogits[:, rows.mask.shape[1] :].zero_()
        return dlogits, None, None, None, None


def scale_in_place(x: Tensor, factor: Tensor) -> None:
    """``x *= factor`` for a 0-dim factor on the device; nothing is read or written where it is 1."""
    from orlaif_kernels import row_kernel as k

    block = 8192
    with on_device_of(x):
        k.scale_kernel[(min(-(-x.numel() // block), 2048),)](x, factor, x.numel(), BLOCK=block, num_warps=8)
