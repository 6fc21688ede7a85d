"""Decoding real clips, and every kind of bad file: broken here, or hostile by birth."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from orlaif.data.shapes import ShapesDataset
from orlaif.data.video import FpsSampling, SegmentSampling, UniformSampling, decode_clip
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
