"""Datasets: from rows on disk to :class:`~orlaif.types.VideoPrompt`.

A dataset is a sized, indexable collection of prompts, read whole and checked when it is built, before any long work
starts: a broken row is a ValueError that names file, line and field.
"""

from __future__ import annotations

import dataclasses
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset, Subset

from orlaif.data.curriculum import AnswerLengthCurriculum
from orlaif.data.rows import folder_of, join, read_rows
from orlaif.data.share import Share, StreamedRows, fingerprint
from orlaif.types import VideoPrompt

_FIELDS = {f.name: f for f in dataclasses.fields(VideoPrompt)}
_REQUIRED = ("id", "video", "question")


class PromptDataset(Dataset[VideoPrompt], ABC):
    """A dataset that a recipe names by ``class_path``."""

    def prepare(self) -> None:
        """Write what must be on disk before :meth:`load`; called once, on one process."""

    @abstractmethod
    def load(self) -> None:
        """Read and check all rows; called on every process, after :meth:`prepare`. May be called again."""

    def problems(self) -> list[str]:
        """What is wrong with the rows, a line each; empty where :meth:`load` succeeds."""
        try:
            self.load()
        except ValueError as error:
            return [str(error)]
        return []

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> VideoPrompt: ...

    @property
    def num_rows(self) -> int | None:
        """How many there are; None for a stream, which does not know."""
        return len(self)

    def all_rows(self) -> list[VideoPrompt]:
        """All of them at once."""
        return [self[i] for i in range(len(self))]

    def indexed(self, what: str) -> PromptDataset:
        """This, for a use that needs rows by number; a stream raises a ValueError that names ``what``."""
        return self

    def fingerprint(self) -> str:
        """How many rows, and a hash of what they say; the same wherever the files lie."""
        return fingerprint(self[i] for i in range(len(self)))

    def epoch(
        self, number: int, seed: int, share: Share, fixed: bool, curriculum: AnswerLengthCurriculum | None
    ) -> Dataset[VideoPrompt]:
        """The rows of one process in one epoch, in order.

        Args:
            number: of the epoch.
            seed: of the order.
            share: of this process.
            fixed: the file's order in every epoch.
            curriculum: orders the rows, if given; else all are shuffled.
        """
        if fixed:
            order = list(range(len(self)))
        elif curriculum is not None:
            order = curriculum.order(self, seed + number)
        else:  # as torch's DistributedSampler does
            order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed + number)).tolist()
        return Subset(self, share.of(order))


def _field_error(name: str, value: Any) -> str | None:
    if value is None:
        return f"field {name!r} is missing or null" if name in _REQUIRED else None
    if name in ("start_s", "end_s"):
        good = isinstance(value, (int, float)) and not isinstance(value, bool)
        return None if good else f"field {name!r} is {value!r}; it must be a number of seconds"
    if name == "frames_fps":
        return None if type(value) in (int, float) else f"field {name!r} is {value!r}; it must be a number per second"
    if name == "frames":
        good = isinstance(value, list) and all(isinstance(v, str) and v.strip() for v in value)
        return None if good else f"field {name!r} is {value!r}; it must be a list of paths"
    if name == "history":
        good = isinstance(value, list) and all(
            isinstance(turn, list) and len(turn) == 2 and all(isinstance(text, str) for text in turn) for turn in value
        )
        return None if good else f"field {name!r} is {value!r}; it must be a list of [question, answer]"
    if name == "tags":
        good = isinstance(value, dict) and all(isinstance(v, str) for v in value.values())
        return None if good else f"field {name!r} is {value!r}; it must be an object of texts"
    if name == "options":
        good = isinstance(value, list) and len(value) >= 2 and all(isinstance(v, str) and v.strip() for v in value)
        return None if good else f"field 'options' is {value!r}; it must be a list of 2 or more texts"
    if not isinstance(value, str) or not value.strip():
        return f"field {name!r} is {value!r}; it must be a text that is not empty"
    return None


