"""Frames that a policy saw, kept in the run's folder where no file has them: one WebP sheet for each clip or picture.

``samples/frames/<digest>.webp``: the frames row by row, ``COLUMNS`` in each. A sheet is named by what is on it and by
its prompt, so that it is written once, whatever the process and the attempt. A thread beside the step writes it, under
another name that is then changed.

Shapes: F frames of a clip, H x W pixels; n <= ``MOST`` of them are on its sheet.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from orlaif.media import Picture, VideoClip

#: Frames in a row of a sheet, and on a whole one; of longer clips, evenly spaced ones are kept.
COLUMNS, MOST = 8, 64
#: Pixels of a frame on a sheet, at most: height, width.
_LARGEST = (160, 320)
#: Sheets that may wait for the thread; a step that brings more waits for it.
_WAITING = 32
#: Seconds after which a file that is still under its first name is what a kill left.
_WRITING_S = 3600
_NAME = re.compile(r"[0-9a-f]{32}\.webp")


def on_sheet(number: int) -> list[int]:
    """Which of ``number`` frames are on a sheet: all, or ``MOST`` of them from the first to the last."""
    if number <= MOST:
        return list(range(number))
    return [round(i * (number - 1) / (MOST - 1)) for i in range(MOST)]


def is_sheet(name: str) -> bool:
    """Whether a file of this name may be one of the sheets."""
    return _NAME.fullmatch(name) is not None


def sheet(frames: Tensor) -> bytes:
    """Frames u8[n, 3, H, W] as one WebP image, made smaller where they are larger than 160 x 320 pixels."""
    from PIL import Image

    height, width = frames.shape[-2:]
    scale = min(1.0, _LARGEST[0] / height, _LARGEST[1] / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    columns = min(COLUMNS, len(frames))
    whole = Image.new("RGB", (columns * size[0], math.ceil(len(frames) / columns) * size[1]))
    for i, pixels in enumerate(frames.cpu().movedim(-3, -1).contiguous().numpy()):
        tile = Image.fromarray(pixels)
        if scale < 1:
            tile = tile.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
        whole.paste(tile, (i % columns * size[0], i // columns * size[1]))
    data = io.BytesIO()
    whole.save(data, "WEBP", quality=80, method=2)
    return data.getvalue()


def _name(prompt_id: str, item: Picture | VideoClip, frames: Tensor) -> str:
    """Of a sheet: by its prompt, by when its frames are, and by every so many of their pixels."""
    times = b"" if isinstance(item, Picture) else item.pts_s.cpu().numpy().tobytes()
    step = max(1, min(frames.shape[-2:]) // 16)
    digest = hashlib.sha256(f"{prompt_id}\n{item.path}\n{list(frames.shape)}\n".encode(errors="surrogatepass"))
    digest.update(times)
    digest.update(frames[..., ::step, ::step].cpu().contiguous().numpy().tobytes())
    return f"{digest.hexdigest()[:32]}.webp"


class FrameStore:
    """Keeps the sheets of one process.

    Args:
        folder: ``<run_dir>/samples/frames``; made where it is not there.
        limit_bytes: of all sheets that this process answers for; those that have not been asked for the longest go.
        processes: that share the folder, and answer for an equal part of what an earlier attempt left in it.

    Attributes:
        held_bytes: of what this process answers for.
    """

    def __init__(self, folder: Path, limit_bytes: int, processes: int = 1) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self.held_bytes = sum(size for _, size, _ in self._files()) // processes
        self._thread: ThreadPoolExecutor | None = None
        self._waiting: deque[Future[None]] = deque()

    def keep(self, prompt_id: str, item: Picture | VideoClip) -> str:
        """Have a sheet written, unless it is there.

        Args:
            prompt_id: whose clip it is.
            item: what the policy saw.

        Returns:
            Its name in the folder.

        Raises:
            OSError: an earlier sheet could not be written.
        """
        frames = item.pixels[None] if isinstance(item, Picture) else item.frames[_places(len(item.frames))]
        name = _name(prompt_id, item, frames)
        if self._thread is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="orlaif-frames")
        while self._waiting and (self._waiting[0].done() or len(self._waiting) >= _WAITING):
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(self._write, self.folder / name, frames))
        return name

    def close(self) -> None:
        """Wait for what is still to be written; raises as :meth:`keep`."""
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
        while self._waiting:
            self._waiting.popleft().result()

    def _write(self, path: Path, frames: Tensor) -> None:
        try:
            os.utime(path)  # asked for again: it goes later
            return
        except FileNotFoundError:
            pass
        data = sheet(frames)
        if len(data) > self.limit_bytes:
            return
        self._make_room(len(data))
        partial = path.with_name(f"{path.stem}.{os.getpid()}-{id(self)}.partial")
        partial.write_bytes(data)
        os.replace(partial, path)
        self.held_bytes += len(data)

    def _make_room(self, needed: int) -> None:
        """Remove the oldest until ``needed`` bytes fit, and an eighth of the limit more, so that this is rare."""
        if self.held_bytes + needed <= self.limit_bytes:
            return
        for asked_s, size, path in sorted(self._files()):
            if path.suffix == ".partial" and time.time() - asked_s < _WRITING_S:
                continue
            if self.held_bytes + needed + self.limit_bytes // 8 <= self.limit_bytes:
                return
            try:
                path.unlink()
            except FileNotFoundError:  # by another process, which counts it
                continue
            self.held_bytes -= size

    def _files(self) -> list[tuple[float, int, Path]]:
        """When last asked for, bytes, and path of all that is there, what a kill left half written too."""
        found = []
        if self.folder.is_dir():
            for entry in os.scandir(self.folder):
                try:
                    known = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                found.append((known.st_mtime, known.st_size, Path(entry.path)))
        return found


def _places(number: int) -> Tensor | slice:
    return slice(None) if number <= MOST else torch.tensor(on_sheet(number))
