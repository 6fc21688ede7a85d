"""The console script: errors as one line, and the subcommands.

``orlaif fit | validate | test | predict --config recipes/X.yaml [--any.key value]``, and beside these ``orlaif plan
--config recipes/X.yaml --gpus 4 --gpu-memory 80GB``, ``orlaif check-data --config recipes/X.yaml`` and ``orlaif compare
A B``.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time

from lightning.pytorch.utilities import rank_zero_only

from orlaif.cli import check_data, plan
from orlaif.cli.recipe import OrlaifCLI
from orlaif.evaluation import compare
from orlaif.types import OracleError, VideoError


def log_to_stderr() -> None:
    """Show what orlaif logs, notes from the first process only; does nothing where the program has set up logging."""
    log = logging.getLogger("orlaif")
    if log.handlers or logging.getLogger().handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("orlaif: %(message)s"))
    handler.addFilter(lambda record: record.levelno > logging.INFO or getattr(rank_zero_only, "rank", 0) in (0, None))
    log.addHandler(handler)
    log.setLevel(logging.INFO)


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


def main() -> None:
    """The console script."""
    log_to_stderr()
    if "LOCAL_RANK" in os.environ:  # one of several, started by Lightning or torchrun
        watch_parent()
    try:
        if sys.argv[1:2] == ["check-data"]:
            raise SystemExit(check_data.main(sys.argv[2:]))
        if sys.argv[1:2] == ["plan"]:
            raise SystemExit(plan.main(sys.argv[2:]))
        if sys.argv[1:2] == ["compare"]:
            raise SystemExit(compare.main(sys.argv[2:]))
        OrlaifCLI()
    except (ValueError, VideoError, OracleError) as error:
        # A user's mistake or bad input: the message names the culprit, a traceback would bury it.
        if os.environ.get("ORLAIF_TRACEBACK"):
            raise
        print(f"orlaif: error: {error}\n(ORLAIF_TRACEBACK=1 shows where it was raised)", file=sys.stderr)
        raise SystemExit(1) from None
