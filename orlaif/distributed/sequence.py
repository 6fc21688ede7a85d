"""Processes that share a prompt (sequence parallelism), and what they tell each other so that gradients flow.

``n`` processes next to each other in the run are a sequence group: each holds a run of every prompt's tokens, and its
own completions. What one of them computes from another's tensors goes back to that one in the backward pass, so that
each process has the part of every gradient that its tokens cause; the parts add up to the gradient of one process.

Shapes: n processes of the group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from orlaif.distributed.sync import num_processes, process_index


@dataclass(frozen=True, kw_only=True)
class SequenceGroup:
    """The processes that share this one's prompts.

    Args:
        size: n.
        index: of this process in the group, from 0.
        group: of torch.distributed.
        shares_frames: whether they divide the frames that a tower is given as well.
    """

    size: int
    index: int
    group: Any
    shares_frames: bool = False

    @property
    def is_last(self) -> bool:
        """Whether prompts end on this process."""
        return self.index == self.size - 1

    def share(self, length: int, index: int | None = None) -> tuple[int, int]:
        """Where the run of a process (this one by default) in a prompt of ``length`` tokens begins and ends."""
        index = self.index if index is None else index
        return length * index // self.size, length * (index + 1) // self.size

    def gather(self, x: Tensor) -> Tensor:
        """[n, ...], ``x`` of all processes, which must have one shape; without gradient."""
        out = x.new_empty(self.size * x.shape[0], *x.shape[1:])
        dist.all_gather_into_tensor(out, x.contiguous(), group=self.group)
        return out.view(self.size, *x.shape)

    def gather_rows(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """[sum(sizes), ...], the rows of all processes in their order; gradients go back to whose rows they are.

        Args:
            x: this process's rows.
            sizes: how many each has.
        """
        return _GatherRows.apply(x, self, tuple(sizes))

    def scatter_sum(self, x: Tensor) -> Tensor:
        """[...], this process's part of the sum of ``x`` [n, ...] over all processes; without gradient."""
        out = x.new_empty(x.shape[1:])
        dist.reduce_scatter_tensor(out, x.flatten(0, 1).contiguous(), group=self.group)
        return out

    def from_last(self, states: Mapping[Any, Tensor], with_gradient: bool) -> dict[Any, Tensor]:
        """Tensors of the last process on all of them, each of which has some of these shapes.

        Args:
            states: by name.
            with_gradient: they were computed from what is trained, on all processes or on none.
        """
        anchor = next(iter(states.values())).new_zeros(()).requires_grad_(with_gradient)
        return dict(zip(states, _FromLast.apply(anchor, self, *states.values()), strict=True))

    def from_first(self, value: Any) -> Any:
        """Any value that can be pickled, of the first process, on all of them."""
        values = [value]
        dist.broadcast_object_list(values, src=dist.get_global_rank(self.group, 0), group=self.group)
        return values[0]

    def of_each(self, value: Any) -> list[Any]:
        """The values, which can be pickled, that all processes call this with."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def send_on(self, carrier: Tensor, states: Mapping[Any, Tensor]) -> Tensor:
        """Send tensors to the next process, which takes them by :meth:`receive`; the last one keeps them.

        Args:
            carrier: an output of this process that the loss will depend on.
            states: what goes on, by name; gradients come back where ``carrier`` goes backward.

        Returns:
            ``carrier``, to be used in its place.
        """
        if self.is_last:
            return carrier
        about = [(name, tuple(state.shape), state.dtype) for name, state in states.items()]
        dist.send_object_list([about], dst=self.rank(1), group=self.group)
        return _SendOn.apply(carrier, self, *states.values())

    def receive(self, device: torch.device, with_gradient: bool) -> dict[Any, Tensor]:
        """What the process before this one has sent, by name; nothing on the first.

        Args:
            device: where it goes.
            with_gradient: it was computed from what is trained, on that process as on this one.
        """
        if self.index == 0:
            return {}
        about: list[Any] = [None]
        dist.recv_object_list(about, src=self.rank(-1), group=self.group)
        anchor = torch.zeros((), device=device, requires_grad=with_gradient)
        shapes = [(shape, dtype) for _, shape, dtype in about[0]]
        return dict(zip([name for name, _, _ in about[0]], _Receive.apply(anchor, self, shapes), strict=True))

    def rank(self, offset: int) -> int:
        """The number in the run of the process so many places on."""
        return dist.get_global_rank(self.group, self.index + offset)


def sequence_group(size: int) -> SequenceGroup:
    """This process's group of ``size`` processes next to each other; all processes of the run must call.

    Raises:
        ValueError: the run's processes cannot be divided into such groups.
    """
    check_divides(size, num_processes())
    groups = [dist.new_group(list(range(first, first + size))) for first in range(0, num_processes(), size)]
    return SequenceGroup(size=size, index=process_index() % size, group=groups[process_index() // size])


def check_divides(size: int, processes: int) -> None:
    """Raise ValueError where the ``processes`` of a run cannot be divided into groups of ``size``."""
    if processes % size:
        raise ValueError(
            f"policy.sequence_parallel is {size}; it must divide the number of processes "
            f"(trainer.devices x trainer.num_nodes), which is {processes}"
        )


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: SequenceGroup, sizes: tuple[int, ...]) -> Tensor:
        ctx.group, ctx.sizes = group, sizes
        every = group.gather(torch.cat([x, x.new_zeros(max(sizes) - len(x), *x.shape[1:])]))
        return torch.cat([rows[:size] for rows, size in zip(every, sizes, strict=True)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        longest = max(ctx.sizes)
        every = [torch.cat([g, g.new_zeros(longest - len(g), *g.shape[1:])]) for g in grad.split(ctx.sizes)]
        return ctx.group.scatter_sum(torch.stack(every))[: ctx.sizes[ctx.group.index]], None, None


class _FromLast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, group: SequenceGroup, *states: Tensor) -> tuple[Tensor, ...]:
        ctx.group = group
        out = tuple(state.detach().clone(memory_format=torch.contiguous_format) for state in states)
        for state in out:
            dist.broadcast(state, src=dist.get_global_rank(group.group, group.size - 1), group=group.group)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        summed = [grad.clone(memory_format=torch.contiguous_format) for grad in grads]
        for grad in summed:
            dist.all_reduce(grad, group=ctx.group.group)
        return None, None, *(summed if ctx.group.is_last else [torch.zeros_like(grad) for grad in summed])


class _SendOn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, carrier: Tensor, group: SequenceGroup, *states: Tensor) -> Tensor:
        ctx.group, ctx.shapes = group, [(state.shape, state.dtype, state.device) for state in states]
        for state in states:
            dist.send(state.contiguous(), dst=group.rank(1), group=group.group)
        return carrier.view_as(carrier)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads = [torch.empty(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.shapes]
        for one in grads:
            dist.recv(one, src=ctx.group.rank(1), group=ctx.group.group)
        return grad, None, *grads


class _Receive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, group: SequenceGroup, shapes: Any) -> tuple[Tensor, ...]:
        ctx.group = group
        states = [torch.empty(shape, dtype=dtype, device=anchor.device) for shape, dtype in shapes]
        for state in states:
            dist.recv(state, src=group.rank(-1), group=group.group)
        return tuple(states)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        for grad in grads:
            dist.send(grad.contiguous(), dst=ctx.group.rank(-1), group=ctx.group.group)
        return None, None, None
