"""The Hugging Face export at the end of training."""

from __future__ import annotations

import os

from lightning import Callback, LightningModule, Trainer


class ExportHuggingFace(Callback):
    """At the end of training, write the policy (or the ranker) for the rest of the ecosystem.

    Args:
        dirpath: folder; by default ``<run_dir>/export``.
        merge: with LoRA, a whole model with the adapter merged into it, instead of an adapter.
    """

    def __init__(self, dirpath: str | None = None, merge: bool = False) -> None:
        self.dirpath, self.merge = dirpath, merge

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export; where weights are sharded all processes take part, and process 0 writes."""
        policy = getattr(pl_module, "policy", None)
        if trainer.is_global_zero or getattr(policy, "is_sharded", False):
            folder = self.dirpath or os.path.join(trainer.default_root_dir, "export")
            pl_module.export(folder, merge=self.merge)  # type: ignore[operator]
