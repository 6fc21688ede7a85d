"""An exception as the one line that a user can act on: what is wrong, where, and what would be right.

Mistakes of the recipe's grammar come as a :class:`~orlaif.cli.words.RecipeError` that already is one line; here are
those of the machine (disk, GPU, network), of files (checkpoints, models) and of the user's own code, which alone keeps
its traceback. Nothing heavy is imported: errors of libraries are known by their names.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass

from orlaif.arguments import UsageError
from orlaif.cli.frames import chain, is_ours, telling_frame
from orlaif.cli.rules import RULES

#: Exceptions whose own words are for the user.
_FOR_USERS = ("ValueError", "VideoError", "OracleError", "MisconfigurationException", "ArgumentError")


@dataclass(frozen=True, kw_only=True)
class Explained:
    """An error for a user.

    Args:
        line: one line.
        status: the exit status.
        is_bug: whether the traceback is needed to act on it.
    """

    line: str
    status: int = 1
    is_bug: bool = False


def explained(error: BaseException) -> Explained:
    """What to say of an error that ended a subcommand."""
    if isinstance(error, UsageError):
        return Explained(line=one_line(str(error)), status=2)
    if (oracle := _bug_of_an_oracle(error)) is not None:
        return Explained(line=oracle, is_bug=True)
    for rule in RULES:
        for one in chain(error):
            if (line := rule(one)) is not None:
                return Explained(line=one_line(line))
    if any(base.__name__ in _FOR_USERS for base in type(error).__mro__) or _is_said_by_orlaif(error):
        return Explained(line=one_line(str(error)))
    frame = telling_frame(error)
    at = f" ({frame.filename}:{frame.lineno})" if frame is not None else ""
    return Explained(line=f"{type(error).__name__}: {one_line(str(error))}{at}", is_bug=True)


def _is_said_by_orlaif(error: BaseException) -> bool:
    """Whether orlaif itself says in words that something outside failed: a server that is down, a cache of replies."""
    frames = list(traceback.walk_tb(error.__traceback__))
    in_words = isinstance(error, OSError) and error.errno is None
    return in_words and bool(frames) and is_ours(frames[-1][0].f_code.co_filename)


def one_line(text: str, limit: int = 700) -> str:
    """Lines joined, the middle of what is too long left out."""
    lines = [" ".join(line.split()) for line in text.splitlines()]
    joined = ""
    for line in filter(None, lines):
        joined += ("" if not joined else " " if joined[-1] in ".:;,?!" else "; ") + line
    return joined if len(joined) <= limit else f"{joined[: limit - 200]} ... {joined[-195:]}"


# -------------------------------------------------------------------------------------------------- the user's code


def _bug_of_an_oracle(error: BaseException) -> str | None:
    """``MyOracle failed on prompt q3: IndexError: ... (my_oracle.py:12)``, or None where no oracle's code failed."""
    if type(error).__name__ in ("OracleError", "VideoError"):
        return None
    frames = list(traceback.walk_tb(error.__traceback__))
    asked = [i for i, (frame, _) in enumerate(frames) if _is_oracle(frame.f_locals.get("self"))]
    is_raised_by_orlaif = isinstance(error, ValueError) and is_ours(frames[-1][0].f_code.co_filename)
    if not asked or is_raised_by_orlaif or _is_said_by_orlaif(error):
        return None
    frame = telling_frame(error)
    if frame is None or (is_ours(frame.filename) and any(rule(error) for rule in RULES)):
        return None
    oracle = type(frames[asked[-1]][0].f_locals["self"]).__name__
    groups = [value for one, _ in frames for value in one.f_locals.values() if _is_group(value)]
    if groups:
        prompt = f"prompt {groups[-1].prompt.id}"
    else:
        given = next((one.f_locals["groups"] for one, _ in frames if "groups" in one.f_locals), ())
        ids = [group.prompt.id for group in given if _is_group(group)]
        prompt = f"prompts {', '.join(ids[:5])}{' ...' if len(ids) > 5 else ''}"
    where = f"{frame.filename}:{frame.lineno}"
    return f"oracle {oracle} failed on {prompt}: {type(error).__name__}: {one_line(str(error))} ({where})"


def _is_oracle(value: object) -> bool:
    return any((kind.__module__, kind.__name__) == ("orlaif.oracles.base", "Oracle") for kind in type(value).__mro__)


def _is_group(value: object) -> bool:
    return type(value).__name__ == "CandidateGroup"
