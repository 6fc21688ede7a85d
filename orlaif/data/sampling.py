"""What is asked of a video: when to look, as wanted times in seconds, and how large frames may be.

Shapes: wanted times f64[n], ascending, in seconds from the start of the video.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor


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
    """``num_frames`` frames, each from the middle of an equal part of the clip.

    Args:
        num_frames: how many, 2 or more.
    """

    num_frames: int = 16

    def __post_init__(self) -> None:
        _at_least_two("UniformSampling.num_frames", self.num_frames)

    def times(self, start_s: float, end_s: float) -> Tensor:
        """Centres of ``num_frames`` equal parts, f64[num_frames] in seconds."""
        return _centres(start_s, end_s, self.num_frames)


@dataclass(frozen=True)
class FpsSampling(Sampling):
    """``fps`` frames per second, at least ``min_frames`` and at most ``max_frames``, spread evenly.

    Args:
        fps: frames per second of the clip.
        max_frames: of a long clip.
        min_frames: of a short clip, 2 or more.
    """

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
    """``num_frames`` frames of the segment ``start_s`` to ``end_s`` of every video, narrower than that of the prompt.

    Args:
        start_s: start of the segment, in seconds of the file's time line.
        end_s: its end, in seconds.
        num_frames: how many, 2 or more.
    """

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


@dataclass(frozen=True)
class StatedSampling(Sampling):
    """The frames on display at stated times, and the first and the last one of the clip.

    Args:
        times_s: seconds of the file's time line, in any order.
    """

    times_s: tuple[float, ...]

    def times(self, start_s: float, end_s: float) -> Tensor:
        """All of them, f64[n]; raises ValueError where one lies outside."""
        if outside := [time for time in self.times_s if not start_s <= time < end_s]:
            raise ValueError(f"{outside[0]} s lies outside {start_s} to {end_s:.3f} s")
        return torch.tensor(sorted({start_s, *self.times_s, end_s - 1e-3}), dtype=torch.float64)


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
