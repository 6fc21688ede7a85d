"""Datasets: from rows on disk to :class:`~orlaif.types.VideoPrompt`.

A dataset is a sized, indexable collection of prompts, read whole and checked when it is built, before any long work
starts: a broken row is a ValueError that names file, line and field.
"""

from __future__ import annotations

import dataclasses
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from torch.utils.data import Dataset, IterableDataset, get_worker_info

from orlaif.data.rows import folder_of, join, read_rows
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
    """Rows of an adapter as they are read, never all in memory: sharded over ranks and workers, shuffled in a buffer.

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
        self.rank, self.world = 0, 1
        self.epoch = self.first_sample = 0

    def prepare(self) -> None:
        """The source's own."""
        self.source.prepare()

    def load(self) -> None:
        """Look at the first row, so that a wrong file or format is found before any long work starts."""
        for found in self.source.read():
            if isinstance(found, ValueError):
                raise found
            return
        raise ValueError(f"data file {self.source.path}: no rows")

    def problems(self) -> list[str]:
        """The source's own."""
        return self.source.problems()

    def set_epoch(self, epoch: int) -> None:
        """Another epoch is another order."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[VideoPrompt]:
        worker = get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker is not None else (1, 0)
        skip, self.first_sample = self.first_sample, 0
        if skip and workers > 1:
            raise ValueError("a stream cannot go on within an epoch with data.num_workers above 1; use 0 or 1")
        shards, own = self.world * workers, self.rank * workers + number
        mine = (prompt for place, prompt in enumerate(self._whole()) if place % shards == own)
        return islice(mine, skip, None)

    def _whole(self) -> Iterator[VideoPrompt]:
        """All rows in the epoch's order, the same on every process; an incomplete last round over ranks is left out."""
        started: list[VideoPrompt] = []
        for prompt in self._shuffled(random.Random(f"{self.seed}/{self.epoch}")):
            started.append(prompt)
            if len(started) == self.world:
                yield from started
                started = []

    def _shuffled(self, rng: random.Random) -> Iterator[VideoPrompt]:
        buffer: list[VideoPrompt] = []
        for found in self.source.read():
            if isinstance(found, ValueError):
                raise found
            if len(buffer) < self.shuffle_buffer:
                buffer.append(found)
                continue
            if not self.shuffle_buffer:
                yield found
                continue
            place = rng.randrange(len(buffer))
            found, buffer[place] = buffer[place], found
            yield found
        rng.shuffle(buffer)
        yield from buffer


class AnswerLengthCurriculum:
    """Easy questions first, as in VLM-RLAIF (Ahn et al. 2024): those with short reference answers, then the others.

    Args:
        stages: parts of equal size, shuffled each on its own; 2 are easy and hard.

    Raises:
        ValueError: fewer than 2 stages.
    """

    def __init__(self, stages: int = 2) -> None:
        if stages < 2:
            raise ValueError(f"AnswerLengthCurriculum.stages is {stages}; it must be 2 or more")
        self.stages = stages

    def order(self, dataset: PromptDataset, seed: int) -> list[int]:
        """Places of all prompts: the stages one after the other, each shuffled by ``seed``."""
        lengths = [len((dataset[i].answer or "").split()) for i in range(len(dataset))]
        places = sorted(range(len(dataset)), key=lambda i: lengths[i])  # stable: equal lengths keep the file's order
        rng = random.Random(seed)
        ends = [round(len(places) * (stage + 1) / self.stages) for stage in range(self.stages)]
        order: list[int] = []
        for start, end in zip([0, *ends], ends, strict=False):
            part = places[start:end]
            rng.shuffle(part)
            order += part
        return order
