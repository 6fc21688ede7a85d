"""A data set of one's own: rows of another form, each a question about a video."""

from typing import Any

from orlaif.data.datasets import RowDataset
from orlaif.types import VideoPrompt


class Trivia(RowDataset):
    """Rows ``{"clip": "a.mp4", "q": "...", "a": "..."}``, numbered by their place in the file."""

    def parse(self, row: Any, where: str, video_root: str) -> VideoPrompt:
        """One row; ``where`` is its file and line, for errors."""
        missing = [name for name in ("clip", "q", "a") if not row.get(name)]
        if missing:
            raise ValueError(f"{where}: field {missing[0]!r} is missing")
        number = where.rsplit(" ", 1)[-1]
        return VideoPrompt(
            id=f"trivia-{number}", video=f"{video_root}/{row['clip']}", question=row["q"], answer=row["a"]
        )
