"""Sheets of frames: what is on them, written once, bounded, whatever a kill left."""

from __future__ import annotations

import io
import itertools
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from orlaif.media import Picture, VideoClip
from orlaif.samples import frames as file
from orlaif.samples.frames import FrameStore, is_sheet, on_sheet, sheet


def clip(number: int, seed: int = 0, path: str = "made", height: int = 20, width: int = 30) -> VideoClip:
    """Frames of one colour each."""
    draw = torch.Generator().manual_seed(seed)
    colors = torch.randint(0, 256, (number, 3, 1, 1), generator=draw, dtype=torch.uint8)
    frames = colors.expand(-1, -1, height, width).contiguous()
    return VideoClip(frames=frames, pts_s=torch.arange(number, dtype=torch.float64), duration_s=number, path=path)


def test_frames_row_by_row_in_their_colors() -> None:
    one = clip(11)
    image = Image.open(io.BytesIO(sheet(one.frames))).convert("RGB")
    assert image.size == (8 * 30, 2 * 20)
    for i in range(11):
        seen = image.getpixel((i % 8 * 30 + 15, i // 8 * 20 + 10))
        assert seen == pytest.approx(one.frames[i, :, 10, 15].tolist(), abs=12)
    assert max(image.getpixel((3 * 30 + 15, 30))) <= 12  # past the last


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(320, 320, (160, 160)), (100, 1280, (320, 25)), (9000, 2, (1, 160)), (50, 60, (60, 50))],
)
def test_a_sheet_is_bounded_and_never_enlarged(height: int, width: int, size: tuple[int, int]) -> None:
    image = Image.open(io.BytesIO(sheet(clip(2, height=height, width=width).frames)))
    assert image.size == (2 * size[0], size[1])


def test_of_a_long_clip_evenly_spaced_ones() -> None:
    assert on_sheet(64) == list(range(64))
    places = on_sheet(1000)
    assert len(set(places)) == 64
    assert (places[0], places[-1]) == (0, 999)
    assert {b - a for a, b in itertools.pairwise(places)} == {15, 16}


def test_each_is_written_once_also_by_a_later_attempt(tmp_path: Path) -> None:
    for _ in range(2):
        store = FrameStore(tmp_path / "frames", 10**6)
        names = [
            store.keep("p", clip(4)),
            store.keep("p", clip(4)),
            store.keep("q", clip(4)),
            store.keep("p", clip(4, 1)),
        ]
        store.close()
        assert len(set(names)) == 3
        assert all(map(is_sheet, names))
    inodes = {path.name: path.stat().st_size for path in (tmp_path / "frames").iterdir()}
    assert inodes.keys() == set(names)
    assert store.held_bytes == sum(inodes.values())


def test_a_picture_has_a_sheet_of_itself(tmp_path: Path) -> None:
    store = FrameStore(tmp_path / "frames", 10**6)
    name = store.keep("p", Picture(pixels=clip(2).frames[0], path="a.png"))
    store.close()
    assert Image.open(tmp_path / "frames" / name).size == (30, 20)


def test_bounded_the_longest_unasked_for_go_and_what_a_kill_left(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    (folder / "0123.77.partial").write_bytes(b"R" * 500)
    os.utime(folder / "0123.77.partial", (1, 1))
    limit = 12 * len(sheet(clip(4).frames))
    store = FrameStore(folder, limit)
    names = []
    for i in range(40):
        names.append(store.keep(f"p{i}", clip(4, i)))
        store.keep("favorite", clip(4, 1000))
        while any(not one.done() for one in store._waiting):
            pass
        os.utime(folder / names[i], (100 + i, 100 + i))
        sizes = [path.stat().st_size for path in folder.iterdir()]
        assert sum(sizes) <= limit
        assert sum(sizes) == store.held_bytes
    store.close()
    left = {path.name for path in folder.iterdir()}
    assert store.keep("favorite", clip(4, 1000)) in left
    assert names[-1] in left
    assert names[0] not in left
    assert "0123.77.partial" not in left
    store.close()


def test_two_processes_share_what_is_there(tmp_path: Path) -> None:
    """Both ask for the same sheets in turns, and both remove: the folder stays within the sum of their limits."""
    limit = 6 * len(sheet(clip(4).frames))
    stores = [FrameStore(tmp_path, limit, processes=2) for _ in range(2)]
    for i in range(60):
        stores[i % 2].keep(f"p{i // 3}", clip(4, i // 3))
    for store in stores:
        store.close()
    held = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert 0 < held <= sum(store.held_bytes for store in stores) <= 2 * limit


def test_a_full_disk_is_said_by_the_next_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(file.os, "replace", full)
    store = FrameStore(tmp_path, 10**6)
    store.keep("p", clip(2))
    with pytest.raises(OSError, match="No space left"):
        store.close()


def test_one_that_is_larger_than_the_limit_is_left_out(tmp_path: Path) -> None:
    store = FrameStore(tmp_path / "frames", 10)
    store.keep("p", clip(2))
    store.close()
    assert list((tmp_path / "frames").iterdir()) == []
