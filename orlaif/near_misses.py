"""Which of the names that there are was meant by one that is none."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def near(name: str, names: Iterable[str]) -> str | None:
    """The one of ``names`` that ``name`` is most likely a slip of, or None."""
    by_lower = {one.lower(): one for one in names}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.7)
    return by_lower[close[0]] if close else None


def did_you_mean(name: str, names: Iterable[str], limit: int = 12) -> str:
    """``; did you mean 'x'?``, else all names where they are few, else nothing."""
    names = list(names)
    if (close := near(name, names)) is not None:
        return f"; did you mean {close!r}?"
    return f"; it must be one of {', '.join(names)}" if 0 < len(names) <= limit else ""
