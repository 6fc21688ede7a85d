"""Words of a helper subcommand: an argparse parser whose mistakes are one line, as those of a recipe are."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn


class UsageError(ValueError):
    """The words of the command line are not understood; the exit status is 2, as argparse has it."""


class HelperParser(argparse.ArgumentParser):
    """argparse, with names in full and mistakes as exceptions, without the usage."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Raise UsageError, whose words name the argument."""
        raise UsageError(f"{message} ({self.prog} --help says what it takes)")
