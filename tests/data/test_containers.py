"""Clips from every common container, against the frames that ffmpeg decodes from first to last without a seek."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from orlaif.data.containers import container_of, cut_off
from orlaif.data.video import FpsSampling, PixelBudget, UniformSampling, _sought_clip, decode_clip
from orlaif.types import VideoError, VideoPrompt

pytestmark = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the program ffmpeg")

SIZE, FPS, SECONDS = "96x64", 25, 4
H264 = ("-c:v", "libx264", "-preset", "veryfast", "-bf", "3", "-pix_fmt", "yuv420p", "-g", "25")
VP8 = ("-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "8")
OPEN = ("-x264-params", "open-gop=1:keyint=25")
#: Containers by the options of their encoder.
MADE: dict[str, tuple[str, ...]] = {
    "plain.mp4": H264,
    "front.mp4": (*H264, "-movflags", "+faststart"),
    "fragments.mp4": (*H264, "-movflags", "frag_keyframe+empty_moov"),
    "plain.mkv": H264,
    "live.mkv": (*H264, "-f", "matroska", "-live", "1"),
    "live.webm": (*VP8, "-live", "1"),
    "clip.ts": H264,
    "clip.m2ts": H264,
    "one_group.ts": (*H264, "-g", "1000"),
    "open.ts": (*H264, *OPEN),
    "mpeg2.ts": ("-c:v", "mpeg2video", "-bf", "2", "-q:v", "4"),
    "mpeg4.ts": ("-c:v", "mpeg4", "-bf", "2", "-q:v", "4"),
    "mpeg1.mpg": ("-c:v", "mpeg1video", "-bf", "2", "-q:v", "4"),
    "mpeg2.mpg": ("-c:v", "mpeg2video", "-bf", "2", "-q:v", "4"),
    "mpeg2.vob": ("-c:v", "mpeg2video", "-bf", "2", "-q:v", "4"),
    "mpeg4.avi": ("-c:v", "mpeg4", "-bf", "2", "-q:v", "4"),
    "h264.avi": H264,
    "clip.flv": H264,
    "clip.wmv": ("-c:v", "wmv2"),
    "raw.h264": H264,
    "raw.m2v": ("-c:v", "mpeg2video", "-bf", "2", "-q:v", "4", "-f", "mpeg2video"),
    "raw.mjpeg": ("-c:v", "mjpeg", "-q:v", "3"),
    "moving.apng": ("-c:v", "apng", "-t", "1"),
    "moving.gif": ("-t", "1"),
}


def ffmpeg(*arguments: object) -> bytes:
    """Run ffmpeg, overwriting; what it writes to stdout."""
    words = ["ffmpeg", "-nostdin", "-v", "error", "-y", *map(str, arguments)]
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """From a name of ``MADE`` to the clip, made once: a moving pattern of 4 s."""
    folder = tmp_path_factory.mktemp("containers")

    def clip(name: str) -> Path:
        path = folder / name
        if not path.exists():
            ffmpeg("-f", "lavfi", "-i", f"testsrc2=size={SIZE}:rate={FPS}:duration={SECONDS}", *MADE[name], path)
        return path

    return clip


def all_frames(path: Path) -> Tensor:
    """Every frame, u8[n, 64, 96, 3]."""
    raw = ffmpeg("-i", path, "-map", "0:v:0", "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(-1, 64, 96, 3)


def numbers(frames: Tensor, truth: Tensor) -> list[int]:
    """Which frame of ``truth`` each of u8[F, 3, H, W] shows."""
    shown = frames.permute(0, 2, 3, 1).float()
    return [int((truth.float() - one).abs().mean((1, 2, 3)).argmin()) for one in shown]


@pytest.mark.parametrize("name", MADE)
def test_frames_on_display(name: str, made: Callable[[str], Path]) -> None:
    """Five wanted times, all frames at the file's rate, and a budget: each frame is the one on display."""
    path = made(name)
    truth = all_frames(path)
    seconds = len(truth) / FPS
    clip = decode_clip(str(path), UniformSampling(5))
    wanted = [seconds * (i + 0.5) / 5 for i in range(5)]
    assert clip.duration_s == pytest.approx(seconds, abs=1e-3)
    assert all(-1 / FPS - 1e-3 <= at - want <= 1e-3 for at, want in zip(clip.pts_s.tolist(), wanted, strict=True))
    assert numbers(clip.frames, truth) == [int(want * FPS + 1e-6) for want in wanted]
    every = decode_clip(str(path), FpsSampling(FPS, max_frames=1000))
    assert numbers(every.frames, truth) == list(range(len(truth)))
    small = decode_clip(str(path), UniformSampling(5), budget=PixelBudget(per_frame=2000))
    assert torch.equal(small.pts_s, clip.pts_s)
    assert small.frames[0, 0].numel() <= 2000


@pytest.mark.parametrize("name", ["plain.mp4", "plain.mkv", "fragments.mp4", "live.webm"])
def test_where_seeking_is_right_nothing_is_decoded_twice(name: str, made: Callable[[str], Path]) -> None:
    prompt = VideoPrompt(id="p", video=str(made(name)), question="q")
    sought = _sought_clip(prompt, UniformSampling(5), "cpu", None)
    assert sought is not None
    assert torch.equal(sought.frames, decode_clip(prompt, UniformSampling(5)).frames)


