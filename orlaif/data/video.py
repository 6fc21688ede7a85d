"""Decoding: from a media file to the sampled frames of a clip, by torchcodec.

A sampling says *when* to look (seconds), the file says which frames are there: each wanted time gets the frame on
display at that time, and a frame that is wanted twice is taken once, so F may be smaller than asked for on short clips.
MP4 and Matroska are decoded by seeking, and what comes is checked against their times; where it is not what was on
display, and in containers that have no index, the file is decoded straight through (``orlaif.data.straight``).
Whatever is wrong with a file ends in a :class:`~orlaif.types.VideoError` that names it; nothing stands in for it.

Shapes: frames u8[F, 3, H, W] at the file's own resolution unless a :class:`PixelBudget` shrinks them, pts_s f64[F].
"""

from __future__ import annotations

import logging
import os
import re
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from orlaif.data.containers import container_of, cut_off
from orlaif.data.pictures import read_picture, wanted_pictures
from orlaif.data.rows import is_url, open_file
from orlaif.data.sampling import FpsSampling, PixelBudget, Sampling, SegmentSampling, UniformSampling
from orlaif.data.straight import read_index, straight_frames
from orlaif.types import Prompt, VideoClip, VideoError, VideoPrompt

__all__ = [
    "FpsSampling",
    "PixelBudget",
    "Sampling",
    "SegmentSampling",
    "UniformSampling",
    "beyond_the_end",
    "decode_clip",
    "require_ffmpeg",
]

log = logging.getLogger(__name__)

FFMPEG_HELP = (
    "torchcodec finds no FFmpeg. It needs FFmpeg's shared libraries (version 4 to 9), for instance Debian's: "
    "apt-get install -y --no-install-recommends libavdevice-dev libavfilter-dev (or simply: ffmpeg)"
)


def require_ffmpeg() -> None:
    """Raise RuntimeError, with the command that helps, where torchcodec has no FFmpeg to work with."""
    import torchcodec

    if torchcodec.ffmpeg_major_version is None:
        raise RuntimeError(FFMPEG_HELP)


def plain_cause(error: Exception) -> str:
    """First line of torchcodec's message, without the place in its C++ source."""
    line = str(error).strip().split("\n")[0]
    return re.sub(r"^.*\.cpp:\d+,\s*", "", line) or type(error).__name__


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


def open_media(path: str) -> Any:
    """A media file, open for reading; raises VideoError where there is none."""
    source = _source(path)
    return open(source, "rb") if isinstance(source, str) else source


_told: set[str] = set()


def _tell_once(reason: str, message: str) -> None:
    """Warn of something that holds for many files, at the first of them."""
    if reason not in _told:
        _told.add(reason)
        log.warning(message)


def _tell_fallback(decoder: Any, path: str, device: str) -> None:
    """Warn, once per reason, where the GPU's decoder did not take the file and the CPU did."""
    fallback = getattr(decoder, "cpu_fallback", None)
    if device.startswith("cuda") and fallback:
        _tell_once(str(fallback), f"{path}: decoded on the CPU although decode_device is {device!r}: {fallback}")


def _wanted(prompt: Prompt, sampling: Sampling, duration_s: float) -> Tensor:
    """Wanted times f64[n] from the first frame on; raises VideoError where the prompt's segment lies outside."""
    start, end = prompt.start_s or 0.0, duration_s if prompt.end_s is None else min(duration_s, prompt.end_s)
    if end <= start:
        segment = f"from {start} s on" if prompt.end_s is None else f"from {start} to {prompt.end_s} s"
        raise VideoError(prompt.video, f"the segment {segment} lies outside its {duration_s:.3f} s")
    return sampling.times(start, end)


def beyond_the_end(prompt: Prompt, duration_s: float) -> str | None:
    """That a prompt's segment ends behind the end of its video, in words; None where it does not.

    Published data sets round their ends, so that up to 1 s is none.
    """
    if prompt.end_s is None or prompt.end_s <= duration_s + 1.0:
        return None
    return f"segment ends at {prompt.end_s:g} s, the video at {duration_s:g} s"


