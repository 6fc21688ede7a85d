"""Loading a model by transformers without reading it: its weights stay in the checkpoint's files until they are asked.

Transformers finds the files (also of a hub id, in the hub's cache), renames, fuses and ties their weights, makes what
they do not hold and computes buffers, as ever. Only where it opens a file, it is given weights that are read later
(``orlaif.distributed.deferred``). A file is opened for each reading and closed behind it, so that no page of it stays
in this process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn
from transformers import modeling_utils

from orlaif.distributed.deferred import Deferred, Rows
from orlaif.distributed.gathering import save_one_by_one


class _Slice:
    """A weight in a file, as ``safe_open(...).get_slice`` gives it."""

    def __init__(self, path: str, name: str, there: Any) -> None:
        self._path, self._name, self._there = path, name, there

    def __getattr__(self, name: str) -> Any:
        return getattr(self._there, name)

    def __getitem__(self, index: Any) -> Tensor:
        shape = self._there.get_shape()
        if index is not Ellipsis or not shape:
            return self._there[index]
        like = self._there[0:0].to("meta").new_empty(shape)
        return Deferred(_rows_in(self._path, self._name), like, self._there[0:0].device)


class _File:
    """A file of weights, as ``safe_open`` gives it."""

    def __init__(self, path: Any, **options: Any) -> None:
        self._path, self._file = str(path), safe_open(path, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _File:
        self._file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.__exit__(*error)

    def get_slice(self, name: str) -> _Slice:
        """One of its weights."""
        return _Slice(self._path, name, self._file.get_slice(name))


def _rows_in(path: str, name: str) -> Rows:
    def rows(first: int, last: int) -> Tensor:
        with safe_open(path, framework="pt", device="cpu") as file:
            return file.get_slice(name)[first:last]

    return rows


def held(model: nn.Module) -> list[str]:
    """Names of the weights of a model that are not in files any more."""
    return [name for name, p in model.named_parameters() if p.ndim and not isinstance(p, Deferred)]


@contextmanager
def written_one_by_one() -> Iterator[None]:
    """Within, ``save_pretrained`` of transformers and PEFT reads a weight when it is its turn to be written."""
    from peft import peft_model

    writers: list[Any] = [modeling_utils, peft_model]
    before = [one.safe_save_file for one in writers]
    for one in writers:
        one.safe_save_file = save_one_by_one
    try:
        yield
    finally:
        for one, save in zip(writers, before, strict=True):
            one.safe_save_file = save


@contextmanager
def unread() -> Iterator[None]:
    """Within, ``from_pretrained`` gives weights that are still in their files, where these are safetensors."""
    there: Any = modeling_utils
    opened, there.safe_open = there.safe_open, _File
    try:
        yield
    finally:
        there.safe_open = opened
