"""Decoding: from a media file to the sampled frames of a clip, by torchcodec.

A sampling says *when* to look (seconds), the file says which frames are there: each wanted time gets the frame on
display at that time, and a frame that is wanted twice is taken once, so F may be smaller than asked for on short clips.
Whatever is wrong with a file ends in a :class:`~orlaif.types.VideoError` that names it; nothing stands in for it.

Shapes: frames u8[F, 3, H, W] at the file's own resolution unless a :class:`PixelBudget` shrinks them, pts_s f64[F].
"""

from __future__ import annotations

import logging
import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2.functional import resize

from orlaif.data.rows import is_url, open_file
from orlaif.types import VideoClip, VideoError, VideoPrompt

log = logging.getLogger(__name__)

FFMPEG_HELP = (
    "torchcodec finds no FFmpeg. It needs FFmpeg's shared libraries (version 4 to 9), for instance Debian's: "
    "apt-get install -y --no-install-recommends libavdevice-dev libavfilter-dev (or simply: ffmpeg)"
)


class Sampling(ABC):
    """When to look at a video: the seam for samplings of a user's own."""

    @abstractmethod
    def times(self, start_s: float, end_s: float) -> Tensor:
        """Wanted times f64[n] in seconds, ascending, within ``start_s`` (inclusive) to ``end_s`` (exclusive)."""


def _centres(start_s: float, end_s: float, n: int) -> Tensor:
    return start_s + (torch.arange(n, dtype=torch.float64) + 0.5) * ((end_s - start_s) / n)


def _at_least_two(name: str, value: int) -> None:
    if value < 2:
        raise ValueError(f"{name} is {value}; a clip needs 2 frames or more")


@dataclass(frozen=True)
class UniformSampling(Sampling):
    """``num_frames`` frames, each from the middle of an equal part of the clip."""

    num_frames: int = 16

    def __post_init__(self) -> None:
        _at_least_two("UniformSampling.num_frames", self.num_frames)

    def times(self, start_s: float, end_s: float) -> Tensor:
        """Centres of ``num_frames`` equal parts, f64[num_frames] in seconds."""
        return _centres(start_s, end_s, self.num_frames)


@dataclass(frozen=True)
class FpsSampling(Sampling):
    """``fps`` frames per second, at least ``min_frames`` and at most ``max_frames``, spread evenly."""

    fps: float = 2.0
    max_frames: int = 64
    min_frames: int = 2

    def __post_init__(self) -> None:
        if self.fps <= 0:
            raise ValueError(f"FpsSampling.fps is {self.fps}; it must be positive")
        _at_least_two("FpsSampling.min_frames", self.min_frames)
        if self.max_frames < self.min_frames:
            raise ValueError(f"FpsSampling.max_frames is {self.max_frames}, below min_frames = {self.min_frames}")

    def times(self, start_s: float, end_s: float) -> Tensor:
        """Centres of the parts, f64[n] in seconds."""
        n = round((end_s - start_s) * self.fps)
        return _centres(start_s, end_s, min(max(n, self.min_frames), self.max_frames))


@dataclass(frozen=True)
class SegmentSampling(Sampling):
    """``num_frames`` frames of the segment ``start_s`` to ``end_s`` of every video, narrower than the prompt's own."""

    start_s: float
    end_s: float
    num_frames: int = 16

    def __post_init__(self) -> None:
        _at_least_two("SegmentSampling.num_frames", self.num_frames)
        if not 0 <= self.start_s < self.end_s:
            raise ValueError(f"SegmentSampling is {self.start_s} to {self.end_s} s; it needs 0 <= start_s < end_s")

    def times(self, start_s: float, end_s: float) -> Tensor:
        """Centres of the parts, f64[num_frames] in seconds; raises ValueError where the segment lies outside."""
        start, end = max(start_s, self.start_s), min(end_s, self.end_s)
        if end <= start:
            raise ValueError(f"the segment {self.start_s} to {self.end_s} s lies outside {start_s} to {end_s} s")
        return _centres(start, end, self.num_frames)


