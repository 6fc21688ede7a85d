"""Weights that are still in their files: what is read, and when."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from orlaif.distributed.deferred import Deferred, hold
from orlaif.distributed.gathering import save_one_by_one
from orlaif.policy import unread

VALUES = torch.arange(12.0, dtype=torch.bfloat16).view(6, 2)


class Counted:
    """A weight of six rows, and which of them have been read."""

    def __init__(self) -> None:
        self.read: list[tuple[int, int]] = []

    def rows(self, first: int, last: int) -> torch.Tensor:
        self.read.append((first, last))
        return VALUES[first:last]

    def weight(self) -> Deferred:
        return Deferred(self.rows, VALUES.to("meta"), torch.device("cpu"))


def test_layouts_read_nothing_and_slices_read_their_rows() -> None:
    counted = Counted()
    weight = counted.weight()
    second = weight.float().detach().clone().chunk(3, 0)[1]
    turned = weight.t()
    assert counted.read == []
    assert isinstance(second, Deferred)
    assert isinstance(turned, Deferred)
    assert (second.shape, second.dtype, second.device.type) == ((2, 2), torch.float32, "cpu")
    into = torch.zeros(2, 2)
    into.copy_(second)
    assert into.tolist() == [[4, 5], [6, 7]]
    assert second[1:].read().tolist() == [[6, 7]]
    assert counted.read == [(2, 4), (3, 4)]
    assert turned.read().tolist() == VALUES.t().tolist()


def test_stacked_and_joined_weights_read_what_their_rows_are_made_of() -> None:
    parts = [Counted() for _ in range(3)]
    weights = [part.weight() for part in parts]
    experts, wide, long = torch.stack(weights), torch.cat(weights, 1), torch.cat(weights)
    assert experts[1:2].read().tolist() == [VALUES.tolist()]
    assert [part.read for part in parts] == [[], [(0, 6)], []]
    assert wide[5:].read().tolist() == [[10, 11] * 3]
    assert long[5:8].read().tolist() == [[10, 11], [0, 1], [2, 3]]
    assert parts[0].read == [(5, 6), (5, 6)]
    assert experts.transpose(1, 2)[2:].read().tolist() == [VALUES.t().tolist()]
    assert parts[0].read == [(5, 6), (5, 6)]


def test_a_layer_runs_and_goes_backward_on_what_it_reads_each_time() -> None:
    counted, layer = Counted(), nn.Linear(2, 6, bias=False)
    layer.weight = nn.Parameter(counted.weight().float())
    counted.read.clear()
    given = torch.tensor([[1.0, 2.0]], requires_grad=True)
    made = layer(given)
    assert made.tolist() == [[2, 8, 14, 20, 26, 32]]
    made.sum().backward()
    assert given.grad is not None
    assert given.grad.tolist() == [[30, 36]]
    assert counted.read == [(0, 6)] * 2
    assert layer.weight.grad is not None
    assert layer.weight.grad.tolist() == [[1, 2]] * 6


def test_an_embedding_reads_the_rows_of_its_tokens() -> None:
    counted = Counted()
    embedded = nn.functional.embedding(torch.tensor([[5, 1], [1, 5]]), counted.weight().float())
    assert embedded.tolist() == [[[10, 11], [2, 3]], [[2, 3], [10, 11]]]
    assert counted.read == [(1, 2), (5, 6)]


def test_what_would_change_a_file_is_refused_and_what_is_held_is_no_file_any_more() -> None:
    counted, layer = Counted(), nn.Linear(2, 6, bias=False)
    layer.weight = nn.Parameter(counted.weight(), requires_grad=False)
    layer.also = layer.weight
    with pytest.raises(RuntimeError, match="still in its file; call hold"):
        layer.weight.zero_()
    copied: Any = copy.deepcopy(layer)
    hold(layer)
    with torch.no_grad():
        layer.weight.zero_()
    assert layer.also is layer.weight
    assert isinstance(copied.weight, Deferred)
    assert copied.weight.read().tolist() == VALUES.tolist()
    assert not copied.weight.requires_grad


def test_a_file_is_written_as_safetensors_reads_it(tmp_path: Path) -> None:
    counted = Counted()
    tensors = {"b": counted.weight(), "a": torch.tensor([True, False, True]), "c": torch.tensor(2.5).double()}
    save_one_by_one(tensors, tmp_path / "x.safetensors", {"format": "pt"})
    found = load_file(tmp_path / "x.safetensors")
    assert {name: (value.dtype, value.tolist()) for name, value in found.items()} == {
        "a": (torch.bool, [True, False, True]),
        "b": (torch.bfloat16, VALUES.tolist()),
        "c": (torch.float64, 2.5),
    }
    assert counted.read == [(0, 6)]


def test_a_files_weights_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    save_file({"weight": VALUES, "number": torch.tensor(3.0)}, tmp_path / "model.safetensors")
    file = unread._File(tmp_path / "model.safetensors", framework="pt")
    with file:
        weight, number = file.get_slice("weight")[...], file.get_slice("number")[...]
    assert number.tolist() == 3.0
    assert isinstance(weight, Deferred)
    (tmp_path / "model.safetensors").rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError):
        weight.read()
    (tmp_path / "away").rename(tmp_path / "model.safetensors")
    assert weight[4:].read().tolist() == [[8, 9], [10, 11]]
