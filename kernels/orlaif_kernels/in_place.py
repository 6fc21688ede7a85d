"""GRPO_rank whose gradient takes the place of the logits: both sweeps over a row in one launch, the second from cache.

Where that is not so, for other objectives, sequence ratios and fp16, the gradient takes their place in the backward
pass of the statistics. (fp16 has no room for a gradient divided by thousands of tokens, nor precision for rounding it
twice: it is made when the gradient scaler's factor is known.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from orlaif_kernels.arguments import LossSettings
from orlaif_kernels.batch import Batch
from orlaif_kernels.logits import Logits
from orlaif_kernels.rows import TERM_SLOTS, on_device_of


def in_place_loss(logits: Logits, batch: Batch, settings: LossSettings) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, divided, and sums of metrics; the logits are gone."""
    sums: dict[str, Tensor] = {}
    return _InPlace.apply(logits.x, logits, batch, settings, sums)[0], sums


class _InPlace(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, logits: Logits, batch: Batch, settings: LossSettings, sums: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        rows = logits.rows(batch.token_ids, batch.mask, settings, slots=TERM_SLOTS)
        rows.launch(x, statistics=True, term=batch, normalizer=batch.normalizer, out=x)
        x[:, batch.mask.shape[1] :].zero_()
        total, more = batch.of_state(rows.state)
        sums |= more
        ctx.mark_dirty(x)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x)
        ctx.spent = False
        return total / batch.normalizer, x

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_logits: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_logits is not None:
            raise RuntimeError(
                "a loss with inplace=True replaced these logits by its gradient, and another loss has used them since; "
                "compute that loss first, or pass inplace=False"
            )
        if ctx.spent or torch.is_grad_enabled():
            what = "second backward pass through" if ctx.spent else "gradient of the gradient of"
            raise RuntimeError(f"there is no {what} a loss with inplace=True, whose gradient is given away; pass False")
        (dlogits,) = ctx.saved_tensors
        if grad is not None:
            ctx.spent = True
            dlogits = dlogits.detach()
            scale_in_place(dlogits, grad)
        return None if grad is None else dlogits, None, None, None, None


def scale_in_place(x: Tensor, factor: Tensor) -> None:
    """``x *= factor`` for a 0-dim factor on the device; nothing is read or written where it is 1."""
    from orlaif_kernels import row_kernel as k

    block = 8192
    with on_device_of(x):
        k.scale_kernel[(min(-(-x.numel() // block), 2048),)](x, factor, x.numel(), BLOCK=block, num_warps=8)
