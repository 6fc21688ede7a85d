"""Whole weights of a sharded model, one at a time: what process 0 writes, the others help to gather.

Process 0 is given a state dict of weights that are gathered when they are read (``orlaif.distributed.deferred``), and
hands it to whoever writes. The other processes wait to be told which weight is next. So no process ever holds more
than one whole weight besides its shards.

Source: the safetensors format, https://github.com/huggingface/safetensors (a header in JSON, then the values).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from orlaif.distributed.deferred import Deferred, Rows
from orlaif.distributed.sync import process_index

#: Names of dtypes in a header.
_NAMES = {
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"},
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8"},
    **{torch.bool: "BOOL", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2"},
}
#: Told instead of a weight's number: there is no further one.
_END = -1


def whole(weight: DTensor) -> Tensor:
    """All of a sharded weight, on the CPU; all processes must call."""
    device = weight.device_mesh.device_type
    local = weight.to_local()
    if local.device.type != device:  # offloaded, and what gathers works on the device
        weight = DTensor.from_local(
            local.to(device), weight.device_mesh, weight.placements, shape=weight.shape, stride=weight.stride()
        )
    return weight.full_tensor().cpu()


@torch.no_grad()
def with_whole_weights(model: nn.Module, write: Callable[[dict[str, Tensor]], None]) -> None:
    """Call ``write`` on process 0 with a state dict of whole weights; all processes must call this.

    Args:
        model: sharded.
        write: is given names and values, tied ones under both names as one tensor; sharded ones are gathered each time
            that they are read.

    Raises:
        Exception: on process 0, what ``write`` raises.
    """
    state = {name: value.detach() for name, value in model.state_dict(keep_vars=True).items()}
    sharded = {name: value for name, value in state.items() if isinstance(value, DTensor)}
    weights = list(sharded.values())
    if process_index() > 0:
        while (number := _told(_END)) != _END:
            whole(weights[number])
        return
    first: dict[int, str] = {}
    same = {name: first.setdefault(id(p), name) for name, p in model.named_parameters(remove_duplicate=False)}
    given: dict[str, Tensor] = {}
    for name, value in state.items():
        if (other := same.get(name, name)) in given:
            given[name] = given[other]
        elif name in sharded:
            like = torch.empty(value.shape, dtype=value.dtype, device="meta")
            given[name] = Deferred(_gathered(weights, list(sharded).index(name)), like, torch.device("cpu"))
        else:
            given[name] = value.cpu()
    try:
        write(given)
    finally:
        _told(_END)


def _told(number: int) -> int:
    """The number that process 0 calls this with."""
    told = [number]
    dist.broadcast_object_list(told)
    return told[0]


def _gathered(weights: list[DTensor], number: int) -> Rows:
    def rows(first: int, last: int) -> Tensor:
        _told(number)
        made = whole(weights[number])
        return made[first:last] if made.ndim else made

    return rows


def save_one_by_one(tensors: Mapping[str, Tensor], path: str | os.PathLike[str], metadata: Any = None) -> None:
    """As ``safetensors.torch.save_file``, with no more than one tensor in memory that has to be read first.

    Args:
        tensors: by name.
        path: of the file.
        metadata: strings by name.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # so that all begin aligned
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        tensor, begin = tensors[name], end
        end += tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    words = json.dumps(header, separators=(",", ":")).encode()
    words += b" " * (-len(words) % 8)
    with open(path, "wb") as file:
        file.write(len(words).to_bytes(8, "little") + words)
        for name in names:
            value = tensors[name].detach()
            value = value.read() if isinstance(value, Deferred) else value.cpu()
            value.contiguous().view(-1).view(torch.uint8).numpy().tofile(file)
            del value