def parse_row(row: Any, where: str, video_root: str) -> VideoPrompt:
    """One row of the project's own JSONL as a prompt.

    Args:
        row: the parsed JSON value; keys as the fields of :class:`~orlaif.types.VideoPrompt`.
        where: file and line, for errors.
        video_root: folder that a relative ``video`` is resolved against.

    Raises:
        ValueError: naming ``where`` and the field.
    """
    if not isinstance(row, dict):
        raise ValueError(f"{where}: a row must be a JSON object, found {type(row).__name__}")
    if unknown := sorted(set(row) - set(_FIELDS)):
        raise ValueError(f"{where}: unknown field {unknown[0]!r}; known are {', '.join(_FIELDS)}")
    for name in _FIELDS:
        if problem := _field_error(name, row.get(name)):
            raise ValueError(f"{where}: {problem}")
    values = {name: value for name, value in row.items() if value is not None}
    values["video"] = join(video_root, row["video"])
    if "frames" in values:
        values["frames"] = tuple(join(video_root, frame) for frame in values["frames"])
    if "options" in values:
        values["options"] = tuple(values["options"])
    if "history" in values:
        values["history"] = tuple((question, answer) for question, answer in values["history"])
    try:
        return VideoPrompt(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


class RowDataset(PromptDataset):
    """A file of rows, each of which says one or more prompts; adapters say how.

    Args:
        path: a JSONL, JSON or Parquet file, or a URL of one that fsspec knows.
        video_root: folder for relative paths of videos; by default the folder of ``path``.

    Raises:
        ValueError: on :meth:`load`, for a missing, unreadable or empty file, a broken row, or an id used twice.
    """

    def __init__(self, path: str, video_root: str | None = None) -> None:
        self.path = path
        self.video_root = video_root
        self._prompts: list[VideoPrompt] | None = None

    def parse(self, row: Any, where: str, video_root: str) -> VideoPrompt:
        """One row as a prompt.

        Args:
            row: the parsed value.
            where: file and line, for errors.
            video_root: folder that a relative video is resolved against.

        Raises:
            ValueError: naming ``where`` and the field.
        """
        raise NotImplementedError

    def parse_all(self, row: Any, where: str, video_root: str) -> Iterable[VideoPrompt]:
        """One row as prompts; by default one, by :meth:`parse`."""
        yield self.parse(row, where, video_root)

    def read(self) -> Iterator[VideoPrompt | ValueError]:
        """Prompts and what is wrong with the others, in order; a file that cannot be read at all raises ValueError."""
        root = folder_of(self.path) if self.video_root is None else self.video_root
        places: dict[str, str] = {}
        for where, row in read_rows(self.path):
            if isinstance(row, ValueError):
                yield row
                continue
            try:
                prompts = list(self.parse_all(row, where, root))
            except ValueError as error:
                yield error
                continue
            for prompt in prompts:
                if prompt.id in places:
                    yield ValueError(f"{where}: id {prompt.id!r} was used before, on {places[prompt.id]}")
                    continue
                places[prompt.id] = where.rsplit(", ", 1)[-1]
                yield prompt

    def load(self) -> None:
        """Read and check the whole file."""
        prompts: list[VideoPrompt] = []
        for found in self.read():
            if isinstance(found, ValueError):
                raise found
            prompts.append(found)
        if not prompts:
            raise ValueError(f"data file {self.path}: no rows")
        self._prompts = prompts

    def problems(self) -> list[str]:
        """Every broken row, a line each; the others stay, so that they can be looked at."""
        found: list[str] = []
        prompts: list[VideoPrompt] = []
        try:
            for one in self.read():
                if isinstance(one, ValueError):
                    found.append(str(one))
                else:
                    prompts.append(one)
        except ValueError as error:
            found.append(str(error))
        if not prompts and not found:
            found.append(f"data file {self.path}: no rows")
        self._prompts = prompts
        return found

    @property
    def prompts(self) -> list[VideoPrompt]:
        """All prompts, loaded on first use."""
        if self._prompts is None:
            self.load()
        assert self._prompts is not None
        return self._prompts

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> VideoPrompt:
        return self.prompts[index]


class JsonlDataset(RowDataset):
    """The project's own format: keys as the fields of :class:`~orlaif.types.VideoPrompt`, as JSONL, JSON or Parquet."""

    def parse(self, row: Any, where: str, video_root: str) -> VideoPrompt:
        """See :meth:`RowDataset.parse`."""
        return parse_row(row, where, video_root)


class StreamingDataset(IterableDataset[VideoPrompt]):
    """Rows of an adapter as they are read, never all in memory: dealt out to processes, shuffled in a buffer.

    The order is a function of (seed, epoch). To go on within an epoch, the rows before are read again but not decoded.

    Args:
        source: an adapter; its file may be large, or a ``datasets://`` source.
        shuffle_buffer: rows among which the next one is drawn; 0 keeps the order of the file.
        seed: of the order.

    Raises:
        ValueError: a negative buffer; while reading, a broken row.
    """

    def __init__(self, source: RowDataset, shuffle_buffer: int = 1000, seed: int = 0) -> None:
        if shuffle_buffer < 0:
            raise ValueError(f"StreamingDataset.shuffle_buffer is {shuffle_buffer}; it must be 0 or more rows")
        self.source, self.shuffle_buffer, self.seed = source, shuffle_buffer, seed

    def prepare(self) -> None:
        """As the source does."""
        self.source.prepare()

    def load(self) -> None:
        """Look at the first row, so that a wrong file or format is named before any long work starts."""
        next(self.in_order(), None)

    def problems(self) -> list[str]:
        """As the source does."""
        return self.source.problems()

    @property
    def num_rows(self) -> int | None:
        """Unknown."""
        return None

    def all_rows(self) -> list[VideoPrompt]:
        """All of them at once, which a run never does."""
        return self.source.prompts

    def indexed(self, what: str) -> PromptDataset:
        """Refused: a stream has no rows by number."""
        raise ValueError(f"data.{what} is a stream; only data.train may be one")

    def fingerprint(self) -> str:
        """Of the first 100 rows: the whole is not read before it is used."""
        return f"a stream that begins with {fingerprint(islice(self.in_order(), 100))}"

    def epoch(
        self, number: int, seed: int, share: Share, fixed: bool, curriculum: AnswerLengthCurriculum | None
    ) -> Dataset[VideoPrompt]:
        """As of :meth:`PromptDataset.epoch`; a stream has its own seed, and cannot follow a curriculum."""
        return StreamedRows(self.in_order if fixed else partial(self.shuffled, number), share)

    def __iter__(self) -> Iterator[VideoPrompt]:
        return self.shuffled(0)

    def in_order(self) -> Iterator[VideoPrompt]:
        """All rows as they lie in the file; raises ValueError at a broken one, or if there is none."""
        empty = True
        for row in self.source.read():
            empty = False
            if isinstance(row, ValueError):
                raise row
            yield row
        if empty:
            raise ValueError(f"data file {self.source.path}: no rows")

    def shuffled(self, epoch: int) -> Iterator[VideoPrompt]:
        """All rows in the order of an epoch, the same on every process."""
        rng = random.Random(f"{self.seed}/{epoch}")
        buffer: list[VideoPrompt] = []
        for row in self.in_order():
            if len(buffer) < self.shuffle_buffer:
                buffer.append(row)
            elif not self.shuffle_buffer:
                yield row
            else:
                place = rng.randrange(len(buffer))
                drawn, buffer[place] = buffer[place], row
                yield drawn
        rng.shuffle(buffer)
        yield from buffer
