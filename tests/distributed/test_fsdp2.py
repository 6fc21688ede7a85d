"""Checkpoints on disk: complete, or not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from orlaif.distributed.checkpoint_io import (
    SafeCheckpointIO,
    clear_unfinished,
    discard,
    is_sharded_checkpoint,
    unfinished,
)
from orlaif.distributed.sync import check_same, flattened, raise_together


def test_a_file_is_written_beside_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    io, path = SafeCheckpointIO(), tmp_path / "a" / "x.ckpt"
    io.save_checkpoint({"step": 1}, path)
    assert io.load_checkpoint(path) == {"step": 1}

    def dies(checkpoint: object, place: Path) -> None:
        place.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        io.save_checkpoint({"step": 2}, path)
    assert io.load_checkpoint(path) == {"step": 1}
    clear_unfinished(path.parent)
    assert [p.name for p in path.parent.iterdir()] == ["x.ckpt"]
    io.remove_checkpoint(path)
    assert not path.exists()


def test_a_folder_that_was_about_to_be_replaced_gets_its_name_back(tmp_path: Path) -> None:
    """Killed between taking the old one away and putting the new one there."""
    old = tmp_path / "x.ckpt.old.unfinished"
    old.mkdir()
    (old / "meta.pt").touch()
    unfinished(tmp_path / "x.ckpt").mkdir()
    clear_unfinished(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["x.ckpt"]
    assert (tmp_path / "x.ckpt" / "meta.pt").exists()
    assert not is_sharded_checkpoint(tmp_path / "x.ckpt")  # no index of its parts
    with pytest.raises(ValueError, match=r"x.ckpt is a folder, but not one of a sharded run"):
        SafeCheckpointIO().load_checkpoint(tmp_path / "x.ckpt")
    discard(tmp_path / "x.ckpt")
    assert not list(tmp_path.iterdir())


def test_urls_are_left_to_fsspec() -> None:
    io, url = SafeCheckpointIO(), "memory://orlaif/x.ckpt"
    io.save_checkpoint({"step": 3}, url)
    assert io.load_checkpoint(url) == {"step": 3}
    io.remove_checkpoint(url)
    with pytest.raises(FileNotFoundError):
        io.load_checkpoint(url)


def test_one_process_agrees_with_itself() -> None:
    raise_together(None)
    check_same("recipe", {"a": 1})
    with pytest.raises(KeyError, match="broken"):
        raise_together(KeyError("broken"))
    assert flattened({"a": {"b": 1, "c": [2, {"d": 3}]}, "e": None}) == {
        "a.b": "1",
        "a.c": "[2, {'d': 3}]",
        "e": "None",
    }
