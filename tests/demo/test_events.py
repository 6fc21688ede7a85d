"""The clips of grounding: the shape is there in the seconds that the answer names, and in no others."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from orlaif.data.sampling import UniformSampling
from orlaif.data.video import decode_clip
from orlaif.demo.events import BAR, TIMES, EventsDataset, best_constant, make_events_model, render_event
from orlaif.policy import Policy
from orlaif.policy.encoding import ProcessorEncoder


@pytest.mark.parametrize(("start", "end"), [(0, 1), (3, 5), (5, 8)])
def test_the_shape_is_there_from_start_to_end(start: int, end: int) -> None:
    frames, _ = render_event(start, end, random.Random(1))
    bright = (frames[:, :, :-BAR].amax(1) > 100).flatten(1).any(1).tolist()
    assert bright == [2 * start <= k < 2 * end for k in range(16)]


def test_the_bar_is_as_long_as_the_seconds_that_have_begun() -> None:
    frames, _ = render_event(0, 1, random.Random(1))
    assert (frames[:, 0, -1] == 200).sum(1).tolist() == [6 * (k // 2 + 1) for k in range(16)]


def test_answers_are_when_the_shape_is_there(tmp_path: Path) -> None:
    dataset = EventsDataset(str(tmp_path), "test", size=3)
    dataset.prepare()
    for prompt in dataset.prompts:
        clip = decode_clip(prompt, UniformSampling(16))
        assert clip.duration_s == pytest.approx(8.0)
        start, end = map(int, (prompt.answer or "").split(" to "))
        assert end - start in (1, 2, 3)
        bright = (clip.frames[:, :, : -BAR - 4].float().amax(1) > 100).flatten(1).any(1).tolist()
        assert bright == [2 * start <= k < 2 * end for k in range(16)]


def test_late_answers_are_late_by_each_number_of_seconds_and_end_with_the_clip(tmp_path: Path) -> None:
    kept = EventsDataset(str(tmp_path), "train", size=60)
    kept.prepare()
    noted = EventsDataset(str(tmp_path), "train", size=60, late_s=2)
    lags = []
    for right, late in ((kept[k].answer or "", noted[k].answer or "") for k in range(60)):
        (start, end), (late_start, late_end) = ([int(time) for time in one.split(" to ")] for one in (right, late))
        assert late_start < late_end <= 8
        if end <= 6:
            assert late_start - start == late_end - end
            lags.append(late_start - start)
    assert set(lags) == {0, 1, 2}
    assert noted[0] == noted[0]


def test_the_best_constant_answer() -> None:
    # of "0 to 2": 0 to 2 has 1, 1 to 2 has 1/2; of "1 to 2": 1/2 and 1; of "0 to 1": 1/2 and 0
    assert best_constant(["0 to 2", "1 to 2", "0 to 1"]) == ("0 to 2", pytest.approx(2 / 3))
    lengths = [f"{start} to {start + length}" for length in (1, 2, 3) for start in range(9 - length)]
    assert best_constant(lengths)[1] < 0.32


def test_a_second_is_two_tokens_to_the_model(tmp_path: Path) -> None:
    """What its processor writes before each second is one token, and its picture another."""
    dataset = EventsDataset(str(tmp_path / "data"), "test", size=1)
    dataset.prepare()
    make_events_model(str(tmp_path / "model"))
    policy = Policy(str(tmp_path / "model"), dtype="float32")
    batch = ProcessorEncoder(policy.processor)([dataset[0]], [decode_clip(dataset[0], UniformSampling(16))])
    tokens = policy.processor.tokenizer.convert_ids_to_tokens(batch.input_ids[0].tolist())
    assert [token for token in tokens if token.startswith("<") and "seconds" in token] == list(TIMES)
    assert tokens.count("<|video_pad|>") == 8
    assert "<unk>" not in tokens
