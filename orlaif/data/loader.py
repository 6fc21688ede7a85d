"""Loaders that decode ahead of the step, in order, within bounded memory.

Decoding runs on threads of this process (torchcodec and torch release the GIL), so that frames never cross a pipe and a
GPU's decoder can be used. ``ahead`` batches are under way or waiting while the model works on the one before.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from orlaif.distributed.sync import exchange, raise_together
from orlaif.stages import stage
from orlaif.types import Delivers, Delivery, Prompt


class Sealed:
    """A batch on its way from a loader to the DataModule's transfer hook, which opens it.

    Lightning's precision plugins rebuild every collection that they are given, field by field, and refuse frozen
    dataclasses; an object that they do not know passes. Casting pixels is the model's business.

    Attributes:
        content: the delivery, or what went wrong with it: raised when it is opened, where all processes can be told.
        wait_s: seconds that the consumer waited for it.
        following: what comes behind it, where the stage looks ahead.
    """

    def __init__(self, content: Delivery | Exception) -> None:
        self.content = content
        self.wait_s = 0.0
        self.following: tuple[Sealed, ...] = ()

    def open(self) -> Delivery:
        """The delivery, about to be used; raises what went wrong with it."""
        if isinstance(self.content, Exception):
            raise self.content
        following = tuple(one.content.batch if isinstance(one.content, Delivery) else None for one in self.following)
        return replace(self.content, wait_s=self.wait_s, following=following)


class SealingCollator:
    """A collator whose batches travel :class:`Sealed`."""

    def __init__(self, collator: Delivers) -> None:
        self.collator = collator

    def __call__(self, prompts: Sequence[Prompt | None]) -> Sealed:
        """Collate and seal; what :class:`NothingLeft` gives is no prompt."""
        try:
            return Sealed(self.collator([prompt for prompt in prompts if prompt is not None]))
        except Exception as error:
            return Sealed(error)


class NothingLeft(Dataset[None]):
    """For an evaluation all of whose questions are left out: empty batches, since Lightning ends without a last hook
    where there is no batch at all.

    Args:
        num_processes: each of which is given one.
    """

    def __init__(self, num_processes: int) -> None:
        self.num_processes = num_processes

    def __len__(self) -> int:
        return self.num_processes

    def __getitem__(self, index: int) -> None:
        """None in place of a prompt, from which an empty batch is made."""


def prefetched(
    prompts: Iterable[Sequence[Prompt]], collate: Callable[[Sequence[Prompt]], Sealed], ahead: int
) -> Iterator[Sealed]:
    """Collated batches in order, ``ahead`` of them under way; an error is raised where its batch would have come.

    Args:
        prompts: the prompts of each batch.
        collate: runs on threads.
        ahead: batches in work or waiting besides the one that the consumer has; 0 collates on demand.
    """
    if not ahead:
        yield from map(collate, prompts)
        return
    pending: deque[Future[Sealed]] = deque()
    pool = ThreadPoolExecutor(max_workers=ahead, thread_name_prefix="orlaif-data", initializer=_one_thread)
    try:
        for one in prompts:
            pending.append(pool.submit(collate, one))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:  # also where the consumer stops early, or is interrupted
        pool.shutdown(wait=True, cancel_futures=True)


def _one_thread() -> None:
    """A team of OpenMP threads for each loading thread would fight the model's for the cores."""
    torch.set_num_threads(1)


class PrefetchLoader(DataLoader):
    """A DataLoader that prepares ``ahead`` batches on threads where it has no worker processes.

    Args:
        args: of DataLoader.
        ahead: see :func:`prefetched`.
        kwargs: of DataLoader.
    """

    batch_size: int

    def __init__(self, *args: Any, ahead: int = 2, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ahead = ahead

    def _prompts(self) -> Iterator[list[Prompt]]:
        """The prompts of each batch, read as they are needed."""
        if not isinstance(self.dataset, IterableDataset):
            for places in self.batch_sampler:  # type: ignore[union-attr]
                yield [self.dataset[place] for place in places]
            return
        batch: list[Prompt] = []
        for prompt in self.dataset:
            batch.append(prompt)
            if len(batch) == self.batch_size:
                yield batch
                batch = []
        if batch and not self.drop_last:
            yield batch

    def __iter__(self) -> Any:
        collate: Any = self.collate_fn
        source = super().__iter__() if self.num_workers else prefetched(self._prompts(), collate, self.ahead)
        while True:
            start = time.perf_counter()
            try:
                with stage("data"):
                    sealed = next(source)
            except StopIteration:
                return
            sealed.wait_s = time.perf_counter() - start
            yield sealed


def in_step(source: Iterator[Sealed]) -> Iterator[Sealed]:
    """The batches of ``source`` as long as every process has one; raises on all what went wrong on any."""
    while True:
        sealed, error = None, None
        try:
            sealed = next(source, None)
        except Exception as problem:
            error = problem
        raise_together(error)
        if not all(exchange(sealed is not None)):
            return
        assert sealed is not None
        yield sealed


def followed(source: Iterator[Sealed], number: int) -> Iterator[Sealed]:
    """The batches of ``source``, each with up to ``number`` that come behind it."""
    window: deque[Sealed] = deque()
    for sealed in source:
        window.append(sealed)
        if len(window) > number:
            first = window.popleft()
            first.following = tuple(window)
            yield first
    while window:
        first = window.popleft()
        first.following = tuple(window)
        yield first