@pytest.mark.parametrize("ending", ["mkv", "mp4", "ts"])
def test_cut_by_stream_copy(ending: str, tmp_path: Path) -> None:
    """Open groups of pictures, cut at 1.3 s without decoding: what the first frames refer to is no longer there."""
    pattern = f"testsrc2=size={SIZE}:rate={FPS}:duration={SECONDS}"
    whole, cut = tmp_path / ("whole.ts" if ending == "ts" else "whole.mp4"), tmp_path / f"cut.{ending}"
    ffmpeg("-f", "lavfi", "-i", pattern, *H264, *OPEN, whole)
    ffmpeg("-ss", "1.3", "-i", whole, "-t", "2", "-c", "copy", cut)
    truth = all_frames(cut)
    clip = decode_clip(str(cut), FpsSampling(FPS, max_frames=1000))
    shown = numbers(clip.frames, truth)
    assert shown == sorted(set(shown))
    assert len(shown) >= 0.9 * len(truth)


@pytest.mark.parametrize("name", ["clip.ts", "clip.m2ts", "mpeg2.ts", "mpeg2.mpg"])
def test_a_recording_that_begins_in_the_midst(name: str, made: Callable[[str], Path], tmp_path: Path) -> None:
    """The last two thirds of the bytes: what can be decoded comes, in order, from the first whole frame on."""
    content = made(name).read_bytes()
    late = tmp_path / name
    late.write_bytes(content[len(content) // 3 :])
    truth = all_frames(late)
    clip = decode_clip(str(late), FpsSampling(FPS, max_frames=1000))
    shown = numbers(clip.frames, truth)
    assert shown == sorted(set(shown))
    assert len(shown) >= 0.9 * len(truth) > 20
    assert float(clip.pts_s[0]) == 0.0


#: A raw stream of H.264 or MPEG-2 does not say how long it is.
UNKNOWABLE = ("raw.h264", "raw.m2v")


@pytest.mark.parametrize("name", [name for name in MADE if name not in UNKNOWABLE])
@pytest.mark.parametrize("share", [0.41, 0.67, 0.9])
def test_a_file_that_was_cut_off(name: str, share: float, made: Callable[[str], Path], tmp_path: Path) -> None:
    """At a byte that is not the end of a packet: a VideoError that names the file, never a part of the clip."""
    content = made(name).read_bytes()
    cut = tmp_path / name
    cut.write_bytes(content[: int(len(content) * share) | 1])
    with pytest.raises(VideoError, match="cannot be decoded") as raised:
        decode_clip(str(cut), UniformSampling(5))
    assert raised.value.path == str(cut)
    with made(name).open("rb") as file:
        assert cut_off(file, container_of(file)) is None


@pytest.mark.parametrize("name", ["mpeg2.ts", "mpeg2.vob", "mpeg2.mpg"])
def test_a_stream_that_ends_in_the_midst_of_a_frame(name: str, made: Callable[[str], Path], tmp_path: Path) -> None:
    """Cut between two packets: the last one is full, so that more was to come."""
    content = made(name).read_bytes()
    size = 188 if name.endswith("ts") else 2048
    cut = tmp_path / name
    cut.write_bytes(content[: len(content) // 2 // size * size])
    with pytest.raises(VideoError, match="in the midst of a frame"):
        decode_clip(str(cut), UniformSampling(5))


def test_trailing_bytes_are_no_cut(made: Callable[[str], Path], tmp_path: Path) -> None:
    """Cameras append what is no box, and file systems zeros."""
    for name, more in (("plain.mp4", b"SEFHq\0\0\0SEFT"), ("plain.mp4", bytes(500)), ("moving.gif", bytes(7))):
        path = tmp_path / name
        path.write_bytes(made(name).read_bytes() + more)
        assert len(decode_clip(str(path), UniformSampling(5)).frames) == 5


def test_a_broken_middle_is_an_error_where_nothing_seeks(made: Callable[[str], Path], tmp_path: Path) -> None:
    """Zeros over the middle of an AVI."""
    content = bytearray(made("h264.avi").read_bytes())
    third = len(content) // 3
    content[third : 2 * third] = bytes(third)
    path = tmp_path / "broken.avi"
    path.write_bytes(content)
    with pytest.raises(VideoError, match=r"broken.avi: cannot be decoded"):
        decode_clip(str(path), UniformSampling(5))


def test_a_size_that_changes_on_the_way_is_scaled_to_the_first(tmp_path: Path) -> None:
    """As players do, and browsers' recordings need."""
    parts = [tmp_path / "a.ts", tmp_path / "b.ts"]
    for part, size in zip(parts, (SIZE, "48x32"), strict=True):
        ffmpeg("-f", "lavfi", "-i", f"testsrc2=size={size}:rate={FPS}:duration=1", *H264, part)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    clip = decode_clip(str(joined), UniformSampling(6))
    assert tuple(clip.frames.shape[1:]) == (3, 64, 96)
    assert len(clip.frames) == 6
    # The clock starts over at the second part, which is there as well.
    assert clip.duration_s == pytest.approx(2.0, abs=0.01)
    assert clip.pts_s.tolist() == pytest.approx([1 / 6, 0.5, 5 / 6, 7 / 6, 1.5, 11 / 6], abs=1 / FPS)
