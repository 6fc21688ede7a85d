"""Counting the bytes of tensors that are alive, on any device: on the meta device without a byte being allocated.

Operations are counted with them, and the floating-point operations of products of matrices and convolutions.

Every operation's outputs pass by; a storage counts from the operation that made it until it is freed. What kernels use
inside one operation is not seen; of the statistics of logits, which are large, it is known.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

from orlaif_kernels.logits import transient_bytes
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

#: Operators that hold more for a moment, and which argument is the logits, if the next, a head, is None; the last but
#: one is how they are computed.
_STATISTICS = {"orlaif_kernels::token_statistics": 0, "orlaif_kernels::token_statistics_backward": 2}

#: Makes a copy in the host's memory (``orlaif.policy.parked``).
_TO_HOST = "orlaif::to_host"


class LiveBytes(TorchDispatchMode):
    """A context that counts.

    Args:
        known: tensors that do not count, nor their views: what was there before.

    Attributes:
        now: bytes alive.
        peak: the most that were.
        away: of copies in the host's memory (``orlaif.policy.offloading``), which count here alone.
        host: what they take of it, where pinned memory comes in powers of two.
        flops: of products in 16 bits, two for a multiplication with its addition.
        single: of those in 32 bits, which are slower.
        operations: how many there were, each of which is a kernel or more on a GPU.
    """

    #: That which is counting.
    counting: LiveBytes | None = None

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = self.away = self.host = self.operations = 0
        self.flops = self.single = 0.0
        self._seen = WeakIdKeyDictionary()
        for tensor in known:
            self._seen[tensor.untyped_storage()] = True

    def __enter__(self) -> LiveBytes:
        self._outer, LiveBytes.counting = LiveBytes.counting, self
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *error: Any) -> None:
        LiveBytes.counting = self._outer
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        kind = _kind(func)
        if kind.to_host:
            return self._see_on_host(out)
        if isinstance(out, Tensor):  # as most do
            self._see(out)
        else:
            tree_map_only(Tensor, self._see, out)
        self.operations += not kind.is_view
        if kind.computes and (number := _flops(func, args, kwargs or {}, out)):
            self.add_flops(number, next(t for t in tree_leaves(out) if isinstance(t, Tensor)))
        if (at := kind.statistics) is not None and args[at + 1] is None:
            self.peak = max(self.peak, self.now + transient_bytes(args[at], args[-2]))
        return out

    def add_flops(self, number: float, made: Tensor) -> None:
        """Count products that made a tensor."""
        if made.element_size() <= 2:
            self.flops += number
        else:
            self.single += number

    def _see(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage not in self._seen:
            self._seen[storage] = True
            size = storage.nbytes()
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, size)
        return tensor

    def _free(self, size: int) -> None:
        self.now -= size

    def _see_on_host(self, copy: Tensor) -> Tensor:
        storage = copy.untyped_storage()
        self._seen[storage] = True
        self._count_on_host(storage.nbytes())
        weakref.finalize(storage, self._count_on_host, storage.nbytes(), -1)
        return copy

    def _count_on_host(self, size: int, times: int = 1) -> None:
        self.away += times * size
        self.host += times * (1 << (size - 1).bit_length())


def note_flops(number: float, made: Tensor) -> None:
    """Add products that no operation shows, and that made a tensor, to what is being counted, if anything is."""
    if LiveBytes.counting is not None:
        LiveBytes.counting.add_flops(number, made)


class _Kind(NamedTuple):
    """What matters of an operator here, asked once: names and schemas take longer than an operation does."""

    to_host: bool
    is_view: bool
    computes: bool
    statistics: int | None


@cache
def _kind(func: Any) -> _Kind:
    name, returned = func.name(), func._schema.returns
    is_view = bool(returned) and returned[0].alias_info is not None and not returned[0].alias_info.is_write
    computes = func._overloadpacket in flop_registry or "grouped_mm" in name
    return _Kind(name == _TO_HOST, is_view, computes, _STATISTICS.get(name))


def _flops(func: Any, args: Any, kwargs: dict[str, Any], out: Any) -> float:
    if (counted := flop_registry.get(func._overloadpacket)) is not None:
        return float(counted(*args, **kwargs, out_val=out))
    # Of experts: rows of tokens, each with the matrix of its expert.
    matrices = [value for value in args if isinstance(value, Tensor) and value.ndim == 3]
    products = 2 if "backward" in func.name() else 1
    if matrices:
        return 2.0 * products * args[0].shape[0] * matrices[0].shape[-1] * matrices[0].shape[-2]
    return 2.0 * args[0].numel() * args[1].shape[-1]
