"""A cache of transformers that gradients flow through.

Keys and values are put one behind the other anew at every step, so they do. States of convolutions and recurrent layers
are written in place, which breaks the backward pass of whatever has read them; here each write goes to fresh memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import DynamicCache


def differentiable_cache(config: Any) -> DynamicCache:
    """An empty cache, of the layers that a text model's ``config`` asks for, that gradients flow through."""
    cache = DynamicCache(config=config)
    for layer in cache.layers:
        let_gradients_through(layer)
    return cache


def let_gradients_through(layer: Any) -> Any:
    """The same layer of a cache, still empty, of which each write goes to fresh memory."""
    for update, states in (("update_conv_state", "conv_states"), ("update_recurrent_state", "recurrent_states")):
        if hasattr(layer, update):
            setattr(layer, update, _to_fresh(layer, states, getattr(layer, update)))
    return layer


def _to_fresh(layer: Any, states: str, update: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``update`` of a cache's layer, that writes its ``states`` (by number) to memory that nothing has read yet."""

    def updated(*args: Any, **kwargs: Any) -> Tensor:
        kept = getattr(layer, states)
        kept.update({i: state.clone() for i, state in kept.items() if state is not None})
        return update(*args, **kwargs)

    return updated


def states_of(layer: Any) -> dict[tuple[str, int], Tensor]:
    """The states that a layer of a cache holds, by the method that writes them and their number."""
    kinds = (("update_conv_state", "conv_states"), ("update_recurrent_state", "recurrent_states"))
    held = ((update, getattr(layer, name)) for update, name in kinds if hasattr(layer, update))
    return {(update, i): state for update, kept in held for i, state in kept.items() if state is not None}


def hand_in(layer: Any, states: dict[tuple[str, int], Tensor]) -> None:
    """Let an empty layer of a cache go on from the :func:`states_of` another."""
    for (update, number), state in states.items():
        getattr(layer, update)(state, state_idx=number)
