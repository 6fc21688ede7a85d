"""What jsonargparse says of a recipe that it refuses, in up to 60 lines, as the one that names the culprit.

Its messages are trees: under each key the class that was tried, under each class the key that was wrong, under each
union all that was expected. :func:`leaves` reads the tree; :func:`sentence` chooses the deepest leaf, which is where
the mistake is, and adds file, line and a suggestion.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from orlaif.cli.names import class_path_like
from orlaif.near_misses import did_you_mean, near

_KEY = re.compile(r'^Parser key "(?P<key>[^"]+)":\s*(?P<rest>.*)$', re.DOTALL)
_CLASS = re.compile(r"^Problem with given class_path '(?P<path>[^']+)':?\s*(?P<rest>.*)$", re.DOTALL)
_CALLABLE = re.compile(
    r"^Type .* expects a function or a callable class: (?P<rest>.*?)(?:\. Got value: (?P<value>.*))?$"
)
_NOISE = re.compile(r"^(Does not validate against|Subtypes:|Errors:|Given value|Expected a path but)")
_UNKNOWN = re.compile(r"^(?:Subcommand '\w+' does not accept option|(?:Key|Option|Group)) '(?P<key>[^']+)'")
_REQUIRED = re.compile(r'^(?:the following arguments are required: (?P<keys>.+)|Key "(?P<key>[^"]+)" is required.*)$')
_EXPECTED = re.compile(r"^Expected an? (?P<kind>.+?)(?:\. Got value: (?P<value>.*))?$", re.DOTALL)
_NO_MODULE = re.compile(r"^No module named '(?P<name>[^']+)'")
_NO_CLASS = re.compile(r"^module '(?P<module>[^']+)' has no attribute '(?P<name>[^']+)'")
_NOT_A = re.compile(r"^Import path (?P<path>\S+) does not correspond to a subclass of (?P<base>.+)$")
_NO_PATH = re.compile(r"^(?:Expected a dot import path string|Unexpected import path format): (?P<path>.+)$")


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """One complaint of jsonargparse.

    Args:
        keys: of the recipe, from its top to where it is.
        owner: class path of the innermost class that was tried, or empty.
        said: the words.
    """

    keys: tuple[str, ...]
    owner: str
    said: str


def leaves(message: str) -> Iterator[Leaf]:
    """All that a message says is wrong."""
    stack: list[tuple[int, str, str]] = []  # indent, "key" or "class", name
    skip_below: int | None = None
    for raw in message.splitlines():
        text = raw.lstrip(" ")
        if not text:
            continue
        indent = len(raw) - len(text)
        while text.startswith("- "):
            text = text[2:]
        if skip_below is not None and indent > skip_below:
            continue
        skip_below = indent if text.startswith("Given value:") else None
        while stack and stack[-1][0] >= indent:
            stack.pop()
        while (match := _KEY.match(text) or _CLASS.match(text)) is not None:
            kind = "key" if match.re is _KEY else "class"
            stack.append((indent, kind, match["key"] if kind == "key" else match["path"]))
            text, indent = match["rest"], indent + 1
        if (match := _CALLABLE.match(text)) is not None:
            value = match["value"] or ""
            named = re.search(r"class_path='([^']+)'", value)
            stack.append((indent, "class", named[1] if named is not None else value))
            text = match["rest"]
        if text and not _NOISE.match(text):
            keys = tuple(part for _, kind, name in stack if kind == "key" for part in name.split("."))
            owner = next((name for _, kind, name in reversed(stack) if kind == "class"), "")
            yield Leaf(keys=keys, owner=owner, said=text)


def sentence(message: str, place_of: Callable[[Sequence[str]], str], top: Sequence[str] = ()) -> str:
    """The line for a message.

    Args:
        message: of jsonargparse.
        place_of: from keys to where they were given, such as ``recipe.yaml, line 12``.
        top: names of the arguments that the subcommand takes, such as ``trainer.max_steps``.
    """
    if (match := re.match(r"unrecognized arguments: (.*)", message, re.DOTALL)) is not None:
        return _unrecognized(match[1], top)
    complaints = [leaf for leaf in leaves(message) if leaf.said != "Expected a <class 'NoneType'>"]
    if not complaints:
        return message
    deepest = max(len(leaf.keys) for leaf in complaints)
    complaints = [leaf for leaf in complaints if len(leaf.keys) == deepest]
    leaf = min(complaints, key=lambda one: _dullness(one.said))
    keys, line = _worded(leaf, [one.said for one in complaints], message, top)
    place = place_of(keys)
    return f"{line} ({place})" if place else line


def _dullness(said: str) -> int:
    order = (_UNKNOWN, _REQUIRED, _NO_CLASS, _NO_MODULE, _NOT_A)
    if any(pattern.match(said) for pattern in order):
        return 1
    if _NO_PATH.match(said):
        return 3
    return 2 if _EXPECTED.match(said) else 0


def _worded(leaf: Leaf, siblings: list[str], message: str, top: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Keys of the culprit, and what is wrong with it."""
    at = dotted(leaf.keys)
    if (match := _UNKNOWN.match(leaf.said)) is not None:
        keys = (*leaf.keys, *match["key"].split("."))
        names = (
            arguments_of(leaf.owner) if leaf.owner else [name for name in top if "." in name or "." not in match["key"]]
        )
        whose = f"{leaf.owner.rsplit('.', 1)[-1]} has no argument {match['key']!r}" if leaf.owner else "no such key"
        more = did_you_mean(match["key"], names)
        where = leaf.owner.rsplit(".", 1)[-1]
        return keys, f"{dotted(keys)}: {whose}{more or (f'; orlaif help {where} lists them' if where else '')}"
    if (match := _REQUIRED.match(leaf.said)) is not None:
        names = [
            re.sub(r"^(fit|validate|test|predict)\.", "", k.strip()) for k in (match["keys"] or match["key"]).split(",")
        ]
        missing = " and ".join(dotted((*leaf.keys, name)) for name in names)
        if not leaf.owner:
            return (), f"{missing} {'are' if len(names) > 1 else 'is'} missing; name a recipe with --config recipe.yaml"
        owner = leaf.owner.rsplit(".", 1)[-1]
        many = len(names) > 1
        return leaf.keys, f"{missing} {'are' if many else 'is'} missing; {owner} needs {'them' if many else 'it'}"
    if _NO_CLASS.match(leaf.said) or _NO_MODULE.match(leaf.said) or _NO_PATH.match(leaf.said):
        return leaf.keys, f"{at}: {_no_class(leaf)}"
    if (match := _NOT_A.match(leaf.said)) is not None:
        return leaf.keys, f"{at} is {match['path']}, which is no {match['base']}"
    if _EXPECTED.match(leaf.said):
        return leaf.keys, _wrong_type(at, siblings, message)
    return (), f"{at}: {leaf.said}" if leaf.keys and leaf.keys[-1] not in leaf.said else leaf.said


