"""Decoding real clips, and every kind of bad file: broken here, or hostile by birth."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.io import write_png
from torchvision.transforms.v2.functional import resize

from orlaif.data.video import (
    FpsSampling,
    PixelBudget,
    SegmentSampling,
    UniformSampling,
    _tell_fallback,
    decode_clip,
)
from orlaif.demo.shapes import ShapesDataset
from orlaif.policy.encoding import video_metadata
from orlaif.types import VideoError, VideoPrompt


@pytest.mark.parametrize(
    ("name", "size", "duration"),
    [
        ("nasa_13013.mp4", (270, 480), 13.013),
        ("nasa_13013_hdr.mp4", (180, 320), 13.0),
        ("nasa_13013_rotated.mp4", (480, 270), 0.567),  # turned upright
        ("h265_video.mp4", (128, 128), 1.0),
        ("av1_video.mkv", (360, 640), 5.0),
        ("test_non_zero_start.mp4", (112, 200), 0.4),
        ("testsrc2_odd_height_and_width_vp9.mp4", (241, 321), 1.0),
        ("testsrc2_vp9.webm", (720, 1280), 1.0),
    ],
)
def test_real_clips(shared_videos: Path, name: str, size: tuple[int, int], duration: float) -> None:
    clip = decode_clip(str(shared_videos / name), UniformSampling(8))
    assert tuple(clip.frames.shape) == (8, 3, *size)
    assert clip.duration_s == pytest.approx(duration, abs=1e-3)
    assert 0 <= float(clip.pts_s[0]) < float(clip.pts_s[-1]) < duration
    assert len(clip.frames.float().mean((1, 2, 3)).unique()) > 1


def test_each_wanted_time_gets_the_frame_on_display(shapes: ShapesDataset) -> None:
    """8 frames at 4 fps: the middles of four parts of 2 s lie at 0.25, 0.75, ... and show frames 1, 3, 5, 7."""
    clip = decode_clip(shapes[0], UniformSampling(4))
    assert clip.pts_s.tolist() == [0.25, 0.75, 1.25, 1.75]
    assert clip.duration_s == 2.0


def test_the_prompts_segment_bounds_the_frames(shapes: ShapesDataset) -> None:
    path = shapes[0].video
    prompt = VideoPrompt(id="p", video=path, question="q", start_s=0.5, end_s=1.25)
    assert decode_clip(prompt, UniformSampling(3)).pts_s.tolist() == [0.5, 0.75, 1.0]
    assert decode_clip(path, SegmentSampling(1.0, 2.0, num_frames=2)).pts_s.tolist() == [1.25, 1.75]
    with pytest.raises(VideoError, match=r"segment from 5.0 to 6.0 s lies outside"):
        decode_clip(VideoPrompt(id="p", video=path, question="q", start_s=5.0, end_s=6.0), UniformSampling(3))
    with pytest.raises(VideoError, match="lies outside"):
        decode_clip(path, SegmentSampling(3.0, 4.0))
    with pytest.raises(VideoError, match=r"the segment from 4.0 s on lies outside its 2.000 s"):
        decode_clip(VideoPrompt(id="p", video=path, question="q", start_s=4.0), UniformSampling(3))


def test_a_segment_that_ends_behind_the_video_is_told_once(
    shapes: ShapesDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(tmp_path / "copy.mp4")
    Path(path).write_bytes(Path(shapes[0].video).read_bytes())
    prompt = VideoPrompt(id="p", video=path, question="q", end_s=3.0)  # of 2 s: up to 1 s is rounding
    decode_clip(prompt, UniformSampling(2))
    assert not caplog.records
    for end_s in (200.0, 300.0):
        decode_clip(replace(prompt, end_s=end_s), UniformSampling(2))
    (record,) = caplog.records
    assert record.getMessage() == f"{path}: segment ends at 200 s, the video at 2 s; the clip is of what is there"


def test_fps_sampling_counts_frames_by_time(shared_videos: Path) -> None:
    path = str(shared_videos / "nasa_13013.mp4")
    assert len(decode_clip(path, FpsSampling(fps=2)).frames) == 26
    assert len(decode_clip(path, FpsSampling(fps=2, max_frames=10)).frames) == 10
    assert len(decode_clip(path, FpsSampling(fps=0.01)).frames) == 2


def test_a_frame_is_never_given_twice(shapes: ShapesDataset) -> None:
    clip = decode_clip(shapes[0], UniformSampling(50))
    assert len(clip.frames) == 8
    assert clip.pts_s.tolist() == [i / 4 for i in range(8)]


def broken(kind: str, good: bytes, folder: Path) -> Path:
    path = folder / f"{kind}.mp4"
    if kind == "directory":
        path.mkdir()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "garbage":
        path.write_bytes(os.urandom(5000))
    elif kind == "text":
        path.write_text("this is no video\n" * 100)
    elif kind == "truncated":
        path.write_bytes(good[: len(good) // 2])
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no such file"),
        ("empty", "the file is empty"),
        ("directory", "is a directory"),
        ("garbage", "cannot be decoded"),
        ("text", "cannot be decoded"),
        ("truncated", "cannot be decoded"),
    ],
)
def test_bad_files_are_named(kind: str, message: str, shapes: ShapesDataset, tmp_path: Path) -> None:
    path = broken(kind, Path(shapes[0].video).read_bytes(), tmp_path)
    with pytest.raises(VideoError, match=message) as raised:
        decode_clip(str(path), UniformSampling(8))
    assert raised.value.path == str(path)


def test_a_corrupt_middle_is_an_error(shared_videos: Path, tmp_path: Path) -> None:
    """Zeros over the middle half of the media data, index intact."""
    data = bytearray((shared_videos / "nasa_13013.mp4").read_bytes())
    data[len(data) // 4 : 3 * len(data) // 4] = bytes(len(data) // 2)
    path = tmp_path / "corrupt.mp4"
    path.write_bytes(data)
    with pytest.raises(VideoError, match=r"corrupt.mp4: cannot be decoded"):
        decode_clip(str(path), UniformSampling(8))


def test_audio_only(tmp_path: Path) -> None:
    from torchcodec.encoders import AudioEncoder

    path = str(tmp_path / "sound.mp4")
    AudioEncoder(torch.randn(1, 16000).clamp(-1, 1), sample_rate=16000).to_file(path)
    with pytest.raises(VideoError, match=r"sound.mp4: cannot be decoded"):
        decode_clip(path, UniformSampling(8))


def test_one_frame(tmp_path: Path) -> None:
    from torchcodec.encoders import VideoEncoder

    path = str(tmp_path / "still.mp4")
    VideoEncoder(torch.zeros(1, 3, 48, 48, dtype=torch.uint8), frame_rate=4).to_file(path)
    with pytest.raises(VideoError, match=r"still.mp4: gave 1 frame; a clip needs 2"):
        decode_clip(path, UniformSampling(8))


def test_without_ffmpeg_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, shapes: ShapesDataset) -> None:
    monkeypatch.setattr("torchcodec.ffmpeg_major_version", None)
    with pytest.raises(RuntimeError, match=r"apt-get install .*libavdevice"):
        decode_clip(shapes[0], UniformSampling(8))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UniformSampling(1), "num_frames is 1"),
        (lambda: FpsSampling(fps=0), "fps is 0"),
        (lambda: FpsSampling(max_frames=4, min_frames=8), "max_frames is 4, below min_frames = 8"),
        (lambda: SegmentSampling(2.0, 1.0), r"2.0 to 1.0 s"),
    ],
)
def test_mistakes_are_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# ---------------------------------------------------------------------------------------------------------- budgets


@pytest.mark.parametrize(
    ("budget", "size"),
    [
        (PixelBudget(per_frame=10_000), (74, 132)),  # 270 x 480 by sqrt(10000 / 129600)
        (PixelBudget(per_clip=80_000), (74, 132)),  # of 8 frames
        (PixelBudget(per_frame=10_000, per_clip=20_000), (36, 66)),
        (PixelBudget(per_frame=129_600), (270, 480)),
    ],
)
def test_frames_are_shrunk_into_their_budget(shared_videos: Path, budget: PixelBudget, size: tuple[int, int]) -> None:
    path = str(shared_videos / "nasa_13013.mp4")
    clip, whole = decode_clip(path, UniformSampling(8), budget=budget), decode_clip(path, UniformSampling(8))
    assert tuple(clip.frames.shape) == (8, 3, *size)
    assert torch.equal(clip.pts_s, whole.pts_s)
    expected = resize(whole.frames.float(), list(size), antialias=True)
    assert (clip.frames.float() - expected).abs().mean() < 2.0


def test_a_budget_counts_the_frames_of_a_sampling_by_time(shared_videos: Path) -> None:
    """13 s at 1 frame per second."""
    path = str(shared_videos / "nasa_13013.mp4")
    clip = decode_clip(path, FpsSampling(fps=1.0), budget=PixelBudget(per_clip=130_000))
    assert len(clip.frames) == 13
    assert 120_000 < clip.frames[:, 0].numel() <= 130_000


def test_a_rotated_clip_is_shrunk_upright(shared_videos: Path) -> None:
    path = str(shared_videos / "nasa_13013_rotated.mp4")
    clip = decode_clip(path, UniformSampling(4), budget=PixelBudget(per_frame=10_000))
    assert tuple(clip.frames.shape[-2:]) == (132, 74)


@pytest.mark.parametrize("kind", ["per_frame", "per_clip"])
def test_a_budget_that_is_none(kind: str) -> None:
    with pytest.raises(ValueError, match=f"PixelBudget.{kind} is 10"):
        PixelBudget(**{kind: 10})


# ----------------------------------------------------------------------------------------- lists of pictures, and URLs


def pictures(folder: Path, number: int = 10, side: int = 8) -> tuple[str, ...]:
    """Picture i is all 10 * i."""
    paths = []
    for i in range(number):
        path = folder / f"{i:02d}.png"
        write_png(torch.full((3, side, side), 10 * i, dtype=torch.uint8), str(path))
        paths.append(str(path))
    return tuple(paths)


def of_pictures(frames: tuple[str, ...], **fields: Any) -> VideoPrompt:
    return VideoPrompt(id="p", video="v", question="q", frames=frames, frames_fps=2.0, **fields)


def test_pictures_stand_for_a_video(tmp_path: Path) -> None:
    """Ten at 2 per second last 5 s; the middles of four parts, 0.625, 1.875, ..., show pictures 1, 3, 6 and 8."""
    prompt = of_pictures(pictures(tmp_path))
    clip = decode_clip(prompt, UniformSampling(4))
    assert clip.frames[:, 0, 0, 0].tolist() == [10, 30, 60, 80]
    assert clip.pts_s.tolist() == [0.5, 1.5, 3.0, 4.0]
    assert clip.duration_s == 5.0
    part = decode_clip(of_pictures(prompt.frames or (), start_s=1.0, end_s=2.0), UniformSampling(8))
    assert part.frames[:, 0, 0, 0].tolist() == [20, 30]
    assert tuple(decode_clip(prompt, UniformSampling(40)).frames.shape) == (10, 3, 8, 8)


def test_broken_pictures_are_named(tmp_path: Path) -> None:
    frames = pictures(tmp_path)
    Path(frames[3]).write_bytes(b"no picture")
    with pytest.raises(VideoError, match=r"03.png: cannot be decoded \(it is not a PNG, JPEG, WebP or GIF picture"):
        decode_clip(of_pictures(frames), UniformSampling(10))
    for brand, cause in (
        (b"isom", "it is a video \\(mp4\\), not a picture"),
        (b"avif", "it is an AVIF or HEIC picture"),
    ):
        Path(frames[3]).write_bytes(b"\0\0\0\x10ftyp" + brand + b"\0" * 4)
        with pytest.raises(VideoError, match=rf"03.png: cannot be decoded \({cause}"):
            decode_clip(of_pictures(frames), UniformSampling(10))
    Path(frames[3]).unlink()
    with pytest.raises(VideoError, match=r"03.png: no such file"):
        decode_clip(of_pictures(frames), UniformSampling(10))
    write_png(torch.zeros(3, 8, 6, dtype=torch.uint8), frames[3])
    with pytest.raises(VideoError, match=r"03.png: is 8 x 6 pixels, and the first picture of its video is 8 x 8"):
        decode_clip(of_pictures(frames), UniformSampling(10))
    with pytest.raises(VideoError, match="gave 1 frame"):
        decode_clip(of_pictures(frames, start_s=0.0, end_s=0.4), UniformSampling(10))


def test_a_clip_behind_a_url(shapes: ShapesDataset) -> None:
    """Any that fsspec knows; here, memory."""
    import fsspec

    with fsspec.open("memory://clips/a.mp4", "wb") as file:
        file.write(Path(shapes[0].video).read_bytes())
    here, there = (decode_clip(path, UniformSampling(4)) for path in (shapes[0].video, "memory://clips/a.mp4"))
    assert torch.equal(here.frames, there.frames)
    small = decode_clip("memory://clips/a.mp4", UniformSampling(4), budget=PixelBudget(per_frame=1024))
    assert tuple(small.frames.shape[-2:]) == (32, 32)
    with pytest.raises(VideoError, match=r"memory://clips/b.mp4: .*cannot be opened"):
        decode_clip("memory://clips/b.mp4", UniformSampling(4))


def test_a_decoder_that_falls_back_to_the_cpu_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    class Fallen:
        cpu_fallback = "codec not supported by NVDEC (test)"

    with caplog.at_level("WARNING"):
        for name in ("a.mp4", "b.mp4"):
            _tell_fallback(Fallen(), name, "cuda")
        _tell_fallback(Fallen(), "c.mp4", "cpu")
    assert len(caplog.records) == 1
    assert "a.mp4: decoded on the CPU although decode_device is 'cuda'" in caplog.text


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="needs the programs ffmpeg and ffprobe")
def test_times_of_a_variable_frame_rate_are_exact(tmp_path: Path) -> None:
    """Dense in the first second, sparse and irregular then: each wanted time gets the frame on display, by ffprobe."""
    path = str(tmp_path / "vfr.mp4")
    times = "setpts='if(lt(N,10),N/10,1+(N-10)/5)/TB'"
    source = ["-f", "lavfi", "-i", "testsrc=rate=10:duration=2:size=64x64", "-vf", times, "-fps_mode", "vfr"]
    subprocess.run(["ffmpeg", "-v", "error", *source, "-video_track_timescale", "1000", path], check=True)
    probe = ["ffprobe", "-v", "error", "-show_entries", "frame=pts_time", "-of", "csv=p=0", path]
    shown = subprocess.run(probe, capture_output=True, text=True, check=True).stdout.split()
    pts = [float(time.strip(",")) for time in shown]
    assert len({round(b - a, 3) for a, b in pairwise(pts)}) >= 3
    clip = decode_clip(path, UniformSampling(6))
    wanted = [(i + 0.5) * clip.duration_s / 6 for i in range(6)]
    expected = [max(time for time in pts if time <= t + 1e-9) for t in wanted]
    assert clip.pts_s.tolist() == pytest.approx(expected, abs=1e-6)
    assert video_metadata(clip).frames_indices == [round(1000 * time) for time in expected]


# -------------------------------------------------------------------------------------------- pictures of every kind


def saved(path: Path, image: Any, **settings: Any) -> str:
    """A picture, saved by Pillow."""
    image.save(path, **settings)
    return str(path)


def turned() -> dict[str, Any]:
    """EXIF: to be turned by 90 degrees, clockwise."""
    from PIL import Image

    exif = Image.Exif()
    exif[0x112] = 6
    return {"exif": exif}


@pytest.mark.parametrize(
    ("name", "mode", "colour", "expected"),
    [
        ("a.png", "I;16", 12 * 257, (12, 12, 12)),
        ("a.png", "L", 99, (99, 99, 99)),
        ("a.png", "LA", (120, 10), (120, 120, 120)),
        ("a.png", "RGBA", (200, 100, 50, 0), (200, 100, 50)),
        ("a.png", "1", 1, (255, 255, 255)),
        ("a.png", "P", 0, (0, 0, 0)),
        ("a.jpg", "L", 99, (99, 99, 99)),
        ("a.jpg", "CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("a.webp", "RGB", (255, 0, 0), (254, 0, 0)),
        ("a.gif", "RGB", (200, 100, 50), (200, 100, 50)),
    ],
)
def test_pictures_of_every_kind_are_8_bits_of_rgb(
    name: str, mode: str, colour: Any, expected: tuple[int, ...], tmp_path: Path
) -> None:
    from PIL import Image

    path = saved(tmp_path / name, Image.new(mode, (16, 8), colour))
    frames = decode_clip(of_pictures((path, path, path)), UniformSampling(3)).frames
    assert (frames.dtype, tuple(frames.shape)) == (torch.uint8, (3, 3, 8, 16))
    assert (frames.float() - torch.tensor(expected).view(1, 3, 1, 1)).abs().max() <= 2


def test_16_bit_rgb(tmp_path: Path) -> None:
    """Written by hand: 16 bits each of red 12, green 200 and blue 0, as 8 bits have them."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + struct.pack(">HHH", 12 * 257, 200 * 257, 0) * 4
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(row * 4)),
        (b"IEND", b""),
    ]
    path = tmp_path / "deep.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    frames = decode_clip(of_pictures((str(path),) * 2), UniformSampling(2)).frames
    assert frames[0, :, 0, 0].tolist() == [12, 200, 0]


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_pictures_are_upright(name: str, tmp_path: Path) -> None:
    """White on the left, stored to be turned clockwise: 16 wide and 8 high becomes 8 wide and 16 high, white on top."""
    from PIL import Image

    image = Image.new("RGB", (16, 8))
    image.paste((255, 255, 255), (0, 0, 8, 8))
    path = saved(tmp_path / name, image, **turned())
    frame = decode_clip(of_pictures((path, path)), UniformSampling(2)).frames[0]
    assert tuple(frame.shape) == (3, 16, 8)
    assert frame[:, :7].float().mean() > 240
    assert frame[:, 9:].float().mean() < 15


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.gif", "a.tiff", "several.gif", "several.png"])
def test_whatever_is_wrong_with_a_picture_names_it(name: str, tmp_path: Path) -> None:
    """Cut off at two thirds, of a kind that is not known, or several in one file."""
    from PIL import Image

    images = [Image.effect_noise((64, 48), 90 + i).convert("RGB") for i in range(3)]
    more = {"save_all": True, "append_images": images[1:]} if name.startswith("several") else {}
    path = saved(tmp_path / name, images[0], **more)
    if not more and not name.endswith("tiff"):
        content = Path(path).read_bytes()
        Path(path).write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(VideoError, match="cannot be decoded") as raised:
        decode_clip(of_pictures((path, path)), UniformSampling(2))
    assert raised.value.path == path


def test_whatever_fails_while_a_clip_is_made_names_the_file(monkeypatch: Any, shapes: ShapesDataset) -> None:
    """A decoder's own assertion, a lack of memory, a text that is none."""

    def broken(error: Exception) -> Any:
        def raising(*args: Any, **kwargs: Any) -> Any:
            raise error

        return raising

    for error in (AssertionError("unreachable"), MemoryError(), KeyError("streams"), OSError(5, "input/output error")):
        monkeypatch.setattr("orlaif.data.video.container_of", broken(error))
        with pytest.raises(VideoError, match="cannot be decoded") as raised:
            decode_clip(shapes[0], UniformSampling(4))
        assert raised.value.path == shapes[0].video
