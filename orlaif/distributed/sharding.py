"""Sharding a model with FSDP2, layer by layer, and gathering it for a while.

Each transformer layer (the vision tower's included) is a unit: its weights are gathered when it runs, and freed behind
it. In a rollout that would be a gathering for every token, and processes whose answers end at different tokens would
wait for each other for ever; so a rollout gathers all weights once (:func:`gathered`), and then decodes alone.

Source: torch.distributed.fsdp.fully_shard.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from transformers.modeling_layers import GradientCheckpointingLayer

from orlaif.distributed.deferred import cast_weights, hold
from orlaif.distributed.heap import freed_at_once

_DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """How FSDP2 treats the weights, as a recipe states it under ``policy.sharding``.

    Args:
        param_dtype: weights are gathered and used in this dtype, while shards, gradients and optimizer keep
            ``policy.dtype``; None: no other. ``bfloat16`` over ``policy.dtype: float32`` is mixed precision. A frozen
            copy, whose weights nothing is added to, is kept in this dtype as well: its passes are the same.
        reduce_dtype: gradients are summed over processes in this dtype; None: in that of the weights.
        reshard_after_forward: free a layer's gathered weights behind its forward pass, and gather them again for the
            backward pass; false keeps them, which is faster and takes the memory of the whole model.
        cpu_offload: keep shards, gradients and optimizer in the memory of the host.

    Raises:
        ValueError: an unknown dtype.
    """

    param_dtype: str | None = None
    reduce_dtype: str | None = "float32"
    reshard_after_forward: bool = True
    cpu_offload: bool = False

    def __post_init__(self) -> None:
        for name in ("param_dtype", "reduce_dtype"):
            if (value := getattr(self, name)) is not None and value not in _DTYPES:
                raise ValueError(f"policy.sharding.{name} is {value!r}; it must be null or one of {', '.join(_DTYPES)}")


def _dtype(name: str | None) -> torch.dtype | None:
    return None if name is None else getattr(torch, name)


@freed_at_once()
def shard(model: Any, layers_of: nn.Module, mesh: Any, sharding: Sharding) -> None:
    """Shard a model in place; of weights that are still in their files each process reads its rows.

    Args:
        model: as it will be called; it becomes the root. One of which nothing is trained is kept in ``param_dtype``, to
            which FSDP2 would cast its shards before each pass.
        layers_of: where its layers are looked for; the same, or what it wraps.
        mesh: one-dimensional device mesh of the processes that share the weights.
        sharding: how.
    """
    computed = _dtype(sharding.param_dtype)
    options: dict[str, Any] = {
        "mesh": mesh,
        "mp_policy": MixedPrecisionPolicy(param_dtype=computed, reduce_dtype=_dtype(sharding.reduce_dtype)),
        # Without a GPU, torch 2.11 cannot pin, and there is nothing to copy to.
        "offload_policy": CPUOffloadPolicy(torch.cuda.is_available()) if sharding.cpu_offload else OffloadPolicy(),
    }
    if computed is not None and not any(p.requires_grad for p in model.parameters()):
        cast_weights(model, computed)
    if mesh.device_type != "cpu":  # FSDP2 would move them itself, by assigning values
        device = torch.device(mesh.device_type, torch.accelerator.current_device_index())
        hold(model, lambda weight: weight.to(device))
    for layer in layers_of.modules():
        if (
            isinstance(layer, GradientCheckpointingLayer) and layer is not model
        ):  # what transformers itself takes for a layer
            fully_shard(layer, reshard_after_forward=sharding.reshard_after_forward, **options)
    # The root holds embeddings and LM head; the loss may read the head behind the forward pass.
    fully_shard(model, reshard_after_forward=False, **options)
    model.reshard_layers = sharding.reshard_after_forward
    model.compute_dtype = computed


def is_sharded(model: nn.Module | None) -> bool:
    """Whether the weights lie in shards on several processes, which :func:`shard` does."""
    return isinstance(model, FSDPModule)


def compute_dtype(model: nn.Module) -> torch.dtype:
    """What a model's weights are when it runs, autocast aside."""
    return getattr(model, "compute_dtype", None) or next(p.dtype for p in model.parameters() if p.is_floating_point())


@contextmanager
def gathered(model: Any) -> Iterator[None]:
    """Within this context every process holds all weights of a sharded model, so that it can run by itself.

    All processes must enter and leave. A model that is not sharded, or gathered already, is left as it is.
    """
    if not is_sharded(model) or getattr(model, "is_gathered", False):
        yield
        return
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    model.is_gathered = True
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        model.is_gathered = False
        for unit in units:
            unit.set_reshard_after_forward(model.reshard_layers and unit is not model, recurse=False)
            unit.reshard()
