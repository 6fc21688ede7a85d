"""A recipe as LightningCLI reads it: ``orlaif fit | validate | test | predict --config recipes/X.yaml``.

LightningCLI with one more key, ``run_dir``: everything that a run writes lies below it (checkpoints, TensorBoard
events, predictions, the exported model, the configuration). :func:`run` runs a subcommand; :func:`read_recipe` only
reads, for what looks at a recipe without training (``orlaif plan``, ``orlaif check-data``).
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentError
from collections.abc import Sequence
from typing import Any

from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger

from orlaif.cli.frames import is_refusal, users_place
from orlaif.cli.grammar import sentence
from orlaif.cli.quiet import quiet_libraries
from orlaif.cli.run_folder import write_state
from orlaif.cli.run_once import RunOnceCLI, recipe_of
from orlaif.cli.words import RecipeError, Words, prepare
from orlaif.distributed import fsdp2  # noqa: F401  (registers the strategy of that name)
from orlaif.distributed.sync import check_same
from orlaif.near_misses import did_you_mean
from orlaif.stages import stage
from orlaif.status_line import StatusLine
from orlaif.training.callbacks import Checkpointing, KeepSamples, Progress, StopSignals
from orlaif.training.sharing import SharesPrompts


class AgreedRecipe(SaveConfigCallback):
    """Keeps the recipe in the run's folder, once all processes have shown that they run the same.

    Of a training, that is where its first step is about to be made: one that is refused before (another base, other
    data) leaves the folder, and what is written there of the run before, as it was. A trial writes nothing at all.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compare, and save what is no training; raises ValueError on all processes where one differs."""
        self.recipe = recipe_of(self.config)
        check_same("recipe", self.recipe)
        if stage != "fit":
            _begin(trainer)
        if stage != "fit" and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            super().setup(trainer, pl_module, stage)

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the logger write: the checkpoint has been taken."""
        _begin(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the recipe, and note that a run has begun."""
        _begin(trainer)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        super().setup(trainer, pl_module, "fit")
        if trainer.is_global_zero:
            write_state(str(self.config.run_dir), finished=False)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep it in the checkpoint, for the run that goes on."""
        checkpoint["recipe"] = dict(self.recipe)


class Events(TensorBoardLogger):
    """TensorBoard's events in the run's folder, from where the run begins.

    Lightning opens its loggers before it restores a checkpoint, which may yet be refused.

    Attributes:
        has_begun: until then nothing is written.
    """

    has_begun = False

    @property
    def experiment(self) -> Any:
        """TensorBoard's writer; before the run begins, one that does nothing."""
        return super().experiment if self.has_begun else DummyLogger().experiment

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """A module with hyperparameters of its own begins with them."""
        self.has_begun = True
        super().log_hyperparams(*args, **kwargs)

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        """What is logged is written."""
        self.has_begun = True
        super().log_metrics(*args, **kwargs)

    def save(self) -> None:
        """Save what there is; before the run begins, that is nothing."""
        if self.has_begun:
            super().save()


def _begin(trainer: Trainer) -> None:
    for logger in trainer.loggers:
        if isinstance(logger, Events):
            logger.has_begun = True


class OrlaifCLI(RunOnceCLI):
    """LightningCLI whose model and data are named by ``class_path``."""

    def __init__(self, args: Sequence[str] | None = None, run: bool = True) -> None:
        quiet_libraries()
        self._words = Words(words=(), documents=(), given=())
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=AgreedRecipe,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={"prog": "orlaif", "exit_on_error": False},
            args=sys.argv[1:] if args is None else list(args),
            run=run,
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser that takes keys in full: the beginning of one is a typo."""
        return super().init_parser(**{"allow_abbrev": False, **kwargs})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """``--run_dir``, which is also the trainer's root."""
        self.add_folder_arguments(parser)
        parser.link_arguments("run_dir", "trainer.default_root_dir")

    @stage("reading the recipe")
    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        """Look at the classes and what they take."""
        super().setup_parser(*args, **kwargs)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the words; raises RecipeError, in one line, for what a recipe or a word may not say."""
        self._words = prepare(args)
        top = self._known_keys(parser)
        for document in self._words.documents:
            for key, _ in document.root.value:
                if key.value not in {name.partition(".")[0] for name in top}:
                    names = {name.partition(".")[0]: None for name in top}
                    where = f"{document.path}, line {key.start_mark.line + 1}"
                    raise RecipeError(f"{key.value}: no such key{did_you_mean(key.value, names)} ({where})")
        try:
            with stage("reading the recipe"):
                self.config = parser.parse_args(list(self._words.words))
        except ArgumentError as error:
            raise RecipeError(self._said(error, top)) from error
        chosen = self.config.get(self.config.get("subcommand") or "", self.config)
        chosen["config"] = [path for path in chosen.get("config") or [] if path is not None]  # those given in a word

    def _said(self, error: Exception, top: Sequence[str] = ()) -> str:
        """One line for what jsonargparse raised; names the place in the user's code where that began there."""
        place = users_place(error)
        return sentence(str(error), self._words.place_of, top) + (f" ({place})" if place else "")

    def _known_keys(self, parser: LightningArgumentParser) -> list[str]:
        """Names of what the parser, or that of its subcommand, takes."""
        parsers = getattr(self, "_subcommand_parsers", {})
        chosen = parsers.get(self._words.given[0] if self._words.given else "", parser)
        return [action.dest for action in chosen._actions if action.dest not in ("help", "==SUPPRESS==")]

    def _parse_ckpt_path(self) -> None:
        """Look at ``--ckpt_path`` before anything is loaded; raises RecipeError where it is no checkpoint."""
        path = self.config.get(self.config.get("subcommand") or "", {}).get("ckpt_path")
        if path and path not in ("last", "best", "hpc", "registry") and ":" not in path and not os.path.exists(path):
            raise RecipeError(f"--ckpt_path {path}: no such checkpoint; it must be one, or `last`")
        try:
            super()._parse_ckpt_path()
        except Exception as error:
            said = str(error).splitlines()[0] if str(error) else "it is empty"
            raise ValueError(
                f"--ckpt_path {path} cannot be read: it is cut off or no checkpoint ({type(error).__name__}: {said})"
            ) from error

    def instantiate_classes(self) -> None:
        """Make model, data and trainer; what a constructor refuses comes in its words, without the recipe.

        Raises:
            RecipeError: what the recipe says is refused by a constructor of orlaif's own, or cannot be shared by the
                processes.
            ValueError: another's constructor refuses it.
        """
        try:
            with stage("making model and data"):
                super().instantiate_classes()
            if self.subcommand == "fit" and isinstance(self.model, SharesPrompts):  # before there are other processes
                self.model.check_sharing(self.trainer.num_devices * self.trainer.num_nodes)
        except ValueError as error:
            said = self._said(error) if str(error).startswith("Does not validate against") else str(error)
            if is_refusal(error):
                raise RecipeError(said) from error
            if said == str(error):
                raise
            raise ValueError(said) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Log to TensorBoard in ``run_dir``, unless the recipe names a logger or says ``logger: false``."""
        if self._get(self.config_init, "trainer.logger") in (None, True):
            kwargs["logger"] = Events(self._get(self.config_init, "run_dir"), name="", version="")
        return super().instantiate_trainer(**kwargs)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """With checkpoints safe to be killed, samples kept, progress shown, unless the recipe names others or none."""
        given = config.get("callbacks") or []
        given = given if isinstance(given, list) else [given]
        if config.get("enable_checkpointing") is not False and not any(isinstance(c, Checkpoint) for c in given):
            callbacks = [*callbacks, Checkpointing()]
        if not any(isinstance(c, StopSignals) for c in given):
            callbacks = [*callbacks, StopSignals()]
        if not any(isinstance(c, KeepSamples) for c in given):
            callbacks = [*callbacks, KeepSamples()]
        if config.get("enable_progress_bar") is not False and not any(isinstance(c, ProgressBar) for c in given):
            callbacks = [*callbacks, Progress()]
        elif StatusLine.current is not None:  # that of the command line makes room for the recipe's own
            StatusLine.current.end()
        return super()._instantiate_trainer(config, callbacks)


class RecipeCLI(OrlaifCLI):
    """A recipe that is read, not run: model and data, and the Trainer's settings instead of a Trainer.

    Attributes:
        trainer_settings: what the recipe says of the Trainer, whose devices this machine need not have.
    """

    trainer_settings: dict[str, Any]

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Keep the Trainer's settings as ``trainer_settings``; no Trainer is made."""
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


def main(words: Sequence[str]) -> int:
    """``orlaif fit | validate | test | predict``; ``words`` begin with the subcommand. Returns the exit status."""
    OrlaifCLI(words)
    return 0
