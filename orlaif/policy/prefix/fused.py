"""Whether an LM head may be fused with the loss: what a model does between its last hidden states and its logits.

It may where logits are the head's, times a scale that is one number, with or without a soft cap. A scale that is itself
trained stands behind the head, where a fused loss would neither see it change nor give it a gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from orlaif.policy.asking import leaves

#: Part of the largest logit by which made logits may be off.
_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-4}
#: Rows of an LM head that are in float64 at a time.
_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class Head:
    """What a fused head may take for the LM head.

    Args:
        scale: of the logits, before a cap.
        softcap: of the logits.
        reason: why it must not be fused; None where it may.
    """

    scale: float = 1.0
    softcap: float | None = None
    reason: str | None = None


def weight_behind(model: nn.Module, head: nn.Module, forward: Callable[[], Tensor]) -> str | None:
    """The name of a weight, not the LM head's own, that logits depend on behind it; None where there is none.

    Args:
        model: with that head.
        head: its LM head.
        forward: a pass that gives logits.
    """

    def begins(module: nn.Module, inputs: Any) -> None:
        torch.set_grad_enabled(True)  # until the end of the block below

    handle = head.register_forward_pre_hook(begins)
    try:
        with torch.no_grad():
            logits = forward()
    finally:
        handle.remove()
    reached = leaves(logits) - {id(parameter) for parameter in head.parameters()}
    return next((name for name, parameter in model.named_parameters() if id(parameter) in reached), None)


def fitted_head(head: nn.Linear, hidden: Tensor, logits: Tensor, config: Any) -> Head:
    """The scale and the soft cap with which a head on hidden states makes the logits.

    Args:
        head: the LM head.
        hidden: f[N, T, H], last hidden states.
        logits: f[N, T, V], of the model itself, at the same places.
        config: of the decoder.
    """
    allowed = _ROUNDING.get(logits.dtype, 0.03) * float(logits.abs().max())
    logits, hidden = logits.double(), hidden.double()
    rows = head.weight.split(_ROWS)  # of weights in their files, which are thus never read whole
    plain = torch.cat([hidden @ some.double().T for some in rows], -1)
    plain = plain if head.bias is None else plain + head.bias.double()
    softcap = getattr(config, "final_logit_softcapping", None)
    differences = []
    for cap in (softcap, None):
        for scale in (1.0, _scale(logits, plain, cap, config)):
            made = scale * plain if cap is None else cap * torch.tanh(scale * plain / cap)
            differences.append(float((made - logits).abs().max()))
            if differences[-1] <= allowed:
                return Head(scale=scale, softcap=cap)
    return Head(reason=f"its logits are not what its LM head makes of hidden states (off by {differences[0]:.2g})")


def _scale(logits: Tensor, plain: Tensor, cap: float | None, config: Any) -> float:
    """The factor that comes closest: as the config has it, or its inverse, where that is as close as rounding."""
    if cap is not None:
        clear = logits.abs() < 0.9 * cap  # near the cap, rounding is all there is
        logits, plain = cap * torch.atanh(logits[clear] / cap), plain[clear]
    fitted = float((logits * plain).sum() / (plain * plain).sum().clamp(min=1e-12))
    numbers = [float(v) for v in vars(config).values() if isinstance(v, (int, float)) and not isinstance(v, bool) and v]
    told = [scale for number in numbers for scale in (number, 1 / number)]
    closest = min(told, key=lambda scale: abs(scale - fitted), default=fitted)
    return closest if abs(closest - fitted) <= 0.01 * abs(fitted) else fitted
