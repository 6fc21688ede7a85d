"""A small clip that a model on the meta device is shown: what its tower is called with, and which weights see the clip.

The model runs up to its decoder, with whole numbers that have values (``orlaif.cli.plan.numbers``).
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from orlaif.cli.plan.layers import layers_of
from orlaif.cli.plan.numbers import WholeNumbers, on_meta
from orlaif.policy import Policy
from orlaif.policy.asking import base_of, leaves
from orlaif.policy.positions import in_order
from orlaif.policy.prefix.synthetic import synthetic_prompt
from orlaif.policy.vision import ENCODERS

#: Hidden states, and further arguments by name.
Call = tuple[Tensor, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What was seen.

    Args:
        reached: ids of the parameters that features of the clip depend on; None where that was not found out.
        calls: hidden states and further arguments, by name, that a layer of the tower was given, by the layer's id.
        held: ids of the layers of the tower whose hidden states are handed out with the features.
        note: why something was not found out.
    """

    reached: set[int] | None = None
    calls: dict[int, Call] = field(default_factory=dict)
    held: frozenset[int] = frozenset()
    note: str | None = None

    def seeing(self, parts: list[nn.Module]) -> list[nn.Module]:
        """Those of these parts of a model that a clip reaches."""
        if self.reached is None:
            return parts
        return [part for part in parts if any(id(p) in self.reached for p in part.parameters())]


class _EnoughError(Exception):
    """The decoder is about to run."""


def show(policy: Policy, model: Any, parts: Sequence[nn.Module]) -> Shown:
    """Show a clip of noise to a model.

    Args:
        policy: whose processor makes inputs of it.
        model: on the meta device, without an adapter.
        parts: of it, that make features; their layers are watched.
    """
    untold = "which weights a video does not reach, if any, is not known"
    try:
        batch = synthetic_prompt(policy.processor, torch.device("cpu"), getattr(torch, policy.dtype), policy.family)
    except (OSError, ValueError) as error:
        why = str(error).splitlines()[0]
        return Shown(note=f"{untold}: no clip could be shown to the model ({why})")
    calls: dict[int, Call] = {}
    handed: list[Any] = []
    outputs: dict[int, weakref.ref[Tensor]] = {}
    features: list[Any] = []

    def watch(layer: nn.Module, args: Any, kwargs: Any) -> None:
        bound = inspect.signature(layer.forward).bind(*args, **kwargs).arguments
        states = bound.pop(next(iter(bound)))
        calls.setdefault(id(layer), (states, bound.pop("kwargs", {}) | bound))

    def made(layer: nn.Module, _: Any, out: Any) -> None:
        outputs[id(layer)] = weakref.ref(next(t for t in tree_leaves(out) if isinstance(t, Tensor)))

    def stop(_: nn.Module, args: Any, kwargs: Any) -> None:
        handed.extend(tree_leaves((args, kwargs)))
        raise _EnoughError

    base: Any = base_of(model)
    layers = [layer for part in parts for layer in layers_of(part)]
    hooks = [layer.register_forward_pre_hook(watch, with_kwargs=True) for layer in layers]
    hooks += [layer.register_forward_hook(made) for layer in layers]
    hooks.append(base.get_decoder().register_forward_pre_hook(stop, with_kwargs=True))
    given = policy.family.inputs(model, batch)
    given = tree_map_only(Tensor, lambda t: t.to("meta") if t.is_floating_point() else t, given)
    owner, note = getattr(base, "model", base), None
    encoders = {name: getattr(owner, name) for name in ENCODERS if callable(getattr(owner, name, None))}
    forgotten = torch.autograd.graph.saved_tensors_hooks(_forget, _forget)
    try:
        for name, encoder in encoders.items():
            setattr(owner, name, _remembering(encoder, features))
        with torch.enable_grad(), forgotten, on_meta(), WholeNumbers():
            ids = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
            base(**ids, position_ids=in_order(batch), use_cache=False, **given)
    except _EnoughError:
        pass
    except Exception as error:  # whatever a model's own code raises for lack of numbers
        note = f"{untold}: the model was not to be shown a clip without its weights ({type(error).__name__}: {error})"
    finally:
        for hook in hooks:
            hook.remove()
        for name in encoders:
            delattr(owner, name)
    handed_out = {id(t) for t in tree_leaves(features)}
    held = frozenset(layer for layer, output in outputs.items() if output() is not None and id(output()) in handed_out)
    tensors = [t for t in handed if isinstance(t, Tensor) and t.grad_fn is not None]
    reached = set[int]().union(*map(leaves, tensors)) if tensors else None
    return Shown(reached=reached, calls=calls, held=held, note=note)


def _forget(_: Any) -> Any:
    """Nothing goes backward, so nothing has to be kept for that, and what is there at the end is what models hold."""


def _remembering(encoder: Callable[..., Any], features: list[Any]) -> Callable[..., Any]:
    def encode(*args: Any, **kwargs: Any) -> Any:
        features.append(encoder(*args, **kwargs))
        return features[-1]

    return encode
