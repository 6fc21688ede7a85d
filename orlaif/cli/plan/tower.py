"""What makes features of a video, counted: one layer of the tower, and all others like it.

Towers take their patches in many ways. A layer is called as it was when the model was shown a clip
(``orlaif.cli.plan.shown``), with more patches; where that is not known, with whatever its signature has, on all patches
in a row; a layer that cannot be run so is added up from its products of matrices (:func:`added_up`).
"""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from orlaif.cli.plan.layers import layers_of
from orlaif.cli.plan.shown import Call, Shown
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
        shown: what was seen with a clip.
    """

    def __init__(self, parts: list[nn.Module], compute: torch.dtype, used: Callable[..., Used], shown: Shown) -> None:
        self.parts = parts
        self.main = main_part(parts)
        self.compute, self._used = compute, used
        layers = layers_of(self.main)
        kind = Counter(map(type, layers)).most_common(1)[0][0] if layers else None
        #: One like most of them.
        self.layer = next((layer for layer in layers if type(layer) is kind), self.main)
        self.number, self._call = len(layers), shown.calls.get(id(self.layer))
        self._left = len(shown.held & {id(layer) for layer in layers})
        self.trained = any(p.requires_grad for part in parts for p in part.parameters())

    def layers(self, patches: int, train: bool) -> tuple[Used, int]:
        """What a layer takes for so many patches, and how many there are."""
        layer, number = self.layer, self.number
        if not number:
            return added_up(layer, patches, self.compute, train), 1
        for arguments, inputs in self._ways(layer, patches):
            inputs.requires_grad_(train)
            known = [t for value in arguments.values() for t in _tensors(value)]
            try:
                return self._used(_running(layer, arguments, inputs), [inputs, *known], layer, train), number
            except Exception:  # whatever it raises, called so
                continue
        return added_up(layer, patches, self.compute, train), number

    def handed(self, patches: int) -> tuple[int, int]:
        """Bytes of what all layers are given beside hidden states, as far as it is known: numbers, and masks."""
        if self._call is None:
            return 0, 0
        tensors = tree_leaves(list(_with(self._call, patches, self.compute)[0].values()))
        numbers = [t for t in tensors if isinstance(t, Tensor) and t.is_floating_point()]
        return bytes_of(numbers), bytes_of(tensors) - bytes_of(numbers)

    def _ways(self, layer: nn.Module, patches: int) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """Arguments and hidden states that a layer may be called with."""
        if self._call is not None:
            yield _with(self._call, patches, self.compute)
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
    def further(self) -> tuple[int, int]:
        """How many hidden states it collects besides the last ones, and how many of them outlive it."""
        collects = self._call is not None and self._call[1].get("output_hidden_states")
        return self.number if collects else 0, self._left if self._left > 1 else 0

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


def _with(call: Call, patches: int, compute: torch.dtype) -> tuple[dict[str, Any], Tensor]:
    """The call with so many patches: in one row, or in as many frames of its size."""
    hidden, named = call
    rows, *inside = hidden.shape[:-1]
    frames = rows > 1 and bool(inside)
    before, after = (rows, -(-patches // math.prod(inside))) if frames else (hidden.shape[:-1].numel(), patches)

    def sized(tensor: Tensor) -> Tensor:
        shape = list(tensor.shape)
        if before in shape:
            shape[shape.index(before)] = after
        return torch.empty(shape, dtype=compute if tensor.dtype is hidden.dtype else tensor.dtype, device="meta")

    arguments = tree_map_only(Tensor, sized, named)
    lengths = {"cu_seqlens": torch.tensor([0, patches], dtype=torch.int32), "max_seqlen": patches}
    return arguments | {name: value for name, value in lengths.items() if name in named}, sized(hidden)


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
