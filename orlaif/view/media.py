"""Media of a run for its page: videos and images that its samples name, and frames as sheets, kept or made of a file.

What a folder of samples says is not trusted: only media are given out, and of the run's own files only its sheets.

Shapes: n frames on a sheet (``orlaif.samples.frames``).
"""

from __future__ import annotations

import mimetypes
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orlaif.samples.frames import is_sheet, on_sheet, sheet

#: How files begin that a browser shows: their place, and the bytes there.
_BEGINNINGS = (
    (4, b"ftyp"),  # MP4, MOV, AVIF
    (0, b"\x1aE\xdf\xa3"),  # WebM, Matroska
    (0, b"OggS"),
    (0, b"\xff\xd8\xff"),  # JPEG
    (0, b"\x89PNG"),
    (0, b"GIF8"),
    (8, b"WEBP"),
    (0, b"BM"),
)


def file_of(item: Mapping[str, Any]) -> Path | None:
    """The file of something that the policy saw; None where it is not on this machine, or no image or video by name."""
    said = item.get("path")
    if not isinstance(said, str) or ".." in Path(said).parts or not os.path.isfile(said):
        return None
    kind = (mimetypes.guess_type(said)[0] or "").split("/")[0]
    return Path(said) if kind in ("image", "video") else None


def is_playable(path: Path) -> bool:
    """Whether a file is, by how it begins, a video or an image that browsers show; whatever its name or link says."""
    try:
        with path.open("rb") as file:
            first = file.read(16)
    except OSError:
        return False
    return any(first[place : place + len(known)] == known for place, known in _BEGINNINGS)


def kept_sheet(folder: Path, name: Any) -> bytes | None:
    """A sheet that a run has kept.

    Args:
        folder: of the run.
        name: as its samples have it; nothing but a sheet's own name leads to a file, and a link to none.
    """
    if not isinstance(name, str) or not is_sheet(name):
        return None
    path = folder / "samples" / "frames" / name
    try:
        if path.resolve() != folder.resolve() / "samples" / "frames" / name:  # a link to elsewhere
            return None
        data = path.read_bytes()
    except OSError:
        return None
    return data if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None


def shown(item: Mapping[str, Any]) -> list[int]:
    """Which frames of an item are on its sheet, by their places among its times; of a picture the first."""
    times = item.get("times_s")
    return on_sheet(len(times)) if isinstance(times, list) else [0]


def made_sheet(item: Mapping[str, Any]) -> bytes | None:
    """A sheet of the frames that were seen, decoded from their file; None where that cannot be done."""
    path = file_of(item)
    if path is None:
        return None
    try:
        return sheet(_frames(path, item.get("times_s"), shown(item)))
    except Exception:  # whatever a broken file makes of a decoder: the page says that there are no frames
        return None


def _frames(path: Path, times_s: list[float] | None, places: list[int]) -> Any:
    """u8[n, 3, H, W]."""
    if times_s is None:
        from PIL import Image
        from torchvision.transforms.v2.functional import pil_to_tensor

        with Image.open(path) as image:
            image.draft("RGB", (640, 320))
            return pil_to_tensor(image.convert("RGB"))[None]
    from torchcodec.decoders import VideoDecoder

    return VideoDecoder(str(path)).get_frames_played_at([times_s[place] for place in places]).data
