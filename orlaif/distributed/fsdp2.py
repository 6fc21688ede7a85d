"""FSDP2 under Lightning: ``--trainer.strategy fsdp2`` shards the policy over all processes of a run.

A checkpoint is a folder of which each process writes its part; it is read by any number of processes, and files of
a single process or of DDP are read as well (``orlaif.distributed.checkpoint_io``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from orlaif.distributed.checkpoint_io import REST, discard, is_sharded_checkpoint, publish, sync_to_disk, unfinished


class FSDP2Strategy(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy with all processes in one data-parallel group, registered as ``fsdp2``.

    Args:
        kwargs: of ModelParallelStrategy.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(tensor_parallel_size=1, **kwargs)

    def setup_environment(self) -> None:
        """All processes of all machines share the weights."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The module's state dict of this process's shards (DTensors), without a copy."""
        assert self.model is not None
        return get_model_state_dict(self.model)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Write all parts beside the place, then move the folder there."""
        path = Path(self.broadcast(str(filepath)))
        if self.is_global_zero:
            discard(unfinished(path))
        self.barrier()
        super().save_checkpoint(checkpoint, unfinished(path), storage_options)
        self.barrier()
        if self.is_global_zero:
            sync_to_disk(unfinished(path) / REST)
            sync_to_disk(unfinished(path))
            publish(path)
        self.barrier()

    def remove_checkpoint(self, filepath: Any) -> None:
        """Delete the folder of a checkpoint, by the first process alone."""
        if self.is_global_zero:
            discard(Path(filepath))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read weights and optimizers into this process's shards: from a folder of any number of processes, or a file.

        Raises:
            ValueError: weights are missing that the policy's checkpoint does not have either.
        """
        path = Path(self.broadcast(str(checkpoint_path)))
        assert self.model is not None
        if path.is_dir():
            return self._load_folder(path, weights_only)
        checkpoint = torch.load(path, mmap=True, map_location="cpu", weights_only=weights_only)
        weights = checkpoint.pop("state_dict")
        self._check_missing(weights.keys(), path)
        options = StateDictOptions(full_state_dict=True, strict=False)
        set_model_state_dict(self.model, weights, options=options)
        names: list[str] = self.lightning_module.trained_names()  # type: ignore[union-attr, operator]
        for optimizer, state in zip(self.optimizers, checkpoint.pop("optimizer_states", []), strict=False):
            set_optimizer_state_dict(self.model, optimizer, state_by_name(state, names), options=options)
        return checkpoint

    def _load_folder(self, path: Path, weights_only: bool | None) -> dict[str, Any]:
        assert self.model is not None
        if not is_sharded_checkpoint(path):
            raise ValueError(f"checkpoint {path} is a folder, but not a complete one of a sharded run")
        saved = FileSystemReader(path).read_metadata().state_dict_metadata
        weights = {k: v for k, v in get_model_state_dict(self.model).items() if f"state_dict.{k}" in saved}
        self._check_missing(weights.keys(), path)
        dcp.load({"state_dict": weights}, checkpoint_id=path)
        set_model_state_dict(self.model, weights, options=StateDictOptions(strict=False))
        for i, optimizer in enumerate(self.optimizers):
            state = {f"optimizer_{i}": get_optimizer_state_dict(self.model, optimizer)}
            dcp.load(state, checkpoint_id=path)
            set_optimizer_state_dict(self.model, optimizer, state[f"optimizer_{i}"])
        return torch.load(path / REST, weights_only=weights_only)

    def _check_missing(self, stored: Any, path: Path) -> None:
        assert self.model is not None
        module: Any = self.lightning_module
        keys = get_model_state_dict(self.model).keys()
        if missing := sorted(keys - set(stored) - module.reloaded_keys(keys)):
            raise ValueError(
                f"checkpoint {path} has no {missing[0]} and {len(missing) - 1} more weights that this recipe trains; "
                "it belongs to another recipe"
            )


def state_by_name(state: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """An optimizer's state by the names of its parameters, from torch's, by their numbers."""
    groups = [{**group, "params": [names[i] for i in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[i]: value for i, value in state["state"].items()}, "param_groups": groups}


if "fsdp2" not in StrategyRegistry.available_strategies():
    StrategyRegistry.register("fsdp2", FSDP2Strategy, description="FSDP2 over all processes")
