"""The gradient of log-probs, which right log-probs do not vouch for, and which says who sees whom.

A layout that hands a state on through a cache may give every log-prob right and lose the gradient on that way, or write
over what the backward pass reads. So the check at load asks for two small gradients besides. Zeros are added to the
embeddings of all tokens of the prompts: their gradient is the model's own, or a way back to the prompt is missing. And
others to those of the first completions: of log-probs of the last ones their gradient is nought, or these see those.
Weights get none, so that it costs a backward pass through activations alone.

Shapes: P prompts, G completions, T completion tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from orlaif.policy.asking import base_of

#: Largest difference of a gradient, as a part of its norm, that is rounding.
GRADIENT_TOLERANCE = {torch.float64: 1e-4, torch.float32: 2e-2, torch.float16: 0.3, torch.bfloat16: 0.3}


class Nudge:
    """Zeros [H] that are added to embeddings, of which the gradient is asked.

    Args:
        first: i64[n], tokens of the first completions and of nothing else.
        last: i64[n], those of the last ones.
    """

    def __init__(self, first: Tensor, last: Tensor) -> None:
        self.tokens = (first, last)
        self._added: list[Tensor] = []

    def add(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """A hook on the embedding."""
        if not self._added:
            self._added = [output.new_zeros(output.shape[-1]).requires_grad_() for _ in range(2)]
        of_first, of_last = (torch.isin(inputs[0], tokens)[..., None] for tokens in self.tokens)
        prompt, first = self._added
        return output + prompt * ~(of_first | of_last) + first * of_first

    def gradients(self, logps: Tensor) -> tuple[Tensor, float]:
        """Of a weighted sum of the log-probs [..., G, T] of the last completions.

        Returns:
            f64[H] with respect to the prompts' tokens; and its norm with respect to the first completions'.
        """
        weights = torch.linspace(1.0, 2.0, logps.shape[-1], dtype=logps.dtype, device=logps.device)
        value = (logps[..., -1, :] * weights).sum()
        prompt, first = torch.autograd.grad(value, self._added, allow_unused=True, materialize_grads=True)
        return prompt.double(), float(first.norm())


@contextmanager
def nudged(model: Any, first: Tensor, last: Tensor) -> Iterator[Nudge]:
    """Within, gradients flow to what :class:`Nudge` adds to embeddings, and weights are held fixed."""
    nudge = Nudge(first, last)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    handle = base_of(model).get_input_embeddings().register_forward_hook(nudge.add)
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield nudge
    finally:
        handle.remove()
        for parameter in trained:
            parameter.requires_grad_(True)


def off_by(gradient: Tensor, expected: Tensor) -> float:
    """How far a gradient is from the ``expected`` one, as a part of its norm; nan where it is not finite."""
    return float((gradient - expected).norm() / expected.norm().clamp(min=1e-30))