def _clip(prompt: Prompt, frames: Tensor, pts_s: Tensor, duration_s: float) -> VideoClip:
    if (beyond := beyond_the_end(prompt, duration_s)) is not None:
        _tell_once(f"end of {prompt.video}", f"{prompt.video}: {beyond}; the clip is of what is there")
    if len(frames) < 2:
        raise VideoError(
            prompt.video, "gave 1 frame; a clip needs 2 or more (a still image, or a segment shorter than a frame?)"
        )
    return VideoClip(frames=frames, pts_s=pts_s, duration_s=duration_s, path=prompt.video)


def decode_clip(
    source: Prompt | str,
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
        VideoError: the file is missing, empty, cut off, broken, has no video stream, or gives fewer than 2 frames; and
            whatever else fails while the clip is made.
        RuntimeError: FFmpeg's libraries are not installed.
    """
    prompt = VideoPrompt(id=source, video=source, question="?") if isinstance(source, str) else source
    if prompt.frames is None:
        require_ffmpeg()
    try:
        if prompt.frames is not None:
            return _picture_clip(prompt, prompt.frames, sampling, str(device), budget)
        with open_media(prompt.video) as file:
            container = container_of(file)
            missing = cut_off(file, container)
        if missing is not None:
            raise VideoError(prompt.video, f"cannot be decoded ({missing})")
        clip = _sought_clip(prompt, sampling, str(device), budget) if container in ("mp4", "matroska") else None
        return clip or _straight_clip(prompt, sampling, str(device), budget, container)
    except VideoError:
        raise
    except Exception as error:  # decoders raise whatever they like
        raise VideoError(prompt.video, f"cannot be decoded ({plain_cause(error)})") from error


def _sought_clip(prompt: Prompt, sampling: Sampling, device: str, budget: PixelBudget | None) -> VideoClip | None:
    """The clip by seeking; None where that fails, or finds other frames than those on display."""
    path, on_gpu = prompt.video, device.startswith("cuda")
    try:
        size = None if budget is None else _planned_size(prompt, sampling, budget)
        decoder = _decoder(path, device, size)
        meta = decoder.metadata
        first_s, last_s = float(meta.begin_stream_seconds), float(meta.end_stream_seconds)
        # Segments count from the first frame on, as players show it; a file's own clock may start elsewhere.
        duration_s = last_s - first_s
        if not meta.num_frames or not 0 < duration_s < 1e9:
            return None
        wanted = _wanted(prompt, sampling, duration_s)
        if budget is not None and (exact := budget.size(meta.height, meta.width, len(wanted))) != size:
            size, decoder = exact, _decoder(path, device, exact)  # the header told another duration
        times = first_s + wanted.clamp(0.0, duration_s - 1e-6)
        frames = decoder.get_frames_played_at(times.tolist())
    except (VideoError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        log.debug("%s: seeking fails (%s)", path, plain_cause(error))
        return None
    _tell_fallback(decoder, path, device)
    pts = frames.pts_seconds.double().cpu()
    if not _on_display(path, times, pts, frames.duration_seconds.double().cpu()):
        return None
    fresh = torch.ones(len(pts), dtype=torch.bool)
    fresh[1:] = pts.diff() > 0
    pixels = frames.data if bool(fresh.all()) else frames.data[fresh.to(frames.data.device)]  # no copy without need
    if on_gpu and size is not None and size != tuple(pixels.shape[-2:]):
        pixels = resize(pixels, list(size), antialias=True)
    return _clip(prompt, pixels, pts[fresh] - first_s, duration_s)


def _planned_size(prompt: Prompt, sampling: Sampling, budget: PixelBudget) -> tuple[int, int]:
    """Height and width within the budget, by what the header says of size and duration."""
    from torchcodec.decoders import get_container_metadata

    about = get_container_metadata(_source(prompt.video))
    if about.best_video_stream_index is None:
        raise VideoError(prompt.video, "cannot be decoded (it has no video stream)")
    header: Any = about.streams[about.best_video_stream_index]
    duration_s = header.duration_seconds_from_header
    if not duration_s:  # of browsers and live streams; Matroska knows that of its longest stream only
        index = read_index(lambda: _source(prompt.video))
        duration_s = index.end_s - float(index.pts_s[0])
    return budget.size(header.height, header.width, len(_wanted(prompt, sampling, duration_s)))


def _decoder(path: str, device: str, size: tuple[int, int] | None) -> Any:
    """A decoder; on a CPU it shrinks frames while it converts them."""
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize

    shrink = None if size is None or device.startswith("cuda") else [Resize(size)]
    return VideoDecoder(_source(path), seek_mode="exact", num_ffmpeg_threads=1, device=device, transforms=shrink)


def _on_display(path: str, times: Tensor, pts: Tensor, lasting: Tensor) -> bool:
    """Whether frames that begin at ``pts`` and last for ``lasting``, f64[n], are on display at ``times``, f64[n]."""
    if bool(((pts <= times + 1e-6) & (times < pts + lasting + 1e-6)).all()):
        return True
    index = read_index(lambda: _source(path))  # a frame may be shown for longer than its packet says
    places = torch.searchsorted(index.pts_s, pts - 1e-6).clamp(max=len(index.pts_s) - 1)
    ends = torch.cat([index.pts_s[1:], torch.tensor([torch.inf])])[places]
    known = (index.pts_s[places] - pts).abs() < 1e-6
    return index.reliable and bool((known & (pts <= times + 1e-6) & (times < ends + 1e-6)).all())


def _straight_clip(
    prompt: Prompt, sampling: Sampling, device: str, budget: PixelBudget | None, container: str
) -> VideoClip:
    """The clip by decoding from the first frame on."""
    path = prompt.video
    index = read_index(lambda: _source(path))
    if container in ("ts", "ps") and index.has_torn_end():
        # So does one that was cut without decoding (ffmpeg -c copy), of which what is there is all that was wanted.
        log.warning("%s: frames are missing among its last ones; if it was not cut on purpose, it is not whole", path)
    if container == "avi" and index.said_s - (index.end_s - float(index.pts_s[0])) > max(0.5, 0.01 * index.said_s):
        raise VideoError(path, f"cannot be decoded (its header says {index.said_s:.3f} s; frames are missing)")
    if device.startswith("cuda"):
        _tell_once(f"straight {container}", f"{path}: {container} is decoded straight through, on the CPU")
    frames, pts_s, duration_s = straight_frames(
        lambda: _source(path),
        index,
        steady=container in ("ts", "ps"),
        counted=container in ("avi", "mjpeg", "other") and index.is_even,
        wanted=lambda duration_s: _wanted(prompt, sampling, duration_s),
        size=lambda height, width, number: (height, width) if budget is None else budget.size(height, width, number),
    )
    return _clip(prompt, frames.to(device), pts_s, duration_s)


def _picture_clip(
    prompt: Prompt, paths: tuple[str, ...], sampling: Sampling, device: str, budget: PixelBudget | None
) -> VideoClip:
    """The clip of a video that is given as pictures, each on display for 1 / ``frames_fps`` seconds."""
    duration_s = len(paths) / prompt.frames_fps
    places = wanted_pictures(_wanted(prompt, sampling, duration_s), len(paths), prompt.frames_fps)
    frames: list[Tensor] = []
    first: tuple[int, ...] | None = None
    for path in (paths[place] for place in places):
        try:
            with open_media(path) as file:
                picture = read_picture(file)
            shape = tuple(picture.shape[1:])
            first = first or shape
            if shape != first:
                sizes = [" x ".join(map(str, one)) for one in (shape, first)]
                raise VideoError(path, f"is {sizes[0]} pixels, and the first picture of its video is {sizes[1]}")
            size = shape if budget is None else budget.size(shape[0], shape[1], len(places))
            frames.append(picture if size == shape else resize(picture, list(size), antialias=True))
        except VideoError:
            raise
        except Exception as error:  # decoders raise whatever they like
            raise VideoError(path, f"cannot be decoded ({plain_cause(error)})") from error
    pts_s = torch.tensor(places, dtype=torch.float64) / prompt.frames_fps
    return _clip(prompt, torch.stack(frames).to(device), pts_s, duration_s)
