"""``orlaif fit`` in a folder: one run at a time, that goes on as what it was; the part of the command line for it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from orlaif.cli.run_folder import ANSWERS_LOCK, lies_in, locked, make_ready, put_back, write_state
from orlaif.distributed.changes import check_changes, is_allowed
from orlaif.distributed.checkpoint_io import is_remote, newest_checkpoint, read_about
from orlaif.distributed.sync import flattened
from orlaif.near_misses import did_you_mean

log = logging.getLogger(__name__)


def recipe_of(config: Any) -> dict[str, str]:
    """Dotted names and values of a recipe, but where it lies, which may differ from machine to machine."""
    recipe = flattened(config.as_dict())
    recipe.pop("config", None)
    return recipe


def check_names(allowed: Iterable[str], names: Iterable[str]) -> None:
    """Refuse a ``--resume_changed`` that allows nothing.

    Args:
        allowed: keys that may differ.
        names: dotted names of this recipe, and of the checkpoint's.

    Raises:
        ValueError: one of them is no key; a near miss is named.
    """
    names = list(names)
    for key in allowed:
        if not any(is_allowed(name, [key]) for name in names):
            words = [name.replace(".init_args", "").split(".") for name in names]
            parts = dict.fromkeys(".".join(one[start:]) for one in words for start in reversed(range(len(one))))
            raise ValueError(f"--resume_changed names {key!r}, which is no key of the recipe{did_you_mean(key, parts)}")


class RunOnceCLI(LightningCLI):
    """LightningCLI that guards the folder of a run."""

    def add_folder_arguments(self, parser: LightningArgumentParser) -> None:
        """Add the arguments that say where a run writes and what it may find there: ``--run_dir`` and its relatives."""
        parser.add_argument(
            "--run_dir", type=str, default="outputs/run", help="Folder for everything that the run writes."
        )
        parser.add_argument(
            "--overwrite", type=bool, default=False, help="Move what another run left in run_dir aside, and start anew."
        )
        parser.add_argument(
            "--resume_changed",
            type=str,
            default="",
            help="Keys, separated by commas, that may differ from the recipe of the checkpoint, such as lr,batch_size.",
        )

    def _run_subcommand(self, subcommand: str) -> None:
        """Run; a signal that ended it is its exit status."""
        try:
            if subcommand == "fit" and getattr(rank_zero_only, "rank", 0) in (0, None) and self.trainer.is_global_zero:
                self._fit_in_folder()
            else:
                self._allow()
                with self._answers_held(subcommand):
                    super()._run_subcommand(subcommand)
        except SIGTERMException:
            raise SystemExit(143) from None
        except SystemExit as end:
            if isinstance(end.__context__, KeyboardInterrupt):  # Lightning makes it a 1
                raise SystemExit(130) from None
            raise

    def _answers_held(self, subcommand: str) -> AbstractContextManager[None]:
        """Two tests that wrote their answers to one folder at once would mix them."""
        is_first = getattr(rank_zero_only, "rank", 0) in (0, None) and self.trainer.is_global_zero
        if subcommand not in ("test", "predict") or not is_first or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return nullcontext()
        return locked(str(self._get(self.config, "run_dir")), ANSWERS_LOCK)

    def _allow(self) -> tuple[str, ...]:
        keys = str(self._get(self.config, "resume_changed", default="") or "")
        allowed = tuple(key.strip() for key in keys.split(",") if key.strip())
        for part in (self.model, self.datamodule):
            if hasattr(part, "resume_changed"):
                part.resume_changed = allowed
        return allowed

    def _fit_in_folder(self) -> None:
        run_dir, overwrite = str(self._get(self.config, "run_dir")), bool(self._get(self.config, "overwrite"))
        asked, allowed = self._get(self.config, "ckpt_path", default=None), self._allow()
        if overwrite and asked == "last":
            raise ValueError("--overwrite starts anew and --ckpt_path last goes on; name one of them")
        with locked(run_dir):
            path = newest_checkpoint(run_dir) if asked == "last" else asked
            goes_on = asked == "last" or (path is not None and lies_in(path, Path(run_dir))) or self._is_requeued()
            recipe = recipe_of(self.config[self.subcommand])
            inputs = {name: value for name, value in recipe.items() if name.partition(".")[0] in ("model", "data")}
            is_trial = bool(self.trainer.fast_dev_run)  # type: ignore[attr-defined]
            about = None
            if path is not None and path not in ("best", "hpc") and not is_remote(path):
                about = read_about(path)
            before = (about or {}).get("recipe")
            check_names(allowed, [*recipe, *(before or {})])
            if before is not None:
                for line in check_changes(before, recipe, allowed):
                    log.info("resumed with another %s", line)
            elif about is not None:
                log.warning("checkpoint %s does not say by which recipe it was written; it is taken on trust", path)
            aside = None if is_trial else make_ready(run_dir, goes_on, overwrite, inputs)
            try:
                super()._run_subcommand("fit")  # notes in the folder that a run has begun once its first step is due
            except BaseException:
                if aside is not None:
                    put_back(run_dir, aside)
                raise
            if not is_trial:
                write_state(run_dir, finished=True)

    def _is_requeued(self) -> bool:
        """Whether Lightning will go on from what it saved when SLURM was about to end the job."""
        return SLURMEnvironment.detect() and self.trainer._checkpoint_connector._hpc_resume_path is not None
