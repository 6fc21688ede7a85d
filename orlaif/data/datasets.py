"""Datasets: from rows on disk to :class:`~orlaif.types.Prompt`.

A dataset is a sized, indexable collection of prompts, read whole and checked when it is built, before any long work
starts: a broken row is a ValueError that names file, line and field.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset, IterableDataset

from orlaif.data.curriculum import AnswerLengthCurriculum
from orlaif.data.fields import parse_row
from orlaif.data.prompts import HeldPrompts, PromptDataset
from orlaif.data.rows import Row, folder_of, read_rows
from orlaif.data.share import Share, StreamedRows, fingerprint
from orlaif.stages import stage
from orlaif.types import Prompt


class RowDataset(HeldPrompts):
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
        #: Where the prompts stand that have been read, by their ids.
        self.places: dict[str, str] = {}

    def parse(self, row: Any, where: str, video_root: str) -> Prompt:
        """One row as a prompt.

        Args:
            row: the parsed value.
            where: file and line, for errors.
            video_root: folder that a relative video is resolved against.

        Raises:
            ValueError: naming ``where`` and the field.
        """
        raise NotImplementedError

    def parse_all(self, row: Any, where: str, video_root: str) -> Iterable[Prompt]:
        """One row as prompts; by default one, by :meth:`parse`."""
        yield self.parse(row, where, video_root)

    def located(self) -> Iterator[Row]:
        """Where each row stands, and what :meth:`parse_all` is given of it, or the ValueError that it is."""
        yield from read_rows(self.path)

    def read(self) -> Iterator[Prompt | ValueError]:
        """Prompts and what is wrong with the others, in order; a file that cannot be read at all raises ValueError."""
        root = folder_of(self.path) if self.video_root is None else self.video_root
        places = self.places = {}
        for where, row in self.located():
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
                    yield ValueError(
                        f"{where}: id {prompt.id!r} was used before, on {places[prompt.id].rsplit(', ', 1)[-1]}"
                    )
                    continue
                places[prompt.id] = where
                yield prompt

    def where(self, prompt: Prompt) -> str:
        """File and line, or row, of a prompt that has been read."""
        return self.places.get(prompt.id) or super().where(prompt)

    def rows(self) -> Iterator[Prompt | ValueError]:
        """As :meth:`read`; prompts that spell what is forbidden are wrong as well."""
        for row in self.read():
            yield row if isinstance(row, ValueError) else self.checked(row)

    def check_texts(self) -> None:
        """Nothing: rows are checked as they are read."""

    def load(self) -> None:
        """Read and check the whole file."""
        prompts: list[Prompt] = []
        with stage(f"reading {Path(self.path).name}", unit="rows") as reading:
            for row in self.rows():
                if isinstance(row, ValueError):
                    raise row
                prompts.append(row)
                reading.advance()
        if not prompts:
            raise ValueError(f"data file {self.path}: no rows")
        self._prompts = prompts

    def problems(self) -> list[str]:
        """Every broken row, a line each; the others stay, so that they can be looked at."""
        broken: list[str] = []
        prompts: list[Prompt] = []
        try:
            with stage(f"reading {Path(self.path).name}", unit="rows") as reading:
                for one in self.rows():
                    reading.advance()
                    if isinstance(one, ValueError):
                        broken.append(str(one))
                    else:
                        prompts.append(one)
        except ValueError as error:
            broken.append(str(error))
        if not prompts and not broken:
            broken.append(f"data file {self.path}: no rows")
        self._prompts = prompts
        return broken

    def readable(self) -> list[Prompt]:
        """Those that were read, without the broken ones."""
        return list(self._prompts or ())


class JsonlDataset(RowDataset):
    """The project's own format: keys as the fields of :class:`~orlaif.types.Prompt`, as JSONL, JSON or Parquet."""

    def parse(self, row: Any, where: str, video_root: str) -> Prompt:
        """One row as a prompt, by :func:`~orlaif.data.fields.parse_row`."""
        return parse_row(row, where, video_root)


class StreamingDataset(IterableDataset[Prompt]):
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
        """Prepare the source, such as by a look at its files."""
        self.source.prepare()

    def load(self) -> None:
        """Look at the first row, so that a wrong file or format is named before any long work starts."""
        next(self.in_order(), None)

    def problems(self) -> list[str]:
        """What is wrong with the source, a line each."""
        return self.source.problems()

    def readable(self) -> list[Prompt]:
        """After :meth:`problems`, all of the source's prompts that are not broken, in memory."""
        return self.source.readable()

    def where(self, prompt: Prompt) -> str:
        """Where the source has this prompt from: file and line, or row."""
        return self.source.where(prompt)

    def forbid(self, texts: frozenset[str]) -> None:
        """As for the source, whose rows are checked as they are read."""
        self.source.forbid(texts)

    def check_texts(self) -> None:
        """Nothing: rows are checked as they are read."""

    @property
    def num_rows(self) -> int | None:
        """None: the length of a stream is unknown."""
        return None

    def indexed(self, what: str) -> PromptDataset:
        """Refused: a stream has no rows by number."""
        raise ValueError(f"data.{what} is a stream; only data.train may be one")

    def fingerprint(self) -> str:
        """Of the first 100 rows: the whole is not read before it is used."""
        return f"a stream that begins with {fingerprint(islice(self.in_order(), 100))}"

    def epoch(
        self, number: int, seed: int, share: Share, fixed: bool, curriculum: AnswerLengthCurriculum | None
    ) -> Dataset[Prompt]:
        """As of :meth:`PromptDataset.epoch`; a stream has a seed already, and cannot follow a curriculum."""
        return StreamedRows(self.in_order if fixed else partial(self.shuffled, number), share)

    def __iter__(self) -> Iterator[Prompt]:
        return self.shuffled(0)

    def in_order(self) -> Iterator[Prompt]:
        """All rows as they lie in the file; raises ValueError at a broken one, or if there is none."""
        empty = True
        for row in self.source.rows():
            empty = False
            if isinstance(row, ValueError):
                raise row
            yield row
        if empty:
            raise ValueError(f"data file {self.source.path}: no rows")

    def shuffled(self, epoch: int) -> Iterator[Prompt]:
        """All rows in the order of an epoch, the same on every process."""
        rng = random.Random(f"{self.seed}/{epoch}")
        buffer: list[Prompt] = []
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
