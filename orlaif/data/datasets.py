"""Datasets: from rows on disk to :class:`~orlaif.types.VideoPrompt`.

A dataset is a sized, indexable collection of prompts, read whole and checked when it is built, before any long work
starts: a broken row is a ValueError that names file, line and field.
"""

from __future__ import annotations

import dataclasses
import json
import os
from abc import ABC, abstractmethod
from typing import Any

from torch.utils.data import Dataset

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
    values = {**row, "video": os.path.join(video_root, row["video"])}
    if row.get("options") is not None:
        values["options"] = tuple(row["options"])
    try:
        return VideoPrompt(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


class JsonlDataset(PromptDataset):
    """The project's own format: one JSON object a line, keys as the fields of :class:`~orlaif.types.VideoPrompt`.

    Args:
        path: the ``.jsonl`` file.
        video_root: folder for relative ``video`` paths; by default the folder of ``path``.

    Raises:
        ValueError: on :meth:`load`, for a missing or empty file, broken JSON, an unknown, missing or empty field, or an
            id used twice.
    """

    def __init__(self, path: str, video_root: str | None = None) -> None:
        self.path = path
        self.video_root = video_root
        self._prompts: list[VideoPrompt] | None = None

    def parse(self, row: Any, where: str, video_root: str) -> VideoPrompt:
        """One row as a prompt; other formats say it differently.

        Args:
            row: the parsed JSON value.
            where: file and line, for errors.
            video_root: folder that a relative video is resolved against.

        Raises:
            ValueError: naming ``where`` and the field.
        """
        return parse_row(row, where, video_root)

    def load(self) -> None:
        """Read and check the whole file."""
        if not os.path.isfile(self.path):
            raise ValueError(f"data file {self.path}: no such file")
        root = os.path.dirname(self.path) if self.video_root is None else self.video_root
        prompts: list[VideoPrompt] = []
        lines: dict[str, int] = {}
        with open(self.path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                where = f"{self.path}, line {number}"
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"{where}: not valid JSON ({error})") from error
                prompt = self.parse(row, where, root)
                if prompt.id in lines:
                    raise ValueError(f"{where}: id {prompt.id!r} was used before, on line {lines[prompt.id]}")
                lines[prompt.id] = number
                prompts.append(prompt)
        if not prompts:
            raise ValueError(f"data file {self.path}: no rows")
        self._prompts = prompts

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
