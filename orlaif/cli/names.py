"""Every public class of orlaif, without importing any, and the one that a user may have meant."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

from orlaif.near_misses import near

PACKAGE = Path(__file__).resolve().parents[1]


@functools.cache
def public_classes() -> dict[str, str]:
    """Class path of every public class of orlaif by its name; the shortest path where packages hand it on.

    Read from the sources, so that a suggestion costs no import.
    """
    paths: dict[str, str] = {}
    handed_on: list[tuple[str, str]] = []
    for file in sorted(PACKAGE.rglob("*.py")):
        if file.stem.startswith("__main__"):
            continue
        parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.col_offset == 0 and not node.name.startswith("_"):
                _keep_shorter(paths, node.name, f"{module}.{node.name}")
            elif isinstance(node, ast.ImportFrom) and file.stem == "__init__":
                handed_on += [(alias.name, f"{module}.{alias.name}") for alias in node.names]
    for name, path in handed_on:
        if name in paths:
            _keep_shorter(paths, name, path)
    return paths


def _keep_shorter(paths: dict[str, str], name: str, path: str) -> None:
    if len(path) < len(paths.get(name, path + ".")):
        paths[name] = path


@functools.cache
def public_bases() -> dict[str, tuple[str, ...]]:
    """Names of the bases of every class of orlaif by its name, read from the sources as well."""
    bases: dict[str, tuple[str, ...]] = {}
    for file in PACKAGE.rglob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                bases[node.name] = tuple(ast.unparse(base).rpartition(".")[2] for base in node.bases)
    return bases


def ancestors(name: str, bases: dict[str, tuple[str, ...]]) -> set[str]:
    """Names of the bases of a class, of theirs, and so on."""
    return {one for base in bases.get(name, ()) for one in ({base} | ancestors(base, bases))}


def class_path_like(path: str) -> str | None:
    """The class path of orlaif that ``path`` is most likely a slip of, or None."""
    classes = public_classes()
    name = path.rsplit(".", 1)[-1]
    if name in classes:
        return classes[name]
    close = near(name, classes)
    return classes[close] if close is not None else None
