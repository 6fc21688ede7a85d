"""Tables in pages: found by their marks, written anew."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.figures.tables import TABLES

REPO = Path(__file__).parents[2]
PAGES = [REPO / "README.md", REPO / "kernels" / "README.md", *sorted((REPO / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"<!-- figures: ([\w-]+) -->\n.*?<!-- end of figures -->", re.DOTALL)


def names(text: str) -> list[str]:
    """Names of the tables of a page."""
    return _BLOCK.findall(text)


def rendered(text: str) -> str:
    """The page with each table as its JSON has it.

    Raises:
        ValueError: a name that no table has.
    """

    def block(match: re.Match[str]) -> str:
        if match[1] not in TABLES:
            raise ValueError(f"figures: {match[1]} is no table of benchmarks.figures ({', '.join(TABLES)})")
        return f"<!-- figures: {match[1]} -->\n\n{TABLES[match[1]]()}\n\n<!-- end of figures -->"

    return _BLOCK.sub(block, text)
