"""What is seen of a prompt: the frames of its video, or the pictures and clips of its parts in their order.

Shapes: F frames of a clip, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class VideoClip:
    """The frames that were sampled from one video.

    Args:
        frames: u8[F, 3, H, W], RGB, F >= 2, on the device that decoded them.
        pts_s: f64[F], presentation time of each frame in seconds from the start of the file's video stream, ascending.
        duration_s: length of the whole video stream in seconds.
        path: the file they come from.

    Raises:
        ValueError: shapes, dtypes or times are not as stated.
    """

    frames: Tensor
    pts_s: Tensor
    duration_s: float
    path: str

    def __post_init__(self) -> None:
        shape = tuple(self.frames.shape)
        _check(
            self.frames.dtype == torch.uint8 and self.frames.ndim == 4 and shape[1] == 3 and shape[0] >= 2,
            f"VideoClip.frames is {self.frames.dtype}{list(shape)} ({self.path}); expected uint8[F >= 2, 3, H, W]",
        )
        _check(
            self.pts_s.dtype == torch.float64 and tuple(self.pts_s.shape) == shape[:1],
            f"VideoClip.pts_s is {self.pts_s.dtype}{list(self.pts_s.shape)} ({self.path}); expected float64[F]",
        )
        _check(bool((self.pts_s.diff() > 0).all()), f"VideoClip.pts_s does not ascend ({self.path})")

    @property
    def items(self) -> tuple[Picture | VideoClip, ...]:
        """Itself alone: what a prompt about one video shows."""
        return (self,)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image.

    Args:
        pixels: u8[3, H, W], RGB.
        path: the file that it comes from.

    Raises:
        ValueError: shape or dtype are not as stated.
    """

    pixels: Tensor
    path: str

    def __post_init__(self) -> None:
        _check(
            self.pixels.dtype == torch.uint8 and self.pixels.ndim == 3 and self.pixels.shape[0] == 3,
            f"Picture.pixels is {self.pixels.dtype}{list(self.pixels.shape)} ({self.path}); expected uint8[3, H, W]",
        )


@dataclass(frozen=True, kw_only=True)
class Media:
    """What a prompt shows that is not about one video: nothing, images, several videos, or both.

    What looks at the frames of *the* clip is told in one sentence that there is none.

    Args:
        items: in the order of the prompt's parts; none for text alone.
    """

    items: tuple[Picture | VideoClip, ...] = ()

    def _no_clip(self, name: str) -> ValueError:
        kinds = ["video" if isinstance(item, VideoClip) else "image" for item in self.items]
        return ValueError(
            f"clip.{name} is asked for, and this prompt shows {', '.join(kinds) or 'neither image nor video'}; what "
            "looks at one clip has to look at clip.items here, or be given prompts about one video"
        )

    @property
    def frames(self) -> Tensor:
        """None: raises ValueError."""
        raise self._no_clip("frames")

    @property
    def pts_s(self) -> Tensor:
        """None: raises ValueError."""
        raise self._no_clip("pts_s")

    @property
    def duration_s(self) -> float:
        """None: raises ValueError."""
        raise self._no_clip("duration_s")

    @property
    def path(self) -> str:
        """None: raises ValueError."""
        raise self._no_clip("path")


#: What is seen of a prompt; ``items`` of either gives its pictures and clips.
Seen = VideoClip | Media
