"""The files of the page, and data in a form that may stand within it."""

from __future__ import annotations

import importlib.resources
import json
from typing import Any

from orlaif.samples.shards import without_nan


def static(name: str) -> str:
    """The text of a file of the page."""
    return (importlib.resources.files("orlaif.view") / "static" / name).read_text(encoding="utf-8")


def as_json(value: Any) -> str:
    """JSON that may stand within HTML as well."""
    try:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    except ValueError:  # 1e999 in a line is read as infinity
        text = json.dumps(without_nan(value), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
