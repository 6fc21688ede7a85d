"""The console script: which subcommand, and a user's mistake as one line.

Nothing heavy is imported here: ``orlaif --help`` answers at once, and each subcommand loads what it uses itself.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from orlaif import __version__
from orlaif.arguments import UsageError
from orlaif.cli.errors import explained
from orlaif.near_misses import did_you_mean, near
from orlaif.stages import stage
from orlaif.status_line import StatusLine

#: Each subcommand, the module whose ``main(words)`` is it, and what it does.
SUBCOMMANDS = {
    "fit": ("orlaif.cli.recipe", "train what a recipe says, or go on with --ckpt_path last"),
    "validate": ("orlaif.cli.recipe", "answer the validation questions"),
    "test": ("orlaif.cli.recipe", "answer and grade the test questions; results in the run_dir"),
    "predict": ("orlaif.cli.recipe", "answer the questions to predict on"),
    "plan": ("orlaif.cli.plan", "memory of a step on each GPU, and what would make it fit"),
    "check-data": ("orlaif.cli.check_data", "read all data of a recipe, decode a sample, list what is wrong"),
    "view": ("orlaif.cli.view", "a local page of what runs did: curves, signs of trouble, samples"),
    "compare": ("orlaif.evaluation.compare", "two runs of `orlaif test` side by side"),
    "export": ("orlaif.cli.export", "a Hugging Face folder or adapter from a checkpoint"),
    "families": ("orlaif.cli.families", "which model families work with the installed transformers, and how"),
    "help": ("orlaif.cli.help_class", "the arguments of a class, such as `orlaif help OracleRLAIF`"),
}
RECIPE = "orlaif.cli.recipe"
#: Those that take long, and show how far they are.
LONG = ("fit", "validate", "test", "predict", "plan", "check-data", "export")


def usage() -> str:
    """The text of ``orlaif --help``: subcommands with a line each, made without importing any of them."""
    lines = [
        "usage: orlaif <subcommand> [arguments]",
        "",
        "Fine-tune video-language models from an oracle's ranking.",
        "",
    ]
    lines += [f"  {name:<12}{about}" for name, (_, about) in SUBCOMMANDS.items()]
    lines += [
        "",
        "  orlaif <subcommand> --help    what it takes",
        "  orlaif --version              the version",
        "",
        "fit, validate, test, predict, plan and check-data take --config recipe.yaml, further --config files laid over",
        "it, and any key of the recipe, as in --trainer.max_steps 100. ORLAIF_TRACEBACK=1 shows all of an error.",
    ]
    return "\n".join(lines)


def log_to_stderr() -> None:
    """Show what orlaif logs, notes from the first process only; does nothing where the program has set up logging."""
    log = logging.getLogger("orlaif")
    if log.handlers or logging.getLogger().handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("orlaif: %(message)s"))
    handler.addFilter(lambda record: record.levelno > logging.INFO or _process_index() == 0)
    log.addHandler(handler)
    log.setLevel(logging.INFO)


def _process_index() -> int:
    """Of this process, as Lightning knows it; 0 before Lightning is loaded, unless the launcher says otherwise."""
    lightning = sys.modules.get("lightning.pytorch.utilities.rank_zero")
    known = getattr(getattr(lightning, "rank_zero_only", None), "rank", None)
    return int(known if known is not None else os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0)


def watch_parent(grace_s: float = 10.0) -> None:
    """End this process where the one that launched it has ended, so that none waits for the others for ever.

    Args:
        grace_s: seconds to end by itself.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        time.sleep(grace_s)
        os._exit(1)

    threading.Thread(target=watch, name="orlaif-parent", daemon=True).start()


def subcommand(words: Sequence[str]) -> Callable[[], int]:
    """What the words after ``orlaif`` ask for, ready to be called; it returns the exit status.

    Raises:
        UsageError: the first word is no subcommand.
    """
    if not words:
        raise UsageError(f"no subcommand; it must be one of {', '.join(SUBCOMMANDS)} (orlaif --help says what they do)")
    first, rest = words[0], list(words[1:])
    if first in ("-h", "--help"):
        return lambda: print(usage()) or 0
    if first == "--version":
        return lambda: print(f"orlaif {__version__}") or 0
    if first in SUBCOMMANDS:
        with stage("loading libraries"):
            module = importlib.import_module(SUBCOMMANDS[first][0])
        passed = [first, *rest] if SUBCOMMANDS[first][0] == RECIPE else rest
        return lambda: module.main(passed)
    if first.startswith("-"):
        if (close := near(first, ("--help", "--version"))) is not None:
            raise UsageError(f"there is no {first}; did you mean {close}?")
        raise UsageError(f"{first} comes before the subcommand; write orlaif <subcommand> {first} ...")
    raise UsageError(f"{first!r} is no subcommand{did_you_mean(first, SUBCOMMANDS)}")


def _shown(words: Sequence[str]) -> AbstractContextManager[Any]:
    """A line that says how far a long subcommand is, of the first process alone."""
    if not words or words[0] not in LONG or "--help" in words or "-h" in words or _process_index():
        return nullcontext()
    return StatusLine(what=f"orlaif {words[0]}").running()


def main() -> None:
    """Entry of the console script ``orlaif``: run a subcommand, say errors in a line, exit with its status."""
    log_to_stderr()
    if "LOCAL_RANK" in os.environ:  # one of several, started by Lightning or torchrun
        watch_parent()
    try:
        with _shown(sys.argv[1:]):
            status = subcommand(sys.argv[1:])()
    except BrokenPipeError:  # `orlaif ... | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except KeyboardInterrupt:  # before or after the training, which heeds it itself
        print("orlaif: interrupted", file=sys.stderr)
        status = 130
    except Exception as error:
        # A user's mistake or bad input: the message names the culprit, a traceback would bury it.
        if os.environ.get("ORLAIF_TRACEBACK"):
            raise
        said = explained(error)
        print(f"orlaif: error: {said.line}", file=sys.stderr)
        if said.is_bug:
            traceback.print_exception(error, file=sys.stderr)
        status = said.status
    raise SystemExit(status)
