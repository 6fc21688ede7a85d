"""Passes on the meta device: what has a value there, and what has none.

Whole numbers may lie on the CPU and be computed, since models lay out their passes by them: sizes of frames, places of
tokens. All else is of the meta device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

_META, _CPU = torch.device("meta"), torch.device("cpu")


@contextmanager
def on_meta() -> Iterator[None]:
    """A context in which passes on the meta device run that ask what only numbers tell."""
    autocast = torch.autocast

    def allowed(device_type: str, *args: Any, **kwargs: Any) -> Any:  # which knows no autocast there
        return nullcontext() if device_type == "meta" else autocast(device_type, *args, **kwargs)

    nonzero = patch("torch.fx.experimental._config.meta_nonzero_assume_all_nonzero", True)
    with nonzero, patch("torch.autocast", allowed):
        yield


class WholeNumbers(TorchDispatchMode):
    """A context in which whole numbers have values, on the CPU, and nothing else has, on the meta device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        valueless = [t.is_meta for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if func is torch.ops.aten._to_copy.default and kwargs.get("device") is not None:
            valued = not args[0].is_meta and _is_whole(kwargs.get("dtype") or args[0].dtype)
            kwargs["device"] = _CPU if valued else _META
        elif not valueless and kwargs.get("device") is not None:  # a new tensor
            made = func(*args, **kwargs | {"device": _CPU})
            return made if _is_whole(made.dtype) else made.to(_META)
        elif any(valueless) and not all(valueless):
            if func._schema.is_mutable and not args[0].is_meta:
                return args[0]  # of which no more is known than before
            args, kwargs = _without_values(func, args, kwargs)
        return func(*args, **kwargs)


def _is_whole(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex)


def _without_values(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if func is torch.ops.aten.index.Tensor:  # a choice has a size as long as it has values
        chosen: list[Tensor | None] = []
        for index in args[1]:
            is_choice = index is not None and not index.is_meta and index.dtype is torch.bool
            chosen += index.nonzero().unbind(1) if is_choice else [index]
        args = (args[0], chosen)
    args, kwargs = tree_map_only(Tensor, lambda t: t.to(_META), (args, kwargs))
    return args, kwargs | ({"device": _META} if "device" in kwargs else {})
