"""Weights that are still in their files: tensors that read what is asked of them, whenever it is asked.

A sharded run needs a model whole for a moment only: to be asked what it does, to be given adapters, to be copied for a
reference. With weights of this kind it is never whole. Whatever changes their layout alone (a cast, a transposition,
experts that are stacked) is remembered; an operation that needs values reads them, works on them and drops them, and
autograd keeps the weight, not what was read. FSDP2 slices such a weight like any other, and so reads this process's
rows.

Rows are those of the first dimension, along which FSDP2 shards and experts are stacked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

_aten = torch.ops.aten
#: Gives rows [first, last) of a weight.
Rows = Callable[[int, int], Tensor]
#: What a tensor is without its values; layouts are tried out on these.
_META = torch.device("meta")
#: Operations whose results have the rows of what they are given, whatever else they do to it.
_ROWWISE = {_aten.detach.default, _aten.alias.default, _aten.clone.default, _aten._to_copy.default}
#: Operations that ask for a weight's shape, dtype and device alone.
_NEW = {
    *(_aten.new_zeros.default, _aten.new_empty.default, _aten.new_empty_strided.default, _aten.new_ones.default),
    *(_aten.zeros_like.default, _aten.empty_like.default, _aten.ones_like.default),
}


class _Place:
    """What is asked for a weight's storage by those who want to know which weights are one."""

    def __init__(self, size: int) -> None:
        self._size = size

    def data_ptr(self) -> int:
        return id(self)

    def nbytes(self) -> int:
        return self._size


class Deferred(Tensor):
    """A weight by how its rows are read.

    Args:
        rows: reads rows, as they lie in memory then.
        like: shape, strides and dtype, on the meta device.
        device: of what ``rows`` gives.
    """

    _rows: Rows
    _place: _Place

    @staticmethod
    def __new__(cls, rows: Rows, like: Tensor, device: torch.device) -> Deferred:
        """A tensor without storage."""
        made: Deferred = Tensor._make_wrapper_subclass(
            cls, like.shape, strides=like.stride(), dtype=like.dtype, device=device
        )
        made._rows, made._place = rows, _Place(made.nbytes)
        return made

    def __init__(self, rows: Rows, like: Tensor, device: torch.device) -> None:
        """All is done by ``__new__``, since tensors are."""

    def __repr__(self, **kwargs: Any) -> str:  # type: ignore[override]
        """Without values."""
        return f"Deferred({tuple(self.shape)}, {self.dtype}, {self.device})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Another weight that is read from the same place."""
        if id(self) not in memo:
            copied: Tensor = Deferred(self._rows, self.like(), self.device)
            if isinstance(self, nn.Parameter):
                copied = nn.Parameter(copied, requires_grad=self.requires_grad)
            memo[id(self)] = copied
        return memo[id(self)]

    def like(self) -> Tensor:
        """Shape, strides and dtype."""
        return torch.empty_strided(self.shape, self.stride(), dtype=self.dtype, device=_META)

    def read(self) -> Tensor:
        """All of it."""
        with torch.no_grad():
            return self._rows(0, len(self) if self.ndim else 1)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Results are what the operation gives, not of this class."""
        if func is Tensor.data.__set__ and isinstance(args[0], Deferred):  # type: ignore[attr-defined]
            value = args[1]
            args[0]._rows = value._rows if isinstance(value, Deferred) else lambda first, last: value[first:last]
        if func is Tensor.untyped_storage:
            return args[0]._place
        if func is Tensor.data_ptr:
            return args[0]._place.data_ptr()
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Remember a change of layout; for all else, read."""
        kwargs = kwargs or {}
        if func in _NEW:
            return func(args[0].like(), *args[1:], **kwargs | {"device": kwargs.get("device") or args[0].device})
        if func in (_aten.stack.default, _aten.cat.default):
            parts, dim = args[0], args[1] if len(args) > 1 else kwargs.get("dim", 0)
            if all(isinstance(part, Deferred) for part in parts):
                return _joined(func, parts, dim)
        elif func is _aten.embedding.default and isinstance(args[0], Deferred):
            return _looked_up(args[0], *args[1:2])
        elif func in _ROWWISE or (_is_view(func) and isinstance(args[0], Deferred)):
            return _laid(func, args, kwargs)
        if func._schema.is_mutable and isinstance(args[0], Deferred):
            raise RuntimeError(f"{func} would change a weight that is still in its file; call hold() first")
        args, kwargs = tree_map_only(Deferred, Deferred.read, (args, kwargs))
        return func(*args, **kwargs)


