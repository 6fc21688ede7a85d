"""Checkpoints that survive being killed: complete under their name, or not there.

A checkpoint of a sharded run is a folder, of which each process writes its part (torch.distributed.checkpoint); one
of a single process or of DDP is a file. Both appear under their name only when they are complete, and each can be read
by the other, on any number of processes (``orlaif.distributed.fsdp2`` writes and reads folders).
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from orlaif.stages import stage

#: Of a sharded checkpoint: what is not weights or optimizer (Lightning's name).
REST = "meta.pt"
#: A checkpoint that is being written or deleted.
UNFINISHED = ".unfinished"
_OLD = f".old{UNFINISHED}"


def unfinished(path: str | os.PathLike[str]) -> Path:
    """The name that a checkpoint has before it is complete."""
    return Path(f"{path}{UNFINISHED}")


def publish(path: Path) -> None:
    """Give a complete checkpoint its name; what had that name before is gone."""
    old = Path(f"{path}{_OLD}")
    if path.is_dir():  # which cannot be replaced in one step
        path.rename(old)
    unfinished(path).replace(path)
    sync_to_disk(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def clear_unfinished(folder: Path) -> None:
    """Delete what a killed process left half written; a checkpoint that was about to be replaced gets its name back."""
    for path in folder.glob(f"*{_OLD}"):
        if not (name := Path(str(path)[: -len(_OLD)])).exists():
            path.rename(name)
    for path in folder.glob(f"*{UNFINISHED}"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def discard(path: Path) -> None:
    """Delete a checkpoint; one that is half deleted does not look like one."""
    if path.is_dir():
        path.replace(unfinished(path))
        shutil.rmtree(unfinished(path), ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync_to_disk(path: Path) -> None:
    """Have the system write a file or folder to its disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_sharded_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Whether this is a complete folder that :class:`FSDP2Strategy` wrote."""
    return (Path(path) / REST).is_file() and (Path(path) / ".metadata").is_file()


def newest_checkpoint(folder: str | os.PathLike[str]) -> Path | None:
    """The complete checkpoint in ``folder``, or below it, that was written last; None where there is none."""
    written = [path for path in Path(folder).rglob("*.ckpt") if path.is_file() or is_sharded_checkpoint(path)]
    return max(written, key=_age, default=None)


def _age(path: Path) -> tuple[int, int]:
    """By the clock of the file system, then by the steps in the name."""
    steps = re.search(r"step=(\d+)", path.name)
    return path.stat().st_mtime_ns, int(steps[1]) if steps else -1


def read_about(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a checkpoint holds beside weights; of a file these are mapped, not read.

    Raises:
        ValueError: no complete checkpoint lies there.
    """
    path = Path(path)
    if path.is_dir() and not is_sharded_checkpoint(path):
        raise ValueError(f"checkpoint {path} is a folder, but not a complete one of a sharded run")
    if not path.exists():
        raise ValueError(f"checkpoint {path}: no such file")
    try:
        if path.is_dir():
            return dict(torch.load(path / REST, map_location="cpu", weights_only=False))
        return dict(torch.load(path, map_location="cpu", mmap=True, weights_only=False))
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"checkpoint {path} cannot be read: {str(error).splitlines()[0]}") from error


def is_remote(path: Any) -> bool:
    """Whether ``path`` is a URL, such as ``s3://bucket/run``, and not a path of this machine."""
    return "://" in str(path)


class SafeCheckpointIO(TorchCheckpointIO):
    """Checkpoints in one file that is complete or not there; reads sharded folders as well.

    URLs go to Lightning's checkpoint IO, by fsspec: whether a file is complete there is the store's business.
    """

    @stage("saving a checkpoint")
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write beside the place, then move there."""
        if is_remote(path):
            return super().save_checkpoint(checkpoint, path, storage_options)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, unfinished(path))
        sync_to_disk(unfinished(path))
        publish(path)

    @stage("reading the checkpoint")
    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """A file, or a sharded folder put together; its optimizer states are by parameter name."""
        if is_remote(path) or not Path(path).is_dir():
            return super().load_checkpoint(path, *args, **kwargs)
        if not is_sharded_checkpoint(path):
            raise ValueError(f"checkpoint {path} is a folder, but not one of a sharded run")
        state: dict[str, Any] = {}
        _load_state_dict(state, FileSystemReader(path), planner=_EmptyStateDictLoadPlanner(), no_dist=True)
        checkpoint = torch.load(Path(path) / REST, weights_only=kwargs.get("weights_only"))
        number = sum(name.startswith("optimizer_") for name in state)
        optimizers = [state[f"optimizer_{i}"] for i in range(number)]
        return {**checkpoint, "state_dict": state["state_dict"], "optimizer_states": optimizers}

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint: a file, a folder, or what lies behind a URL."""
        if is_remote(path):
            return super().remove_checkpoint(path)
        discard(Path(path))
