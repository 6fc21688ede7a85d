"""What makes features of a video, counted: one layer of the tower, and all others like it.

Towers take their patches in many ways. A layer is called with whatever of them its signature has, on all patches in a
row; a layer that cannot be run so is added up from its products of matrices (:func:`added_up`).
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from orlaif.cli.plan.layers import layers_of
from orlaif.cli.plan.sizes import Used, bytes_of


def main_part(parts: list[nn.Module]) -> nn.Module:
    """The largest of a tower's parts that has layers, or, where none has, the largest."""
    return max(parts, key=lambda part: (bool(layers_of(part)), sum(p.numel() for p in part.parameters())))


class Tower:
    """The modules that make features.

    Args:
        parts: of the model (``Family.tower``).
        compute: dtype that they run in.
        used: counts a pass: given what runs, tensors that are known, and the module.
    """

    def __init__(self, parts: list[nn.Module], compute: torch.dtype, used: Callable[..., Used]) -> None:
        self.parts = parts
        self.main = main_part(parts)
        self.compute, self._used = compute, used
        self.trained = any(p.requires_grad for part in parts for p in part.parameters())

    def layers(self, patches: int, train: bool) -> tuple[Used, int]:
        """What a layer takes for so many patches, and how many there are."""
        layers = layers_of(self.main)
        if not layers:
            return added_up(self.main, patches, self.compute, train), 1
        kind = Counter(map(type, layers)).most_common(1)[0][0]
        layer = next(one for one in layers if type(one) is kind)
        for arguments, inputs in self._ways(layer, patches):
            inputs.requires_grad_(train)
            known = [t for value in arguments.values() for t in _tensors(value)]
            try:
                return self._used(_running(layer, arguments, inputs), [inputs, *known], layer, train), len(layers)
            except Exception:  # whatever it raises, called so
                continue
        return added_up(layer, patches, self.compute, train), len(layers)

    def _ways(self, layer: nn.Module, patches: int) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """Arguments and hidden states that a layer may be called with."""
        width = next(part.in_features for part in layer.modules() if isinstance(part, nn.Linear))
        config: Any = getattr(self.main, "config", None)
        heads = getattr(config, "num_heads", None) or getattr(config, "num_attention_heads", None) or 1
        size = getattr(config, "head_dim", None) or width // heads
        turn = torch.empty(patches, size, dtype=self.compute, device="meta")
        places = torch.empty(1, patches, dtype=torch.long, device="meta")
        given = {
            "cu_seqlens": torch.tensor([0, patches], dtype=torch.int32),
            "max_seqlen": patches,
            "position_embeddings": (turn, turn),
            "attention_mask": None,
            "position_ids": places,
        }
        named = inspect.signature(layer.forward).parameters
        own = {name: value for name, value in given.items() if name in named}
        # Of two coordinates, where that is how a layer turns its heads.
        turned = own | {"position_embeddings": (turn[None],) * 2, "position_ids": places[..., None].expand(-1, -1, 2)}
        for arguments in (own, given, {name: turned[name] for name in own}):
            for rows in ((), (1,)):
                yield arguments, torch.empty(*rows, patches, width, dtype=self.compute, device="meta")

    @property
    def interpolates(self) -> bool:
        """Whether it has embeddings of places that are interpolated between four of a grid, in float32."""
        return any(isinstance(getattr(part, "pos_embed", None), nn.Embedding) for part in self.parts)

    @property
    def pools(self) -> bool:
        """Whether what it gives has been pooled, a place for each token of the prompt."""
        return not layers_of(self.main) or isinstance(getattr(self.main, "pooler", None), nn.Module)

    def gradients(self) -> int:
        """Bytes of its weights' gradients."""
        return bytes_of([p for part in self.parts for p in part.parameters() if p.requires_grad])

    @property
    def width(self) -> int:
        """Of its hidden states."""
        inner = [*layers_of(self.main), self.main][0]
        return next(part.in_features for part in inner.modules() if isinstance(part, nn.Linear))


def _running(layer: nn.Module, arguments: dict[str, Any], inputs: Tensor) -> Callable[[], Any]:
    def run() -> Any:
        out = layer(inputs, **arguments)
        return out[0] if isinstance(out, tuple) else out

    return run


def _tensors(value: Any) -> list[Tensor]:
    return [one for one in (value if isinstance(value, tuple) else (value,)) if isinstance(one, Tensor)]


def added_up(module: nn.Module, patches: int, compute: torch.dtype, train: bool) -> Used:
    """What a module's products of matrices take: each keeps its input and what it makes of it.

    Args:
        module: whose linear layers see every patch once.
        patches: how many.
        compute: dtype.
        train: with the backward pass.
    """
    linear = [part for part in module.modules() if isinstance(part, nn.Linear)]
    each = patches * compute.itemsize
    kept = each * sum(part.in_features + part.out_features for part in linear)
    most = each * max((part.in_features + 2 * part.out_features for part in linear), default=0)
    products = 2.0 * patches * sum(part.weight.numel() for part in linear)
    flops, single = (products, 0.0) if compute.itemsize == 2 else (0.0, products)
    once = Used(kept=0, peak=0, operations=4 * len(linear), flops=flops, single=single)
    if not train:
        return replace(once, peak=most)
    return Used(kept=kept, peak=kept + most).plus(once, 3)