def _looked_up(table: Deferred, ids: Tensor) -> Tensor:
    """Rows of an embedding, of which a few are asked for out of very many."""
    asked, places = ids.unique(return_inverse=True)
    rows = [table._rows(i, i + 1) for i in asked.tolist()]
    return torch.cat(rows)[places] if rows else table._rows(0, 0).new_zeros(*ids.shape, *table.shape[1:])


def _is_view(func: Any) -> bool:
    returned = func._schema.returns
    return bool(returned) and returned[0].alias_info is not None and not returned[0].alias_info.is_write


def _laid(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operation on one weight gives, later."""
    base: Deferred = args[0]
    kwargs = {name: value for name, value in kwargs.items() if name != "pin_memory"}
    device = torch.device(kwargs.get("device") or base.device)
    made = func(base.like(), *args[1:], **(kwargs | {"device": _META} if "device" in kwargs else kwargs))
    if isinstance(made, Tensor):
        laid = Deferred(_rows_of(func, base, args[1:], kwargs, made), made, device)
        laid._place = base._place
        return laid
    firsts, first = [], 0
    for one in made:
        firsts.append(first)
        first += len(one) if one.ndim else 1
    along = args[2] if len(args) > 2 else kwargs.get("dim", 0)
    if func in (_aten.split.Tensor, _aten.split_with_sizes.default) and along in (0, -base.ndim):
        return [Deferred(_from(base, start), one, device) for start, one in zip(firsts, made, strict=True)]
    return [Deferred(_whole(func, base, args[1:], kwargs, i), one, device) for i, one in enumerate(made)]


def _from(base: Deferred, start: int) -> Rows:
    return lambda first, last: base._rows(start + first, start + last)


def _whole(func: Any, base: Deferred, args: Any, kwargs: dict[str, Any], index: int | None = None) -> Rows:
    """Rows of the result on all of ``base``."""

    def rows(first: int, last: int) -> Tensor:
        made = func(base.read(), *args, **kwargs)
        made = made if index is None else made[index]
        return made[first:last] if made.ndim else made

    return rows


def _rows_of(func: Any, base: Deferred, args: Any, kwargs: dict[str, Any], made: Tensor) -> Rows:
    """Rows of a result that is one tensor: from the same rows of ``base`` where they suffice."""
    if func in _ROWWISE:
        return lambda first, last: func(base._rows(first, last), *args, **kwargs)
    if func is _aten.slice.Tensor and (args[0] if args else 0) in (0, -base.ndim) and (args[3:] or (1,))[0] == 1:
        start, _, _ = slice(*(args[1:3] or (None,))).indices(len(base)) if len(args) > 1 else (0, 0, 1)
        return _from(base, start)
    if func is _aten.transpose.int and all(dim % base.ndim for dim in args):
        return lambda first, last: func(base._rows(first, last), *args)
    return _whole(func, base, args, kwargs)


def _joined(func: Any, parts: Sequence[Deferred], dim: int) -> Deferred:
    """Several weights as one, later."""
    made = func([part.like() for part in parts], dim)
    along = dim % made.ndim

    def rows(first: int, last: int) -> Tensor:
        if along:  # each has all rows
            return func([part._rows(first, last) for part in parts], dim)
        if func is _aten.stack.default:
            return func([part.read() for part in parts[first:last]], dim)
        taken, start = [], 0
        for part in parts:
            begin, end = max(first - start, 0), min(last - start, len(part))
            if begin < end:
                taken.append(part._rows(begin, end))
            start += len(part)
        return func(taken, dim)

    return Deferred(rows, made, parts[0].device)


def has_deferred(model: nn.Module) -> bool:
    """Whether weights of a model are still in their files."""
    return any(isinstance(parameter, Deferred) for parameter in model.parameters())


def _copied(weight: Deferred) -> Tensor:
    return weight.read().clone()  # which may have been a look into the file


def hold(model: nn.Module, make: Callable[[Deferred], Tensor] = _copied) -> None:
    """Give a model weights of its own in place of those in files; what is tied stays so.

    Args:
        model: in place.
        make: of each such weight another tensor; by default its values.
    """
    _replace(model, lambda weight: make(weight) if isinstance(weight, Deferred) else weight)


def cast_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Give a model's weights another dtype, those in files when they are read; buffers stay as they are.

    Args:
        model: in place; what is tied stays so.
        dtype: of its floating-point weights.
    """
    _replace(model, lambda weight: weight.to(dtype) if weight.is_floating_point() else weight)


@torch.no_grad()
def _replace(model: nn.Module, make: Callable[[Tensor], Tensor]) -> None:
    """Weights that ``make`` gives in place of a model's; where it gives the weight itself, that is left alone."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in made:
                new = make(parameter)
                made[id(parameter)] = (
                    parameter if new is parameter else nn.Parameter(new, requires_grad=parameter.requires_grad)
                )
            module._parameters[name] = made[id(parameter)]
