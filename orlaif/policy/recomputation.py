"""What the backward pass computes again instead of keeping it: nothing, whole layers, or what is cheap in them.

Through transformers' own entry, so on unmodified models, under LoRA and FSDP2. ``layers`` keeps the input of each layer
(one more forward pass). ``selective`` keeps the outputs of its matrix products and of PyTorch's attention too, which
take nearly all of its time, and computes the rest again: norms, activations, rotary embedding, and products that are
large for what they cost, as an adapter's second and the scores of an attention that has them. (Korthikanti et al.,
"Reducing Activation Recomputation in Large Transformer Models", 2022, compute attention again and nothing else; without
a matrix of scores it is no longer large.) Gradients are those of ``none``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from orlaif.policy.offloading import offload
from orlaif.policy.prefix.current import kept

Recomputation = Literal["none", "layers", "selective"]
Contexts = tuple[AbstractContextManager[Any], AbstractContextManager[Any]]


def _of_aten(*names: str) -> frozenset[Any]:
    """Those operators that this PyTorch has."""
    return frozenset(getattr(torch.ops.aten, name) for name in names if hasattr(torch.ops.aten, name))


_PRODUCTS = _of_aten("mm", "addmm", "bmm", "baddbmm", "_grouped_mm")
_WAYS = ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention")
_ATTENTION = _of_aten(*(f"_scaled_dot_product_{way}" for way in _WAYS))
#: A product so many times as wide as what it sums over is computed again.
_WIDE = 8
#: Whether what ``selective`` keeps can be kept elsewhere: PyTorch 2.11 holds it where no hook sees it.
SEEN_BY_HOOKS = "respect_saved_tensors_hooks" in inspect.signature(checkpoint).parameters


def recomputation(value: bool | str) -> Literal[False, "layers", "selective"]:
    """What ``policy.gradient_checkpointing`` means; ``none`` and false are False, true is ``layers``.

    Raises:
        ValueError: another value.
    """
    if isinstance(value, bool):
        return "layers" if value else False
    if value not in get_args(Recomputation):
        raise ValueError(
            f"policy.gradient_checkpointing is {value!r}; it must be false, true, 'none', 'layers' or 'selective'"
        )
    return False if value == "none" else value  # type: ignore[return-value]


def recompute(
    model: Any, how: bool | str, offloaded: bool = False, also: frozenset[Any] = frozenset(), **settings: Any
) -> None:
    """Make a model of transformers, or PEFT's around one, recompute its layers in the backward pass.

    Args:
        model: changed in place; in training mode it recomputes.
        how: as :func:`recomputation` gives it; False recomputes nothing.
        offloaded: what is kept waits on the host (``orlaif.policy.offloading``).
        also: further operators whose outputs ``selective`` keeps.
        settings: of ``torch.utils.checkpoint.checkpoint``.
    """
    if how:
        contexts = kept if how == "layers" else _selective(_ATTENTION | also)
        settings = {"use_reentrant": False, "context_fn": contexts, **settings}
        if SEEN_BY_HOOKS:
            settings["respect_saved_tensors_hooks"] = True
        newer = getattr(model, "activation_checkpointing_enable", None)  # its name since transformers 5.24
        (newer or model.gradient_checkpointing_enable)(settings)
    if offloaded:
        offload(model, recomputed=bool(how))


def _selective(attention: frozenset[Any]) -> Callable[[], Contexts]:
    """The ``context_fn`` that keeps outputs of products and attention, and the rows of the pass for all others."""

    def chosen(ctx: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        packet = getattr(operator, "overloadpacket", None)
        dear = packet in attention or (packet in _PRODUCTS and _is_narrow(args))
        return CheckpointPolicy.MUST_SAVE if dear else CheckpointPolicy.PREFER_RECOMPUTE

    def contexts() -> Contexts:
        first, again = create_selective_checkpoint_contexts(chosen)
        return first, _both(kept()[1], again)

    return contexts


def _is_narrow(args: tuple[Any, ...]) -> bool:
    """Of a product's arguments, the last two tensors of which are its factors: whether it sums over much."""
    right = [x for x in args if isinstance(x, Tensor) and x.is_floating_point()][-1]
    return right.shape[-2] * _WIDE > right.shape[-1]


@contextmanager
def _both(rows: AbstractContextManager[Any], again: AbstractContextManager[Any]) -> Iterator[None]:
    with rows, again:
        yield
