"""The fenced blocks of README and docs, as tests run them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import REPO

PAGES = [REPO / "README.md", REPO / "kernels" / "README.md", *sorted((REPO / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, language, and text; ``needs`` is what its title says that it needs, if anything."""

    page: str
    language: str
    needs: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page}: {self.text.strip().splitlines()[0][:50]}"


def blocks(language: str, page: Path | None = None) -> list[Block]:
    """All blocks of a language, of all pages or of one."""
    return [
        Block(
            str(path.relative_to(REPO)), match[1], (re.findall(r'title="needs ([^"]+)"', match[2]) or [""])[0], match[3]
        )
        for path in PAGES
        if page in (None, path)
        for match in _FENCE.finditer(path.read_text())
        if match[1] == language
    ]


def commands(block: Block) -> list[list[str]]:
    """The commands of a bash block, comments and line breaks taken out."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]
