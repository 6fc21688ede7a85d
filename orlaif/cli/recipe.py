"""A recipe as LightningCLI reads it: ``orlaif fit | validate | test | predict --config recipes/X.yaml``.

LightningCLI with one key of its own, ``run_dir``: everything that a run writes lies below it (checkpoints, TensorBoard
events, predictions, the exported model, the configuration). :func:`run` runs a subcommand; :func:`read_recipe` only
reads, for what looks at a recipe without training (``orlaif plan``, ``orlaif check-data``).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger

from orlaif.distributed import fsdp2  # noqa: F401  (registers the strategy of that name)
from orlaif.distributed.sync import check_same, flattened
from orlaif.training.callbacks import Checkpointing


class AgreedRecipe(SaveConfigCallback):
    """Keeps the recipe in the run's folder, once all processes have shown that they run the same."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compare, then save; raises ValueError on all processes where one differs."""
        recipe = flattened(self.config.as_dict())
        recipe.pop("config", None)  # where it lies may differ from machine to machine
        check_same("recipe", recipe)
        super().setup(trainer, pl_module, stage)


class OrlaifCLI(LightningCLI):
    """LightningCLI whose model and data are named by ``class_path``."""

    def __init__(self, args: Sequence[str] | None = None, run: bool = True) -> None:
        # The frozen reference is in eval mode on purpose, and so are `args` given when a run starts from Python.
        warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode")
        # Placeholders are masked in a copy of the logits that the warning is about.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended")
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=AgreedRecipe,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={
                "prog": "orlaif",
                "description": "Fine-tune video-language models from an oracle's ranking. Besides the subcommands "
                "below: `orlaif plan --config ...`, `orlaif check-data --config ...` and `orlaif compare A B`.",
            },
            args=list(args) if args is not None else None,
            run=run,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """``--run_dir``, which is also the trainer's root."""
        parser.add_argument(
            "--run_dir", type=str, default="outputs/run", help="Folder for everything that the run writes."
        )
        parser.link_arguments("run_dir", "trainer.default_root_dir")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Log to TensorBoard in ``run_dir``, unless the recipe names a logger or says ``logger: false``."""
        if self._get(self.config_init, "trainer.logger") in (None, True):
            kwargs["logger"] = TensorBoardLogger(self._get(self.config_init, "run_dir"), name="", version="")
        return super().instantiate_trainer(**kwargs)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """With checkpoints that are safe to be killed, unless the recipe names a checkpoint callback or wants none."""
        own = config.get("callbacks") or []
        own = own if isinstance(own, list) else [own]
        if config.get("enable_checkpointing") is not False and not any(isinstance(c, Checkpoint) for c in own):
            callbacks = [*callbacks, Checkpointing()]
        return super()._instantiate_trainer(config, callbacks)


class RecipeCLI(OrlaifCLI):
    """A recipe that is read, not run: model and data, and the Trainer's settings instead of a Trainer.

    Attributes:
        trainer_settings: what the recipe says of the Trainer, whose devices this machine need not have.
    """

    trainer_settings: dict[str, Any]

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """No Trainer."""
        self.trainer_settings = dict(self._get(self.config_init, "trainer", default={}))


def read_recipe(args: Sequence[str]) -> RecipeCLI:
    """Model, data and the Trainer's settings of a recipe; ``args`` are ``--config recipe.yaml`` and overrides."""
    return RecipeCLI(args, run=False)


def run(args: Sequence[str]) -> OrlaifCLI:
    """Run a subcommand from Python; ``args`` are the words after ``orlaif``.

    Returns:
        The finished CLI, with ``trainer``, ``model`` and ``datamodule``.
    """
    return OrlaifCLI(args)
