"""Counting the bytes of tensors that are alive, on any device: on the meta device without a byte being allocated.

Every operation's outputs pass by; a storage counts from the operation that made it until it is freed. What kernels use
inside one operation is not seen; of the statistics of logits, which are large, it is known.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from orlaif_kernels.logits import transient_bytes
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

#: Operators that hold more for a moment, and which argument is the logits, if the next, a head, is None; the last but
#: one is how they are computed.
_STATISTICS = {"orlaif_kernels::token_statistics": 0, "orlaif_kernels::token_statistics_backward": 2}


class LiveBytes(TorchDispatchMode):
    """A context that counts.

    Args:
        known: tensors that do not count, nor their views: what was there before.

    Attributes:
        now: bytes alive.
        peak: the most that were.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen = WeakIdKeyDictionary()
        for tensor in known:
            self._seen[tensor.untyped_storage()] = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._see, out)
        if (at := _STATISTICS.get(func.name())) is not None and args[at + 1] is None:
            self.peak = max(self.peak, self.now + transient_bytes(args[at], args[-2]))
        return out

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
