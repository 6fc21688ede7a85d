"""Activations that wait for the backward pass in the memory of the host.

What a layer saves goes there when the layer has run, and comes back when the backward pass gets to it. Under
recomputation that is the input of each layer (and, with ``selective``, what else is kept), otherwise all that its
operators save, but for its weights.

Two layers' worth stays on the device: a layer's until the second one behind it begins, by when it has been copied, and
in the backward pass the layer's before it, which is fetched ahead (``orlaif.policy.parked``). A storage that several
tensors share is copied once, whole. On a CPU all is the same, and saves nothing. (PyTorch's ``save_on_cpu`` copies on
the stream that computes, and weights too.)
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.weak import WeakIdKeyDictionary
from transformers.modeling_layers import GradientCheckpointingLayer

from orlaif.policy.parked import Lane, Parked, Saved

#: Storages of fewer bytes stay where they are: a copy takes longer to start than to run.
SMALL = 1024
#: Layers whose activations are on the device.
WINDOW = 2


@dataclass(frozen=True, kw_only=True)
class _View:
    """What autograd keeps in place of a tensor."""

    parked: Parked
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class Offload(saved_tensors_hooks):
    """Parks what the layers of one model save; :meth:`of_layer` is the context of a layer's forward pass."""

    def __init__(self) -> None:
        super().__init__(self._pack, _unpack)
        self._lanes: dict[torch.device, Lane] = {}
        self._window: deque[Saved] = deque()
        #: Storages that are parked and alive on the device: their version, and where they are parked.
        self._known: Any = WeakIdKeyDictionary()
        self._layer, self._device, self._weights = Saved(None), torch.device("cpu"), frozenset[int]()

    @contextmanager
    def of_layer(self, first: Tensor, weights: frozenset[int] = frozenset()) -> Iterator[None]:
        """A context in which one layer's forward pass runs.

        Args:
            first: of its inputs; what lies on other devices stays there.
            weights: storages that stay where they are (:func:`storages`).
        """
        outer = self._layer, self._device, self._weights
        self._layer, self._device, self._weights = Saved(outer[0]), first.device, weights
        self._window.append(self._layer)
        while len(self._window) > WINDOW:
            self._window.popleft().release()
        try:
            with self:
                yield
        finally:
            _, self._device, self._weights = outer

    @torch.no_grad()
    def _pack(self, tensor: Tensor) -> Any:
        if type(tensor) is not Tensor or tensor.layout != torch.strided or tensor.device != self._device:
            return tensor
        storage = tensor.untyped_storage()
        whole, rest = divmod(storage.nbytes(), tensor.element_size())
        if storage.nbytes() < SMALL or rest or storage._cdata in self._weights or tensor.is_conj() or tensor.is_neg():
            return tensor
        version, known = self._known.get(storage, (None, None))
        parked = known() if known is not None and version == tensor._version else None
        if parked is None:
            lane = self._lanes.setdefault(tensor.device, Lane(tensor.device))
            parked = Parked(tensor.as_strided((whole,), (1,), 0).view(torch.uint8), lane, self._layer)
            self._layer.parked.append(weakref.ref(parked))
            self._known[storage] = (tensor._version, weakref.ref(parked))
        parked.awaited += 1
        return _View(
            parked=parked,
            dtype=tensor.dtype,
            size=tensor.size(),
            stride=tensor.stride(),
            offset=int(tensor.storage_offset()),
        )


@torch.no_grad()
def _unpack(kept: Any) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    stored = kept.parked.taken().view(kept.dtype)
    return stored.as_strided(kept.size, kept.stride, kept.offset)


def storages(layer: nn.Module) -> frozenset[int]:
    """The storages of a layer's weights and buffers, as they are now: FSDP2 puts others in their places to run it."""
    return frozenset(t.untyped_storage()._cdata for t in (*layer.parameters(), *layer.buffers()))


def offload(model: nn.Module, recomputed: bool) -> Offload:
    """Make the layers of a model of transformers, or PEFT's around one, park what they save for the backward pass.

    Args:
        model: changed in place.
        recomputed: its layers have been made to recompute; then it is what recomputation keeps that is parked.

    Raises:
        ValueError: a model that has no layers as transformers takes them.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(
            f"policy.activation_offloading is true, and {type(model).__name__} has no layers by transformers' "
            "GradientCheckpointingLayer; set it to false"
        )
    away = Offload()
    for module in model.modules() if recomputed else ():
        if (checkpoint := vars(module).get("_gradient_checkpointing_func")) is not None:
            module._gradient_checkpointing_func = _around(away, checkpoint)  # type: ignore[assignment]
    for layer in () if recomputed else layers:
        _within(away, layer)
    return away


def _around(away: Offload, checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    """What runs a layer and keeps its inputs, such that those are parked; its own hooks see to the layer's inside."""

    def run(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        first = _first(args)
        if first is None or not torch.is_grad_enabled():
            return checkpoint(function, *args, **kwargs)
        with away.of_layer(first):
            return checkpoint(function, *args, **kwargs)

    return run


def _within(away: Offload, layer: nn.Module) -> None:
    """Park all that a layer saves: its weights are in their places by then, under FSDP2 too, whose hooks run before.

    A copy of the model has the same hooks, and may sample meanwhile: passes without gradient leave all as it is.
    """
    entered: list[AbstractContextManager[None]] = []

    def enter(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled() and (first := _first((*args, *kwargs.values()))) is not None:
            entered.append(away.of_layer(first, storages(module)))
            entered[-1].__enter__()

    def leave(*_: Any) -> None:
        if torch.is_grad_enabled() and entered:
            entered.pop().__exit__(None, None, None)

    layer.register_forward_pre_hook(enter, with_kwargs=True)
    layer.register_forward_hook(leave, always_call=True)


def _first(values: Iterable[Any]) -> Tensor | None:
    return next((value for value in values if isinstance(value, Tensor)), None)
