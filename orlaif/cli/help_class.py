"""``orlaif help OracleRLAIF``: the arguments of a class that recipes name, with types, defaults and what they mean.

By name or by class path, of orlaif or of anything that can be imported, such as ``torch.optim.AdamW``. Without a name
it lists what recipes name.
"""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from orlaif.arguments import HelperParser, UsageError
from orlaif.cli.moved import translated
from orlaif.cli.names import ancestors, class_path_like, public_bases, public_classes
from orlaif.cli.words import import_from


@dataclass(frozen=True, kw_only=True)
class Argument:
    """An argument of a class.

    Args:
        name: as a recipe writes it.
        kind: its type, as the source writes it.
        default: in words; empty where there is none, so that it must be given.
        about: what it means.
    """

    name: str
    kind: str
    default: str
    about: str


def find_class(name: str) -> tuple[str, Any]:
    """Path and class (or function) of a name or class path.

    Raises:
        UsageError: there is none; a near miss is named.
    """
    path = "lightning.pytorch.Trainer" if name == "Trainer" else public_classes().get(name, name)
    path = translated(path, "orlaif help")
    import_from([])
    module, _, last = path.rpartition(".")
    try:
        return path, getattr(importlib.import_module(module), last)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
    except (AttributeError, ValueError):
        pass
    close = class_path_like(path)
    raise UsageError(
        f"there is no class {name!r}"
        + (f"; did you mean {close}?" if close else "; orlaif help lists orlaif's classes")
    )


def arguments(kind: Any) -> Iterator[Argument]:
    """The arguments of a class, those that it hands on to its bases included."""
    seen: set[str] = set()
    for base in inspect.getmro(kind) if isinstance(kind, type) else (kind,):
        if isinstance(kind, type) and base is not kind and "__init__" not in vars(base):
            continue
        try:
            maker = base.__init__ if isinstance(kind, type) else base  # type: ignore[misc]
            parameters = inspect.signature(maker).parameters.values()
        except ValueError:  # built in, without a signature
            return
        docs = documented(base)
        for one in parameters:
            if one.name == "self" or one.kind in (one.VAR_KEYWORD, one.VAR_POSITIONAL) or one.name in seen:
                continue
            seen.add(one.name)
            annotation = "" if one.annotation is one.empty else one.annotation
            yield Argument(
                name=one.name,
                kind=annotation if isinstance(annotation, str) else inspect.formatannotation(annotation),
                default="" if one.default is one.empty else _shown(one.default),
                about=docs.get(one.name, ""),
            )
        if not any(one.kind is one.VAR_KEYWORD for one in parameters):
            return


def _shown(default: Any) -> str:
    if default is None or isinstance(default, bool):
        return {None: "null", True: "true", False: "false"}[default]
    if type(default).__name__ == "_HAS_DEFAULT_FACTORY_CLASS":
        return "made anew"
    name = getattr(default, "__qualname__", None) or repr(default)
    return "a function of the class" if "<lambda>" in name else name


def plain(text: str) -> str:
    """A docstring without the roles of reStructuredText: ``:func:`~orlaif.advantages.dcg``` is ``dcg``."""
    text = re.sub(r":[a-z:]+:`([^`<]+?)\s*<[^`]*>`", r"\1", text)  # a role with words of its own
    text = re.sub(r":[a-z:]+:`~[^`]*?([^`.]+)`", r"\1", text)
    return re.sub(r":[a-z:]+:`([^`]+)`", r"\1", text)


def documented(kind: Any) -> dict[str, str]:
    """What the docstrings of a class and its bases say of each argument."""
    import docstring_parser

    said: dict[str, str] = {}
    for base in inspect.getmro(kind) if isinstance(kind, type) else (kind,):
        for doc in (inspect.getdoc(base), inspect.getdoc(getattr(base, "__init__", None))):
            for one in docstring_parser.parse(doc or "").params:
                said.setdefault(one.arg_name, plain(" ".join((one.description or "").split())))
    return said


def page(path: str, kind: Any) -> str:
    """What ``orlaif help`` prints of a class."""
    about = plain(inspect.getdoc(kind) or "").split("\n\nArgs:")[0].strip()
    lines = [path, "", textwrap.indent(about, "  "), ""] if about else [path, ""]
    for one in arguments(kind):
        default = f" = {one.default}" if one.default else " (required)"
        lines.append(f"  {one.name}{': ' if one.kind else ''}{one.kind}{default}")
        lines += textwrap.wrap(one.about, 100, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


#: What recipes name, by where it stands in them: classes, and bases whose public subclasses are meant.
LISTED = {
    "model": "OracleRLAIF SupervisedFineTuning PreferenceSampling Evaluation",
    "rankers": "PreferenceRankerTraining ListwiseRankerTraining",
    "policy": "Policy",
    "rollout": "BaseRollout+ SamplingParams",
    "loss": "GRPORankLoss",
    "advantage": "Advantage+",
    "oracle": "Oracle+ OracleFailure Rubric TextRewardModel",
    "data": "VideoDataModule AnswerLengthCurriculum ClipCache",
    "data sets": "PromptDataset+ StreamingDataset ShapesDataset",
    "sampling": "Sampling+ PixelBudget",
    "suite": "Suite+",
    "judge and server": "ChatGrader ChatClient",
    "callbacks": "Checkpointing CompletionsBoard ExportHuggingFace KeepSamples StopSignals WinRate",
}
#: Subclasses that only others are made of.
_UNFINISHED = ("RowDataset", "Judge", "LocalJudge")


def listing() -> str:
    """Class paths of what recipes name, in groups."""
    paths, bases = public_classes(), public_bases()
    lines: list[str] = []
    for group, words in LISTED.items():
        names: list[str] = []
        for word in words.split():
            base = word.removesuffix("+")
            names += [base] if base == word else [n for n in paths if base in ancestors(n, bases)]
        shown = sorted(paths[name] for name in dict.fromkeys(names) if name not in _UNFINISHED)
        lines += [f"{group}:", *(f"  {path}" for path in shown)]
    return "\n".join(lines)


def main(words: Sequence[str]) -> int:
    """The subcommand; returns the exit status."""
    parser = HelperParser(
        prog="orlaif help",
        description="The arguments of a class that recipes name, by its name or class path; without one, a list.",
    )
    parser.add_argument("name", nargs="?", help="such as OracleRLAIF, orlaif.oracles.HTTPJudge or torch.optim.AdamW")
    name = parser.parse_args(list(words)).name
    if name is None:
        print(listing())
    else:
        print(page(*find_class(name)))
    return 0
