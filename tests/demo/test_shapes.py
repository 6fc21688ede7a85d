from __future__ import annotations

import hashlib
import random
from collections import Counter
from pathlib import Path

import pytest
import torch

from orlaif.data.video import UniformSampling, decode_clip
from orlaif.demo import shapes as module
from orlaif.demo.shapes import COLORS, DIRECTIONS, KINDS, OPTIONS, ShapesDataset, render, words


def digest(folder: str) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def test_the_same_seed_gives_the_same_files_whatever_the_size(tmp_path: Path) -> None:
    a, b, c = (
        ShapesDataset(str(tmp_path / x), "test", seed=s, size=n) for x, s, n in (("a", 1, 10), ("b", 1, 5), ("c", 2, 5))
    )
    for dataset in (a, b, c):
        dataset.prepare()
    one, two, three = (digest(d.folder) for d in (a, b, c))
    videos = [name for name in two if name.endswith(".mp4")]
    assert len(videos) == 5
    assert all(one[name] == two[name] for name in videos)
    assert sum(one[name] != three[name] for name in videos) >= 4


def test_kinds_and_answers_are_in_equal_parts_and_splits_differ(data_root: str) -> None:
    rows = [ShapesDataset(data_root, "train", size=64)[i] for i in range(60)]
    assert Counter(p.category for p in rows) == dict.fromkeys(KINDS, 12)
    assert all(set(Counter(p.answer for p in rows if p.category == kind).values()) == {3} for kind in KINDS)
    assert all(p.answer in (p.options or ()) for p in rows)
    test = ShapesDataset(data_root, "test", size=20)
    clips = [decode_clip(d[0], UniformSampling(8)).frames for d in (test, ShapesDataset(data_root, "train", size=64))]
    assert not torch.equal(*clips)


def color_of(frame: torch.Tensor, x: int, y: int) -> str:
    pixel = frame[:, y, x].float()
    return min(COLORS, key=lambda name: float((pixel - torch.tensor(COLORS[name]).float()).norm()))


@pytest.mark.parametrize("answer", OPTIONS["order"])
def test_order_is_told_by_time_alone(answer: str) -> None:
    frames, _ = render("order", answer, random.Random(5))
    bright = (frames.amax(1) > 100).flatten(1).sum(1)
    assert bright[3] < bright[4]  # the second shape appears half way
    ys, xs = torch.nonzero(frames[0].amax(0) > 100, as_tuple=True)
    assert color_of(frames[0], int(xs.float().mean()), int(ys.float().mean())) == answer


@pytest.mark.parametrize("answer", OPTIONS["direction"])
def test_direction_is_what_the_centre_of_mass_does(answer: str) -> None:
    frames, _ = render("direction", answer, random.Random(3))
    centres = [torch.nonzero(f.amax(0) > 100).float().mean(0) for f in (frames[0], frames[-1])]
    dy, dx = (centres[1] - centres[0]).tolist()
    sx, sy = DIRECTIONS[answer]
    assert dx * sx + dy * sy > 15
    assert abs(dx * sy + dy * sx) < 1


@pytest.mark.parametrize("answer", OPTIONS["count"])
def test_count_is_the_number_of_filled_quarters(answer: str) -> None:
    frames, _ = render("count", answer, random.Random(3))
    filled = sum(int(frames[0].amax(0)[y, x]) > 100 for x in (12, 36) for y in (12, 36))
    assert filled == OPTIONS["count"].index(answer) + 1


def test_real_h264_survives_the_encoder(data_root: str) -> None:
    """Decoded pixels are those drawn, up to what 4:2:0 and compression do."""
    from torchcodec.decoders import VideoDecoder

    dataset = ShapesDataset(data_root, "train", size=64)
    drawn, question = render("color", dataset[0].answer or "", random.Random("0/train/0"))
    assert question == dataset[0].question
    assert VideoDecoder(dataset[0].video).metadata.codec == "h264"
    decoded = decode_clip(dataset[0], UniformSampling(8)).frames
    assert float((decoded.float() - drawn.float()).abs().mean()) < 6


def test_an_interrupted_rendering_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = ShapesDataset(str(tmp_path), "test", size=12)
    real, count = module.encode, Counter()

    def fails_at_seven(frames: torch.Tensor, path: str) -> None:
        count["calls"] += 1
        if count["calls"] == 7:
            raise KeyboardInterrupt
        real(frames, path)

    monkeypatch.setattr(module, "encode", fails_at_seven)
    with pytest.raises(KeyboardInterrupt):
        dataset.prepare()
    assert not Path(dataset.path).exists()
    there = len(list(Path(dataset.folder).rglob("0*.mp4")))
    assert 0 < there < 12
    count.clear()
    dataset.prepare()
    assert count["calls"] == 12 - there  # what was there is not rendered again
    count.clear()
    dataset.prepare()
    assert count["calls"] == 0
    assert len(dataset) == 12


def test_words_cover_questions_and_answers(shapes: ShapesDataset) -> None:
    known = set(words())
    for prompt in (shapes[i] for i in range(len(shapes))):
        assert set(prompt.question.split()) <= known
        assert set(prompt.options or ()) <= known


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="split is 'dev'"):
        ShapesDataset(str(tmp_path), "dev")
    with pytest.raises(ValueError, match="size is 0"):
        ShapesDataset(str(tmp_path), "test", size=0)
