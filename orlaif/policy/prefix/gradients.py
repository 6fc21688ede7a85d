"""The gradient of log-probs, which right log-probs do not vouch for.

A layout that hands a state on through a cache may give every log-prob right and lose the gradient on that way, or write
over what the backward pass reads. So the check at load asks for one small gradient besides: that of a vector which is
added to every token's embedding, and through which all ways back to the prompt lead. Weights get none, so that it
costs a backward pass through activations alone.

Shapes: P prompts, G completions, T completion tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from orlaif.policy.asking import base_of

#: Largest difference of a gradient, as a part of its norm, that is rounding. In 16 bits it differs by a tenth and more
#: from one exact way to another on a deep model; that finds what is missing or wrong altogether.
GRADIENT_TOLERANCE = {torch.float64: 1e-4, torch.float32: 2e-2, torch.float16: 0.5, torch.bfloat16: 0.5}


@contextmanager
def nudged(model: Any) -> Iterator[list[Tensor]]:
    """Within, zeros [H] are added to every token's embedding, and the list holds them; weights are held fixed."""
    nudge: list[Tensor] = []

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if not nudge:
            nudge.append(output.new_zeros(output.shape[-1]).requires_grad_())
        return output + nudge[0]

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    handle = base_of(model).get_input_embeddings().register_forward_hook(hook)
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield nudge
    finally:
        handle.remove()
        for parameter in trained:
            parameter.requires_grad_(True)


def last_gradient(logps: Tensor, nudge: list[Tensor]) -> Tensor:
    """f64[H], of a weighted sum of the log-probs [..., G, T] of the last completion behind each prompt."""
    weights = torch.linspace(1.0, 2.0, logps.shape[-1], dtype=logps.dtype, device=logps.device)
    (gradient,) = torch.autograd.grad((logps[..., -1, :] * weights).sum(), nudge)
    return gradient.double()


def off_by(gradient: Tensor, expected: Tensor) -> float:
    """How far a gradient is from the ``expected`` one, as a part of its norm; nan where it is not finite."""
    return float((gradient - expected).norm() / expected.norm().clamp(min=1e-30))