def require_ffmpeg() -> None:
    """Raise RuntimeError, with the command that helps, where torchcodec has no FFmpeg to work with."""
    import torchcodec

    if torchcodec.ffmpeg_major_version is None:
        raise RuntimeError(FFMPEG_HELP)


def _cause(error: Exception) -> str:
    """First line of torchcodec's message, without the place in its C++ source."""
    line = str(error).strip().split("\n")[0]
    return re.sub(r"^.*\.cpp:\d+,\s*", "", line) or type(error).__name__


@dataclass(frozen=True)
class PixelBudget:
    """How large the frames of a clip may be; larger ones are shrunk, sides in proportion, where that is cheapest.

    Args:
        per_frame: most pixels of a frame.
        per_clip: most pixels of all frames together.
    """

    per_frame: int | None = None
    per_clip: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("per_frame", self.per_frame), ("per_clip", self.per_clip)):
            if value is not None and value < 1024:
                raise ValueError(f"PixelBudget.{name} is {value}; it must be 1024 pixels or more")

    def size(self, height: int, width: int, num_frames: int) -> tuple[int, int]:
        """Height and width within the budget, even numbers where they shrink; as they are where they fit."""
        most = min(self.per_frame or height * width, (self.per_clip or height * width * num_frames) // num_frames)
        if height * width <= most:
            return height, width
        scale = math.sqrt(most / (height * width))
        return max(2, int(height * scale) // 2 * 2), max(2, int(width * scale) // 2 * 2)


def _source(path: str) -> Any:
    """What the decoder opens: a path, or the open file behind a URL."""
    if is_url(path):
        try:
            return open_file(path)
        except ValueError as error:
            raise VideoError(path, str(error)) from error
    if os.path.isdir(path):
        raise VideoError(path, "is a directory, not a media file")
    if not os.path.exists(path):
        raise VideoError(path, "no such file")
    if os.path.getsize(path) == 0:
        raise VideoError(path, "the file is empty")
    return path


_fallbacks_told: set[str] = set()


def _tell_fallback(decoder: Any, path: str, device: str) -> None:
    """Warn, once per reason, where the GPU's decoder did not take the file and the CPU did."""
    fallback = getattr(decoder, "cpu_fallback", None)
    if device.startswith("cuda") and fallback:
        reason = str(fallback)
        if reason not in _fallbacks_told:
            _fallbacks_told.add(reason)
            log.warning("%s: decoded on the CPU although decode_device is %r: %s", path, device, reason)


def _segment(prompt: VideoPrompt, duration_s: float) -> tuple[float, float]:
    """The part of a video that a prompt asks about, in seconds; raises VideoError where there is none."""
    start, end = prompt.start_s or 0.0, duration_s if prompt.end_s is None else min(duration_s, prompt.end_s)
    if end <= start:
        raise VideoError(
            prompt.video, f"the segment from {start} to {prompt.end_s} s lies outside its {duration_s:.3f} s"
        )
    return start, end


def _opened(
    prompt: VideoPrompt, sampling: Sampling, device: str, budget: PixelBudget | None
) -> tuple[Any, tuple[int, int] | None]:
    """A decoder that shrinks frames while it converts them, on a CPU; on CUDA, the size to shrink them to."""
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize

    path = prompt.video
    source = _source(path)
    settings: dict[str, Any] = {"seek_mode": "exact", "num_ffmpeg_threads": 1, "device": device}
    if budget is None:
        return VideoDecoder(source, **settings), None
    meta = VideoDecoder(source, seek_mode="approximate", num_ffmpeg_threads=1).metadata
    if not meta.height or not meta.width:
        raise VideoError(path, "says no frame size")
    num_frames = len(sampling.times(*_segment(prompt, float(meta.duration_seconds or 0.0))))
    size = budget.size(meta.height, meta.width, num_frames)
    if size == (meta.height, meta.width):
        return VideoDecoder(source, **settings), None
    if not isinstance(source, str):
        source = _source(path)
    if device.startswith("cuda"):
        return VideoDecoder(source, **settings), size
    return VideoDecoder(source, transforms=[Resize(size)], **settings), None


def decode_clip(
    source: VideoPrompt | str,
    sampling: Sampling,
    device: str | torch.device = "cpu",
    budget: PixelBudget | None = None,
) -> VideoClip:
    """Decode the frames that a sampling wants from one video.

    Args:
        source: a prompt (its ``start_s`` and ``end_s`` bound the segment; its ``frames``, where it has them, are the
            video), or a path or URL.
        sampling: when to look.
        device: where to decode; ``cuda`` uses the GPU's decoder, and says so in the log where that falls back.
        budget: how large the frames may be.

    Returns:
        The clip, frames on ``device``.

    Raises:
        VideoError: the file is missing, empty, broken, has no video stream, or gives fewer than 2 frames.
        RuntimeError: FFmpeg's libraries are not installed.
    """
    device = str(device)
    prompt = VideoPrompt(id=source, video=source, question="?") if isinstance(source, str) else source
    if prompt.frames is not None:
        return _picture_clip(prompt, prompt.frames, sampling, device, budget)
    require_ffmpeg()
    path = prompt.video
    try:
        decoder, size = _opened(prompt, sampling, device, budget)
        meta = decoder.metadata
        first_s, last_s = float(meta.begin_stream_seconds or 0.0), float(meta.end_stream_seconds or 0.0)
        if not meta.num_frames:
            raise VideoError(path, "has no frames")
        # Segments count from the first frame on, as players show it; a file's own clock may start elsewhere.
        duration_s = last_s - first_s
        times = first_s + sampling.times(*_segment(prompt, duration_s))
        frames = decoder.get_frames_played_at(times.clamp(first_s, last_s - 1e-6).tolist())
    except (RuntimeError, ValueError, IndexError) as error:
        raise VideoError(path, f"cannot be decoded ({_cause(error)})") from error
    _tell_fallback(decoder, path, device)
    fresh = torch.ones(len(frames.pts_seconds), dtype=torch.bool)
    fresh[1:] = frames.pts_seconds.diff() > 0
    if int(fresh.sum()) < 2:
        raise VideoError(
            path, "gave 1 frame; a clip needs 2 or more (a still image, or a segment shorter than a frame?)"
        )
    pixels = frames.data if bool(fresh.all()) else frames.data[fresh.to(frames.data.device)]  # no copy without need
    return VideoClip(
        frames=pixels if size is None else resize(pixels, list(size), antialias=True),
        pts_s=(frames.pts_seconds[fresh].double() - first_s).cpu(),
        duration_s=duration_s,
        path=path,
    )


def _picture_clip(
    prompt: VideoPrompt, paths: Sequence[str], sampling: Sampling, device: str, budget: PixelBudget | None
) -> VideoClip:
    """The clip of a video that is given as pictures, each on display for 1 / ``frames_fps`` seconds."""
    duration_s = len(paths) / prompt.frames_fps
    try:
        times = sampling.times(*_segment(prompt, duration_s))
    except ValueError as error:
        raise VideoError(prompt.video, str(error)) from error
    wanted = sorted({min(int(t * prompt.frames_fps), len(paths) - 1) for t in times.tolist()})
    if len(wanted) < 2:
        raise VideoError(prompt.video, "gave 1 frame; a clip needs 2 or more")
    pictures = []
    for index in wanted:
        path = paths[index]
        try:
            source = _source(path)
            with open(source, "rb") if isinstance(source, str) else source as file:
                data = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
            pictures.append(decode_image(data, mode=ImageReadMode.RGB))
        except RuntimeError as error:
            raise VideoError(path, f"cannot be decoded ({_cause(error)})") from error
        if pictures[-1].shape != pictures[0].shape:
            own, first = (" x ".join(map(str, p.shape[1:])) for p in (pictures[-1], pictures[0]))
            raise VideoError(path, f"is {own} pixels, and the first picture of its video is {first}")
    frames = torch.stack(pictures)
    if budget is not None:
        size = budget.size(frames.shape[-2], frames.shape[-1], len(frames))
        frames = resize(frames, list(size), antialias=True)
    return VideoClip(
        frames=frames.to(device),
        pts_s=torch.tensor(wanted, dtype=torch.float64) / prompt.frames_fps,
        duration_s=duration_s,
        path=prompt.video,
    )
