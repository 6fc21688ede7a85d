"""Images that are frames of a video: which frame that is, how rows say it, and what a wrong time is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from orlaif.data.datasets import JsonlDataset
from orlaif.data.sampling import PixelBudget, UniformSampling
from orlaif.data.seen import decode_seen
from orlaif.data.video import decode_clip
from orlaif.demo.shapes import ShapesDataset
from orlaif.types import Image, Picture, Prompt, Text, Turn, VideoError


def seen_at(video: str, *times: float, budget: PixelBudget | None = None) -> list[torch.Tensor]:
    parts = (*(Image(video, at_s=time) for time in times), Text("what?"))
    prompt = Prompt(id="p", turns=(Turn("user", parts),))
    items = decode_seen(prompt, UniformSampling(4), budget=budget).items
    return [item.pixels for item in items if isinstance(item, Picture)]


def test_a_still_is_the_frame_on_display(shapes: ShapesDataset) -> None:
    """In the order of the prompt, twice the same where it is asked for twice, be it one alone or the very first."""
    video = shapes[0].video
    clip = decode_clip(video, UniformSampling(64))
    assert len(clip.frames) == 8
    begins = clip.pts_s.tolist()
    between = (begins[5] + begins[6]) / 2
    stills = seen_at(video, begins[6], between, begins[2], between)
    for still, place in zip(stills, (6, 5, 2, 5), strict=True):
        assert torch.equal(still, clip.frames[place])
    (alone,) = seen_at(video, 0.0)
    assert torch.equal(alone, clip.frames[0])
    (small,) = seen_at(video, 0.0, budget=PixelBudget(per_frame=10**6, per_clip=1024))
    assert small.shape[1] * small.shape[2] <= 1024


def test_a_still_behind_the_end_is_refused(shapes: ShapesDataset) -> None:
    with pytest.raises(VideoError, match=r"99\.0 s lies outside 0\.0 to"):
        seen_at(shapes[0].video, 0.0, 99.0)


def test_rows_say_it(tmp_path: Path) -> None:
    def row(**part: object) -> str:
        parts = [{"type": "image", "image": "v.mp4", **part}, {"type": "text", "text": "what?"}]
        (tmp_path / "a.jsonl").write_text(json.dumps({"id": "1", "messages": [{"role": "user", "content": parts}]}))
        return str(tmp_path / "a.jsonl")

    (prompt,) = JsonlDataset(row(at_s=1.5)).prompts
    assert prompt.media == (Image(str(tmp_path / "v.mp4"), at_s=1.5),)
    cases = [(-1, r"Image.at_s is -1 .*; it must be 0 or more"), ("1", "'at_s' is '1'; it must be a number")]
    for wrong, told in cases:
        with pytest.raises(ValueError, match=told):
            JsonlDataset(row(at_s=wrong)).load()
