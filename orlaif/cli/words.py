"""The words of a command line before the parser reads them: the recipes that they name, checked as files.

What the parser would overlook or say in many lines is said here, by file and line: a file that is missing, not UTF-8,
no YAML or no mapping, a key given twice, a key of the recipe that is none. Class paths of earlier versions are replaced
(:mod:`orlaif.cli.moved`), and modules beside a recipe become importable.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import yaml

from orlaif.arguments import UsageError
from orlaif.cli.moved import translated

#: What ``model.init_args.loss`` is without a class path.
DEFAULT_LOSS = "orlaif.losses.GRPORankLoss"
_NULLS = ("null", "~", "None")
#: Keys that may stand without a value, which is then true.
_SWITCHES = ("--overwrite",)
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class RecipeError(UsageError):
    """A recipe, or a word that overrides it, says what cannot be."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """A recipe's file.

    Args:
        path: as the command line names it.
        text: its text, with the class paths of now.
        translated: whether that differs from what the file has.
        root: its YAML, with line numbers.
    """

    path: str
    text: str
    translated: bool
    root: yaml.MappingNode

    def line_of(self, keys: Sequence[str]) -> int | None:
        """Line, from 1, of the key at the end of a path, on which ``init_args`` may be left out."""
        return _line_of(self.root, [key for key in keys if key != "init_args"])


def _line_of(node: yaml.Node, keys: Sequence[str]) -> int | None:
    if not isinstance(node, yaml.MappingNode) or not keys:
        return None
    for key, value in node.value:
        if key.value == keys[0]:
            inner = _line_of(value, keys[1:]) if len(keys) > 1 else None
            return inner if len(keys) > 1 else key.start_mark.line + 1
        if key.value == "init_args" and (line := _line_of(value, keys)) is not None:
            return line
    return None


def read_document(path: str) -> Document:
    """A recipe's file, checked.

    Raises:
        RecipeError: it is missing, not UTF-8, no YAML, no mapping, or gives a key twice.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read()
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RecipeError(f"{path}, line {line}: not UTF-8 text; save the recipe as UTF-8") from None
    except OSError as error:
        raise RecipeError(f"--config {path}: {(error.strerror or str(error)).lower()}") from None
    try:
        root = yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f", line {mark.line + 1}" if mark is not None else ""
        raise RecipeError(f"{path}{at}: no valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: no valid YAML: {error}") from None
    if not isinstance(root, yaml.MappingNode):
        kind = "empty" if root is None else f"a {root.id}"
        raise RecipeError(f"{path}: the file is {kind}; a recipe is a mapping with the keys model, data and trainer")
    for key, node in _doubles(root):
        first = key.start_mark.line + 1
        raise RecipeError(f"{path}, line {node.start_mark.line + 1}: {key.value!r} was given before, on line {first}")
    new = translated(text, path)
    return Document(path=path, text=new, translated=new != text, root=root)


def _doubles(node: yaml.Node) -> Iterator[tuple[yaml.Node, yaml.Node]]:
    """Keys given twice in one mapping: the first and the second."""
    if isinstance(node, yaml.SequenceNode):
        for one in node.value:
            yield from _doubles(one)
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = str(key.value)
            if name in seen and name != "<<":
                yield seen[name], key
            seen[name] = key
            yield from _doubles(value)


@dataclass(frozen=True, kw_only=True)
class Words:
    """A command line, ready for the parser.

    Args:
        words: for the parser.
        documents: the recipes that they name, in order.
        given: the words as they were given.
    """

    words: tuple[str, ...]
    documents: tuple[Document, ...]
    given: tuple[str, ...]

    def place_of(self, keys: Sequence[str]) -> str:
        """Where a key was given, such as ``recipe.yaml, line 12``; empty where that is not known."""
        wanted = [key for key in keys if key != "init_args"]
        for word in self.given:
            name = word.partition("=")[0].removesuffix("+")
            if name.startswith("--") and [k for k in name[2:].split(".") if k != "init_args"] == wanted:
                return "on the command line"
        for document in reversed(self.documents):
            if (line := document.line_of(keys)) is not None:
                return f"{document.path}, line {line}"
        return ""


def prepare(given: Sequence[str]) -> Words:
    """Check the recipes that the words name, translate class paths, and let modules beside a recipe be imported.

    Args:
        given: the words after ``orlaif``.

    Raises:
        RecipeError: as :func:`read_document`.
    """
    words: list[str] = []
    documents: list[Document] = []
    rest = iter(_switched_on(given))
    for word in rest:
        name, equals, value = word.partition("=")
        if name in ("--config", "-c"):
            path = value if equals else next(rest, None)
            if path is None:
                raise UsageError(f"{name} needs the path of a recipe")
            if path.lstrip().startswith("{"):  # a recipe in a word
                words += ["--config", translated(path, "--config")]
                continue
            documents.append(read_document(path))
            words += _default_loss(documents[-1])
            words += ["--config", documents[-1].text if documents[-1].translated else path]
        elif equals and name.startswith("--"):
            words += _null(name) if value in _NULLS and _is_deep(name) else [translated(word, name)]
        elif word in _NULLS and words and _is_deep(words[-1]):
            words += _null(words.pop())
        else:
            words.append(translated(word, words[-1] if words else word))
    import_from([os.path.dirname(os.path.abspath(document.path)) for document in documents])
    return Words(words=tuple(words), documents=tuple(documents), given=tuple(given))


def _switched_on(given: Sequence[str]) -> list[str]:
    """The words, with ``=true`` behind switches that stand alone, which jsonargparse would ask a value of."""
    followers = [*given[1:], "--"]
    return [
        f"{word}=true" if word in _SWITCHES and follower.startswith("-") else word
        for word, follower in zip(given, followers, strict=False)
    ]


def _is_deep(name: str) -> bool:
    """Whether a word names an argument two classes deep, without a value."""
    deep = name.count(".init_args.") > 1 or ".init_args.loss." in name
    return name.startswith("--") and "=" not in name and deep


def _null(name: str) -> list[str]:
    """jsonargparse takes a null two classes deep for the text "None"; in a mapping it reads it right."""
    tree: dict[str, object] | None = None
    for key in reversed(name[2:].split(".")):
        tree = {key: tree}
    return ["--config", json.dumps(tree)]


def _default_loss(document: Document) -> list[str]:
    """Words that name the loss whose settings a recipe gives without a class path.

    jsonargparse fills in the defaults of a class that is not named, and another loss, named later, would keep them.
    """
    model = _child(document.root, "model")
    path, loss = _child(model, "class_path"), _child(_child(model, "init_args"), "loss")
    if not isinstance(path, yaml.ScalarNode) or not isinstance(loss, yaml.MappingNode):
        return []
    if _child(loss, "class_path") is not None or _child(loss, "init_args") is not None:
        return []
    stated = {"class_path": translated(path.value, document.path), "init_args": {"loss": {"class_path": DEFAULT_LOSS}}}
    return ["--config", json.dumps({"model": stated})]


def _child(node: yaml.Node | None, name: str) -> yaml.Node | None:
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next((value for key, value in pairs if key.value == name), None)


def import_from(folders: Sequence[str]) -> None:
    """Let modules in these folders, and in the one that the command runs in, be imported after all others."""
    for folder in [*folders, os.getcwd()]:
        if folder not in sys.path:
            sys.path.append(folder)
