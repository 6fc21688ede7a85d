"""Bytes that wait on the host: where they are, how they come and go, and in which order.

On a GPU copies run beside the passes, in pinned memory, on one stream of their own, so that what is fetched has
arrived before. Memory of the device is allocated and freed on the stream that computes, which waits for the copies: if
their stream were recorded in the allocator instead, that could not tell when the memory is free, and Python, which runs
ahead, would take more. On a CPU copies are made at once.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("orlaif::to_host", mutates_args=())
def to_host(stored: Tensor) -> Tensor:
    """A copy u8[N] in the host's memory, pinned where it comes from a GPU; under way when this returns."""
    host = torch.empty(stored.shape, dtype=stored.dtype, pin_memory=stored.is_cuda)
    return host.copy_(stored, non_blocking=stored.is_cuda)


@to_host.register_fake
def _(stored: Tensor) -> Tensor:
    return torch.empty_like(stored)


class Lane:
    """Copies to the host and back: on a GPU, a stream beside the one that computes.

    Args:
        device: of the activations.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def away(self, stored: Tensor) -> tuple[Tensor, Any]:
        """A copy u8[N] on the host, and what to :meth:`wait` for before ``stored`` may be freed."""
        if self.stream is None:
            return to_host(stored), None
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            return to_host(stored), self.stream.record_event()

    def back(self, host: Tensor) -> tuple[Tensor, Any]:
        """The same on the device, and what to :meth:`wait` for before it is read or freed."""
        stored = torch.empty(host.shape, dtype=host.dtype, device=self.device)  # by the stream that computes
        if self.stream is None:
            return stored.copy_(host), None
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            stored.copy_(host, non_blocking=True)
            return stored, self.stream.record_event()

    def wait(self, done: Any) -> None:
        """Let the stream that computes now wait; the host does not."""
        if done is not None:
            torch.cuda.current_stream(self.device).wait_event(done)


class Parked:
    """One storage whose bytes are on the host.

    Args:
        stored: its bytes u8[N], on the device.
        lane: that copies.
        layer: all that its layer has parked.
    """

    def __init__(self, stored: Tensor, lane: Lane, layer: Saved) -> None:
        self.lane, self.layer = lane, layer
        #: Tensors of it that the backward pass has not asked for yet.
        self.awaited = 0
        #: Its bytes, while they are on the device, and whether they may still be on their way there.
        self.here: Tensor | None = stored
        self.arriving = False
        self.host, self.done = lane.away(stored)

    def release(self) -> None:
        """Give the device's memory back, once it has been copied."""
        if self.here is not None:
            self.lane.wait(self.done)
            self.here, self.arriving = None, False

    def fetch(self) -> None:
        """Begin to copy it back, unless it is there."""
        if self.here is None:
            self.here, self.done = self.lane.back(self.host)
            self.arriving = True

    def taken(self) -> Tensor:
        """Its bytes on the device, for one of its tensors."""
        self.fetch()
        self.layer.fetch_before()
        stored = self.here
        assert stored is not None
        if self.arriving:
            self.lane.wait(self.done)
            self.arriving = False
        self.awaited -= 1
        if self.awaited <= 0:
            self.release()
        return stored

    def __del__(self) -> None:
        if self.arriving:  # whoever is given this memory next must not find the copy under way
            self.lane.wait(self.done)


class Saved:
    """What one layer has parked.

    Args:
        before: of the layer that ran before it.
    """

    def __init__(self, before: Saved | None) -> None:
        self.parked: list[weakref.ref[Parked]] = []
        self._before = None if before is None else weakref.ref(before)

    def release(self) -> None:
        """Of all of it, the device's memory."""
        for parked in filter(None, (one() for one in self.parked)):
            parked.release()

    def fetch_before(self) -> None:
        """Fetch the layer's before it, the last first, as the backward pass will ask for it."""
        before, self._before = self._before, None
        if before is not None and (layer := before()) is not None:
            for parked in filter(None, (one() for one in reversed(layer.parked))):
                if parked.awaited > 0:
                    parked.fetch()
