"""Decoding a file from its first frame on, without a seek: for containers in which seeking finds the wrong frame.

Transport and program streams, AVI and raw streams have no index of times, and not everything that claims to have one
can be trusted: a seek lands a group of pictures late, or on a frame that refers to others. Read from the start, every
frame comes, in the order of display. Only frames that are wanted are converted to RGB.

Times are those of the frames, or, where the file has none (AVI, raw streams), those of an even rate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: Longest stretch in seconds that may be missing between two frames, or behind the last.
_HOLE_S = 0.5
#: Times beyond are FFmpeg's way to say that there is none.
_NO_TIME_S = 1e9


class UndecodableError(RuntimeError):
    """What keeps a file from being decoded, in words for a :class:`~orlaif.types.VideoError`."""


class _NoTimesError(Exception):
    """The frames do not say when they are shown."""


@dataclass(frozen=True)
class Index:
    """When the packets of a video stream say that frames are shown.

    Args:
        pts_s: f64[n], ascending, in seconds of the file's clock.
        end_s: when the last frame has been shown.
        reliable: whether these are times of display, which all frames have.
        said_s: the duration by the header; 0 where it says none.
    """

    pts_s: Tensor
    end_s: float
    reliable: bool
    said_s: float = 0.0

    @property
    def gap_s(self) -> float:
        """The usual time between two frames."""
        return float(self.pts_s.diff().median()) if len(self.pts_s) > 1 else self.end_s - float(self.pts_s[0])

    @property
    def is_even(self) -> bool:
        """Whether all frames are shown for the same time."""
        gaps = self.pts_s.diff()
        return bool((gaps - self.gap_s).abs().max() < 0.1 * self.gap_s) if len(gaps) else True

    def has_torn_end(self) -> bool:
        """Whether frames are missing among the last ones only, those that came in the file behind their successors."""
        gaps = self.pts_s.diff()
        body, tail = gaps[:-16], gaps[-16:]
        if not self.reliable or len(body) < 16:
            return False
        even = bool((body - body.median()).abs().max() < 0.5 * body.median())
        return even and bool(tail.max() > 1.5 * body.median())


def read_index(open_source: Callable[[], Any]) -> Index:
    """The index of a file, by reading its packets; nothing is decoded.

    Args:
        open_source: what :class:`torchcodec.decoders.Demuxer` opens, anew each time.

    Raises:
        UndecodableError: no video stream, or no frames.
        RuntimeError: from torchcodec, the file cannot be read.
    """
    from torchcodec.decoders import Demuxer

    stream: Any = Demuxer(open_source(), streams="video").streams[0]
    rate, said_s = stream.metadata.average_fps_from_header or 25.0, stream.metadata.duration_seconds_from_header or 0.0
    try:
        known = stream.scan()
        said, lasting, total = known.pts_seconds, known.duration_seconds, len(known)
    except RuntimeError:  # no seek at all in a raw stream; a broken file fails once more
        said = lasting = torch.zeros(0, dtype=torch.float64)
        total = sum(1 for _ in Demuxer(open_source(), streams="video"))
    if not total:
        raise UndecodableError("has no frames")
    valid = said.abs() < _NO_TIME_S
    pts = said[valid]
    reliable = len(pts) >= total - 1 and bool((pts.diff() > 0).all())
    if reliable:
        return Index(pts_s=pts, end_s=float((pts + lasting[valid]).max()), reliable=True, said_s=said_s)
    first, end = (float(pts.min()), float((pts + lasting[valid]).max())) if len(pts) else (0.0, 0.0)
    # Times that are missing or double stand for some frames only: only their range is worth something.
    gap = (end - first) / total
    # Closer together than the header's rate: a clock that starts over, as in recordings that were joined.
    gap = 1.0 / rate if end <= first or gap * rate < 1.05 else gap
    even = first + gap * torch.arange(total, dtype=torch.float64)
    return Index(pts_s=even, end_s=first + gap * total, reliable=False, said_s=said_s)


def straight_frames(
    open_source: Callable[[], Any],
    index: Index,
    counted: bool,
    steady: bool,
    wanted: Callable[[float], Tensor],
    size: Callable[[int, int, int], tuple[int, int]],
) -> tuple[Tensor, Tensor, float]:
    """The frames that are on display at the wanted times.

    Args:
        open_source: what :class:`torchcodec.decoders.Demuxer` opens, anew each time.
        index: of the same file.
        counted: the file has no times: its frames follow one another at those of the index.
        steady: frames come at a steady rate, so that a stretch without any is damage.
        wanted: from the duration in seconds to the wanted times f64[n], ascending, in seconds from the first frame.
        size: from a frame's height, its width and the number of wanted frames to the height and width that are wanted.

    Returns:
        Frames u8[F, 3, H, W], pts_s f64[F] in seconds from the first frame, and the duration in seconds.

    Raises:
        UndecodableError: nothing can be decoded, or nothing more from some time on.
    """
    try:
        return _Walk(open_source, index, counted, steady, size).frames(wanted)
    except _NoTimesError:
        return _Walk(open_source, index, True, steady, size).frames(wanted)


class _Walk:
    """One pass over a file; see :func:`straight_frames`."""

    def __init__(
        self,
        open_source: Callable[[], Any],
        index: Index,
        counted: bool,
        steady: bool,
        size: Callable[[int, int, int], tuple[int, int]],
    ) -> None:
        from torchcodec.decoders import ColorConverter

        self.open_source, self.index, self.size = open_source, index, size
        self.counted, self.steady = counted, steady
        self.converter = ColorConverter(device="cpu")
        self.number = 0
        self.pixels: list[Tensor] = []
        self.taken: list[float] = []

    def frames(self, wanted: Callable[[float], Tensor]) -> tuple[Tensor, Tensor, float]:
        """Frames, times and duration, as :func:`straight_frames` returns them."""
        shown = self._shown()
        before = next(shown, None)
        if before is None:
            raise UndecodableError("no frame of it can be decoded")
        first_s = before[0]
        duration_s = self.index.end_s - first_s
        times = [max(first_s, first_s + time) for time in wanted(duration_s).tolist()]
        self.number = len(times)
        place = 0
        for after in shown:
            while place < len(times) and times[place] < after[0] - 1e-6:
                self._check_hole(before[0], after[0], times[place])
                self._take(*before)
                place += 1
            if place == len(times):
                break
            before = after
        for time in times[place:]:
            self._check_hole(before[0], self.index.end_s, time)
            self._take(*before)
        pts_s = torch.tensor(self.taken, dtype=torch.float64) - first_s
        return torch.stack(self.pixels), pts_s, duration_s

    def _shown(self) -> Iterator[tuple[float, Any]]:
        """Every frame with the time from which on it is shown.

        What comes before the first whole frame of a file that was cut out of another one cannot be decoded and is left
        out, as players do; broken data further on is an error.
        """
        from torchcodec.decoders import Demuxer

        demuxer = Demuxer(self.open_source(), streams="video")
        stream: Any = demuxer.streams[0]
        decoder = stream.make_decoder(device="cpu", num_ffmpeg_threads=1)
        number, last_s = 0, float("-inf")

        def timed(frames: list[Any]) -> Iterator[tuple[float, Any]]:
            nonlocal number, last_s
            for frame in frames:
                time = self._time(number) if self.counted else frame.pts_seconds
                if not last_s < time < _NO_TIME_S:
                    raise _NoTimesError
                number, last_s = number + 1, time
                yield time, frame

        for packet in demuxer:
            try:
                frames = decoder.decode(packet)
            except RuntimeError as error:
                if number:
                    raise UndecodableError(f"its data are broken behind {last_s:.3f} s") from error
                continue
            yield from timed(frames)
        yield from timed(decoder.drain())

    def _time(self, number: int) -> float:
        """When the frame of this number is shown at an even rate."""
        pts = self.index.pts_s
        return float(pts[number]) if number < len(pts) else float(pts[-1]) + (number - len(pts) + 1) * self.index.gap_s

    def _check_hole(self, start_s: float, end_s: float, time: float) -> None:
        """Raise where frames between ``start_s`` and the wanted ``time`` should have come."""
        if time - start_s <= max(_HOLE_S, 2 * self.index.gap_s):
            return
        pts = self.index.pts_s
        missing = int(((pts > start_s + 1e-6) & (pts < end_s - 1e-6) & (pts <= time)).sum())
        if missing > 1 or self.steady:
            raise UndecodableError(f"nothing can be decoded from {start_s:.3f} to {end_s:.3f} s of its clock")

    def _take(self, time: float, frame: Any) -> None:
        """Convert a frame, unless it was the last one taken."""
        from torchvision.transforms.v2.functional import resize

        if self.taken and self.taken[-1] == time:
            return
        pixels = self.converter.convert(frame).data
        # A stream may change its size on the way; players scale to the first.
        size = (
            tuple(self.pixels[0].shape[-2:])
            if self.pixels
            else self.size(pixels.shape[-2], pixels.shape[-1], self.number)
        )
        if size != tuple(pixels.shape[-2:]):
            pixels = resize(pixels, list(size), antialias=True)
        self.pixels.append(pixels.contiguous())
        self.taken.append(time)