def _unrecognized(words: str, top: Sequence[str]) -> str:
    first = words.split()[0]
    if not first.startswith("-"):
        return f"{first!r} is neither a key nor the value of one; keys are written --key value"
    key = first.lstrip("-").partition("=")[0]
    return f"{key}: no such key{did_you_mean(key, top)}"


def _no_class(leaf: Leaf) -> str:
    """A class path that leads nowhere; ``leaf.owner`` is the path."""
    no_path = _NO_PATH.match(leaf.said)
    path = no_path["path"] if no_path is not None else leaf.owner
    if (missing := _NO_MODULE.match(leaf.said)) is not None and not path.startswith("orlaif"):
        return f"{path}: there is no module {missing['name']!r} beside the recipe, in this folder, or installed"
    module, _, name = path.rpartition(".")
    if module and not module.startswith("orlaif"):
        try:
            names = [one for one in dir(importlib.import_module(module)) if not one.startswith("_")]
        except ImportError:
            names = []
        close = near(name, names)
        return f"{module} has no {name}" + (f"; did you mean {module}.{close}?" if close else "")
    close = class_path_like(path)
    said = f"there is no {path}" if module else f"{path!r} is no class path"
    return said + (f"; did you mean {close}?" if close else "; orlaif help lists orlaif's classes")


def _wrong_type(at: str, siblings: list[str], message: str) -> str:
    kinds: list[str] = []
    value = None
    for said in siblings:
        if (match := _EXPECTED.match(said)) is not None:
            value = match["value"] if match["value"] is not None else value
            kinds += [kind for kind in _kinds(match["kind"]) if kind not in kinds]
    if value is None and (given := re.findall(r"^\s*Given value: (.*)$", message, re.MULTILINE)):
        value = given[0]
    literals = [kind[1:-1] for kind in kinds if kind.startswith("'")]
    close = near(value, literals) if value is not None and literals else None
    shown = value if value is not None and len(value) < 80 else "of another type"
    return f"{at} is {shown}; it must be {_alternatives(kinds)}" + (f"; did you mean {close!r}?" if close else "")


def _kinds(kind: str) -> list[str]:
    """What was expected, in words: of a class its name, of a Literal its values."""
    if kind.startswith("dot import path string"):
        return ["a class_path"]
    if (match := re.match(r"typing\.Literal\[(.*)\]$", kind)) is not None:
        return [part.strip() for part in match[1].split(",")]
    if (match := re.match(r"<class '([\w.]+)'>$", kind)) is not None:
        words = {
            "int": "a whole number",
            "float": "a number",
            "str": "text",
            "bool": "true or false",
            "NoneType": "null",
        }
        return [words.get(match[1], {"dict": "a mapping", "list": "a list"}.get(match[1], match[1].rsplit(".", 1)[-1]))]
    return [kind.replace("typing.", "")]


def _alternatives(kinds: Sequence[str]) -> str:
    return kinds[0] if len(kinds) == 1 else f"{', '.join(kinds[:-1])} or {kinds[-1]}"


def dotted(keys: Sequence[str]) -> str:
    """Keys as the command line writes them, but for ``init_args``."""
    return ".".join(key for key in keys if key != "init_args")


def arguments_of(class_path: str) -> list[str]:
    """Names of a class's arguments, those that it hands on to its bases included; none where it cannot be imported."""
    module, _, name = class_path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return []
    names: list[str] = []
    for base in inspect.getmro(kind) if isinstance(kind, type) else (kind,):
        if "__init__" not in vars(base) and base is not kind:
            continue
        maker = base.__init__ if isinstance(kind, type) else base  # type: ignore[misc]
        parameters = inspect.signature(maker).parameters.values()
        names += [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name != "self"]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return list(dict.fromkeys(names))
