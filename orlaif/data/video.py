"""Decoding: from a media file to the sampled frames of a clip, by torchcodec.

A sampling says *when* to look (seconds), the file says which frames are there: each wanted time gets the frame on
display at that time, and a frame that is wanted twice is taken once, so F may be smaller than asked for on short clips.
Whatever is wrong with a file ends in a :class:`~orlaif.types.VideoError` that names it; nothing stands in for it.

Shapes: frames u8[F, 3, H, W] at the file's own resolution (resizing is the processor's business), pts_s f64[F].
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from orlaif.types import VideoClip, VideoError, VideoPrompt

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


def decode_clip(source: VideoPrompt | str, sampling: Sampling, device: str | torch.device = "cpu") -> VideoClip:
    """Decode the frames that a sampling wants from one video.

    Args:
        source: a prompt (its ``start_s`` and ``end_s`` bound the segment) or a path.
        sampling: when to look.
        device: where to decode; ``cuda`` uses the GPU's decoder.

    Returns:
        The clip, frames on ``device``.

    Raises:
        VideoError: the file is missing, empty, broken, has no video stream, or gives fewer than 2 frames.
        RuntimeError: FFmpeg's libraries are not installed.
    """
    require_ffmpeg()
    from torchcodec.decoders import VideoDecoder

    path, start_s, end_s = (
        (source, None, None) if isinstance(source, str) else (source.video, source.start_s, source.end_s)
    )
    if os.path.isdir(path):
        raise VideoError(path, "is a directory, not a media file")
    if not os.path.exists(path):
        raise VideoError(path, "no such file")
    if os.path.getsize(path) == 0:
        raise VideoError(path, "the file is empty")
    try:
        decoder = VideoDecoder(path, seek_mode="exact", num_ffmpeg_threads=1, device=str(device))
        meta = decoder.metadata
        first_s, last_s = float(meta.begin_stream_seconds or 0.0), float(meta.end_stream_seconds or 0.0)
        if not meta.num_frames:
            raise VideoError(path, "has no frames")
        # Segments count from the first frame on, as players show it; a file's own clock may start elsewhere.
        duration_s = last_s - first_s
        start = start_s or 0.0
        end = min(duration_s, end_s if end_s is not None else duration_s)
        if end <= start:
            raise VideoError(path, f"the segment from {start} to {end_s} s lies outside its {duration_s:.3f} s")
        times = first_s + sampling.times(start, end)
        frames = decoder.get_frames_played_at(times.clamp(first_s, last_s - 1e-6).tolist())
    except (RuntimeError, ValueError, IndexError) as error:
        raise VideoError(path, f"cannot be decoded ({_cause(error)})") from error
    fresh = torch.ones(len(frames.pts_seconds), dtype=torch.bool)
    fresh[1:] = frames.pts_seconds.diff() > 0
    if int(fresh.sum()) < 2:
        raise VideoError(
            path, "gave 1 frame; a clip needs 2 or more (a still image, or a segment shorter than a frame?)"
        )
    return VideoClip(
        frames=frames.data[fresh.to(frames.data.device)],
        pts_s=(frames.pts_seconds[fresh].double() - first_s).cpu(),
        duration_s=duration_s,
        path=path,
    )
