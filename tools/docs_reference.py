"""Pages of the reference that are made from the code when the docs are built (a hook of mkdocs).

In a page, ``<!-- recipe-keys: orlaif.policy.Policy -->`` becomes a table of the class's arguments (key, type, default
and meaning, from its signature and docstring), ``<!-- metrics -->`` the table of ``orlaif.training.metric_names``,
``<!-- public-names -->`` the documentation of every public name of the packages below, and ``<!-- file: path -->`` a
file of ``docs/`` as a block of Python. An argument without a meaning or a public name without a docstring is an error,
so that ``make docs`` fails.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import typing
from pathlib import Path
from types import UnionType
from typing import Any

import docstring_parser
from mkdocs.exceptions import PluginError

DOCS = Path(__file__).parents[1] / "docs"

#: Packages whose ``__all__`` is public.
PACKAGES = (
    "orlaif",
    "orlaif.types",
    "orlaif.policy",
    "orlaif.rollout",
    "orlaif.oracles",
    "orlaif.advantages",
    "orlaif.losses",
    "orlaif.data.video",
)


def resolve(path: str) -> Any:
    """The object of an import path."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def type_text(annotation: Any) -> str:
    """A type as a reader of recipes knows it."""
    if annotation is inspect.Parameter.empty:
        return ""
    if annotation is type(None):
        return "null"
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, UnionType):
        return " or ".join(type_text(one) for one in arguments)
    if origin is typing.Literal:
        return " or ".join(f"`{one}`" for one in arguments)
    if origin is not None and arguments:
        name = getattr(origin, "__name__", str(origin))
        return f"{name} of {', '.join(type_text(one) for one in arguments if one is not ...)}"
    return getattr(annotation, "__name__", str(annotation))


def default_text(value: Any) -> str:
    """A default as a recipe would state it."""
    if value is inspect.Parameter.empty:
        return "required"
    if value is None:
        return "`null`"
    if callable(value):
        return "see below"
    return f"`{value!r}`" if isinstance(value, str) else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def meanings(cls: type) -> dict[str, str]:
    """What the docstrings of a class and its bases say of each argument."""
    said: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        for one in docstring_parser.parse(base.__dict__.get("__doc__") or "").params:
            said[one.arg_name] = " ".join((one.description or "").split())
    return said


def recipe_keys(path: str) -> str:
    """The table of a class's arguments.

    Raises:
        PluginError: an argument without a meaning.
    """
    cls = resolve(path)
    # Fields of a dataclass may have been written in other modules than its own.
    hints = typing.get_type_hints(cls if dataclasses.is_dataclass(cls) else cls.__init__)
    said = meanings(cls)
    rows = [f"### `{path}` {{ #{path.replace('.', '-')} }}", "", (inspect.getdoc(cls) or "").split("\n")[0], ""]
    rows += ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, parameter in inspect.signature(cls.__init__).parameters.items():
        if name == "self" or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        if not said.get(name):
            raise PluginError(f"{path}: the docstring says nothing of {name!r}")
        kind = type_text(hints.get(name, parameter.annotation)).replace("|", "\\|")
        meaning = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", said[name]).replace("``", "`").replace("|", "\\|")
        rows.append(f"| `{name}` | {kind} | {default_text(parameter.default)} | {meaning} |")
    return "\n".join(rows)


def metrics_table() -> str:
    """Every metric with its meaning."""
    table = importlib.import_module("orlaif.training.metric_names").METRICS
    rows = [f"| `{name}` | {meaning} |" for name, meaning in table.items()]
    return "\n".join(["| metric | meaning |", "|---|---|", *rows])


def public_names() -> str:
    """Directives of mkdocstrings for every public name, a section for each package.

    Raises:
        PluginError: a public name without a docstring.
    """
    parts = []
    for package in PACKAGES:
        module = importlib.import_module(package)
        parts.append(f"## {package}\n")
        names = getattr(module, "__all__", None) or [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == package
        ]
        for name in names:
            value = getattr(module, name)
            if not (inspect.isclass(value) or inspect.isfunction(value)):
                continue
            if not inspect.getdoc(value):
                raise PluginError(f"{package}.{name} is public and has no docstring")
            parts.append(f"::: {value.__module__}.{value.__qualname__}\n")
    return "\n".join(parts)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the generated parts into a page."""
    markdown = re.sub(r"<!-- recipe-keys: ([\w.]+) -->", lambda match: recipe_keys(match[1]), markdown)
    markdown = re.sub(
        r"<!-- file: ([\w/.]+) -->", lambda match: f"```python\n{(DOCS / match[1]).read_text()}```", markdown
    )
    if "<!-- metrics -->" in markdown:
        markdown = markdown.replace("<!-- metrics -->", metrics_table())
    if "<!-- public-names -->" in markdown:
        markdown = markdown.replace("<!-- public-names -->", public_names())
    return markdown
