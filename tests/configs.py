"""Configs of published checkpoints as folders, for tests that need no weights."""

from __future__ import annotations

from pathlib import Path

from benchmarks.models import config_of


def write_config(name: str, folder: Path) -> str:
    """The config of this checkpoint, in a folder of its own."""
    path = folder / name.split("/")[1]
    config_of(name).save_pretrained(path)
    return str(path)
