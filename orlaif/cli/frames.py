"""Where an error came from: its chain, the files that its functions were given, the place in the user's own code."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterator

_LIBRARIES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}lib{os.sep}python", f"{os.sep}bin{os.sep}", "<frozen")
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error and those that it came from."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        hidden = None if following.__suppress_context__ else following.__context__
        following = following.__cause__ or hidden


def model_in_frames(error: BaseException) -> str | None:
    """The hub id that a function which an error came through was given."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for name in ("path", "path_or_repo_id", "pretrained_model_name_or_path", "repo_id"):
            value = frame.f_locals.get(name)
            if isinstance(value, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", value):
                return value
    return None


def paths_in_frames(error: BaseException) -> Iterator[str]:
    """Files that the functions an error came through were given, innermost first."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        for name in ("path", "json_file", "filepath", "filename", "file", "f", "to", "folder", "save_directory"):
            value = frame.f_locals.get(name)
            if isinstance(value, str | os.PathLike) and os.sep in os.fspath(value):
                yield os.fspath(value)


def users_place(error: BaseException) -> str:
    """``TypeError in my_oracle.py:12`` where an error began in the user's own code, else nothing."""
    first = list(chain(error))[-1]
    if isinstance(first, SyntaxError) and first.filename is not None:
        return f"{type(first).__name__} in {first.filename}:{first.lineno}"
    frame = telling_frame(first)
    is_made = frame is not None and frame.filename == "<string>"  # a dataclass's constructor
    if frame is None or is_made or is_ours(frame.filename) or any(part in frame.filename for part in _LIBRARIES):
        return ""
    return f"{type(first).__name__} in {frame.filename}:{frame.lineno}"


def is_ours(filename: str) -> bool:
    """Whether a file is of orlaif itself."""
    return os.path.abspath(filename).startswith(_PACKAGE + os.sep)


def is_refusal(error: ValueError) -> bool:
    """Whether it began as a ValueError of orlaif itself, which refuses a value that it was given."""
    first = list(chain(error))[-1]
    frames = traceback.extract_tb(first.__traceback__)
    return isinstance(first, ValueError) and bool(frames) and is_ours(frames[-1].filename)


def telling_frame(error: BaseException) -> traceback.FrameSummary | None:
    """Where an error was raised, as near to the user's own code as it was."""
    frames = traceback.extract_tb(error.__traceback__)
    users = [f for f in frames if not is_ours(f.filename) and not any(part in f.filename for part in _LIBRARIES)]
    return users[-1] if users else frames[-1] if frames else None
