"""Prompts of every kind in one batch: what the model says of each is what it says of it alone.

And a processor that leaves a part out is found out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from orlaif.policy import Policy
from orlaif.policy.encoding import ProcessorEncoder
from orlaif.prompt import assistant, user
from orlaif.types import (
    Completions,
    Image,
    Media,
    Picture,
    Prompt,
    PromptBatch,
    Seen,
    Video,
    VideoClip,
    VideoError,
    VideoPrompt,
)
from tests import zoo


def noise(path: str, *shape: int) -> Tensor:
    seed = int.from_bytes(path.encode(), "little") % 1000
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def picture(path: str, height: int = 56, width: int = 84) -> Picture:
    return Picture(pixels=noise(path, 3, height, width), path=path)


def clip(path: str, frames: int = 4) -> VideoClip:
    pts_s = torch.arange(frames, dtype=torch.float64) * 2
    return VideoClip(frames=noise(path, frames, 3, 56, 56), pts_s=pts_s, duration_s=2.0 * frames, path=path)


#: A prompt of each kind, and what is seen of it; two videos are of the same length for models that stack them.
KINDS: dict[str, tuple[Prompt, Seen]] = {
    "text": (Prompt(id="text", question="what is a cat ?"), Media()),
    "image": (Prompt(id="image", turns=(user(Image("a"), "what color is it"),)), Media(items=(picture("a"),))),
    "two images": (
        Prompt(id="two images", turns=(user("first", Image("a"), "and then", Image("b"), "what is this"),)),
        Media(items=(picture("a"), picture("b", 84, 56))),
    ),
    "video": (VideoPrompt(id="video", video="v", question="what color is it ?"), clip("v")),
    "two videos": (
        Prompt(id="two videos", turns=(user(Video("v"), "or", Video("w"), "which"),)),
        Media(items=(clip("v"), clip("w"))),
    ),
    "turns": (
        VideoPrompt(id="turns", video="w", question="and now", history=(("what is this", "a cat"),)),
        clip("w"),
    ),
    "a video later": (
        Prompt(id="later", turns=(user("what is this"), assistant("a cat"), user(Video("v"), "and this"))),
        clip("v"),
    ),
    "both": (
        Prompt(id="both", turns=(user(Image("a"), "like", Video("w"), "what is it ?"),)),
        Media(items=(picture("a"), clip("w"))),
    ),
}


def encoded(policy: Policy, *kinds: str) -> PromptBatch:
    """Prompts of these kinds, in the precision of the policy."""
    batch = ProcessorEncoder(policy.processor, family=policy.family)(
        [KINDS[kind][0] for kind in kinds], [KINDS[kind][1] for kind in kinds]
    )
    dtype = getattr(torch, policy.dtype)

    def cast(value: Any) -> Any:
        if isinstance(value, list):
            return [cast(one) for one in value]
        return value.to(dtype) if value is not None and value.is_floating_point() else value

    return replace(batch, mm_inputs={name: cast(value) for name, value in batch.mm_inputs.items()})


def alone(policy: Policy, kind: str, ids: Tensor) -> Tensor:
    """Log-probs f[T] of a completion i64[T] behind one prompt, by transformers' own forward and numbering."""
    return zoo.alone(policy, encoded(policy, kind), ids)


def gradients(policy: Policy, logps: Tensor, mask: Tensor) -> dict[str, Tensor]:
    policy.network.zero_grad()
    weights = torch.linspace(-1, 1, logps.numel(), dtype=logps.dtype).view_as(logps)
    (logps * weights).masked_fill(~mask, 0.0).sum().backward()
    return {name: p.grad.clone() for name, p in policy.network.named_parameters() if p.grad is not None}


def beside(ours: tuple[Tensor, dict[str, Tensor]], theirs: tuple[Tensor, dict[str, Tensor]]) -> tuple[float, float]:
    """Largest difference of a log-prob, in nats, and of a gradient, as a part of the largest."""
    assert ours[1].keys() == theirs[1].keys()
    largest = max(float(grad.abs().max()) for grad in theirs[1].values())
    of_gradients = max(float((ours[1][name] - grad).abs().max()) for name, grad in theirs[1].items())
    return float((ours[0] - theirs[0]).abs().max()), of_gradients / largest


@pytest.mark.parametrize("prefix", ["shared", "duplicate"])
@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl", "qwen3_5", "llava_onevision"])
def test_a_mixed_batch_is_its_prompts_alone(family: str, prefix: Any) -> None:
    """In float64, by both layouts: beside batches of one, and beside transformers' own forward and numbering.

    The recurrence of Qwen3.5 is in float32 whatever the model is in, and a row goes through it in two pieces.
    """
    policy = Policy(zoo.folder_of(family), dtype="float64", prefix=prefix).load()
    policy.network.train()
    completions: Completions = zoo.answers(policy, len(KINDS))
    p, g, t = completions.ids.shape

    def made(logps: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logps = logps.masked_fill(~completions.mask, 0.0)
        return logps.detach(), gradients(policy, logps, completions.mask)

    mixed = made(policy.completion_logps(encoded(policy, *KINDS), completions))
    one_by_one = [
        policy.completion_logps(encoded(policy, kind), completions.of_prompts(torch.tensor([i])))
        for i, kind in enumerate(KINDS)
    ]
    assert max(beside(mixed, made(torch.cat(one_by_one)))) < 1e-6
    rows = [
        torch.nn.functional.pad(alone(policy, kind, ids[mask]), (0, t - int(mask.sum())))
        for i, kind in enumerate(KINDS)
        for ids, mask in zip(completions.ids[i], completions.mask[i], strict=True)
    ]
    theirs = made(torch.stack(rows).view(p, g, t))
    assert max(beside(mixed, theirs)) < (2e-5 if family == "qwen3_5" else 1e-6)


#: What is swapped in a mixed batch: kind of prompt, and place of the image or video in it.
SWAPS = [
    *(("image", 0), ("two images", 0), ("two images", 1), ("video", 0), ("two videos", 0), ("two videos", 1)),
    *(("turns", 0), ("a video later", 0), ("both", 0), ("both", 1), ("both turns", 0), ("both turns", 1)),
]


@pytest.mark.parametrize("family", ["qwen3_vl", "llava_onevision"])
def test_every_part_counts_in_a_mixed_batch(family: str) -> None:
    """Another image or video, also the second of two and one of an earlier turn: its prompt alone is told otherwise."""
    policy = Policy(zoo.folder_of(family), dtype="float32").load()
    turns = (user(Video("v"), "what is this"), assistant("a cat"), user(Video("w"), "and this"))
    kinds = {**KINDS, "both turns": (Prompt(id="both turns", turns=turns), Media(items=(clip("v"), clip("w"))))}
    completions = zoo.answers(policy, len(kinds))
    encoder = ProcessorEncoder(policy.processor, family=policy.family)

    def logps(kind: str = "", place: int = 0) -> Tensor:
        seen = {name: one for name, (_, one) in kinds.items()}
        if kind:
            items = list(seen[kind].items)
            one = items[place]
            items[place] = picture("z", *one.pixels.shape[1:]) if isinstance(one, Picture) else clip("z")
            first = items[0]
            alone = kinds[kind][0].video and isinstance(first, VideoClip)
            seen[kind] = first if alone else Media(items=tuple(items))
        with torch.no_grad():
            batch = encoder([prompt for prompt, _ in kinds.values()], list(seen.values()))
            return policy.completion_logps(batch, completions).masked_fill(~completions.mask, 0.0)

    before = logps()
    for kind, place in SWAPS:
        changed = (logps(kind, place) - before).abs().flatten(1).amax(1)
        for name, by in zip(kinds, changed.tolist(), strict=True):
            assert by > 1e-4 if name == kind else by < 1e-5, (kind, place, name, by)


def test_parts_are_rendered_in_their_order() -> None:
    """A video after the words that lead to it, and one before its words, are two prompts."""
    encoder = ProcessorEncoder(Policy(zoo.folder_of("qwen3_vl"), dtype="float32").load().processor)
    behind = Prompt(id="1", turns=(user("what is in", Video("v")),))
    before = Prompt(id="1", turns=(user(Video("v"), "what is in"),))
    assert encoder.render(before) == encoder.render(VideoPrompt(id="1", video="v", question="what is in"))
    assert "what is in<|video_pad|>" in encoder.render(behind)
    assert "<|video_pad|>what is in" in encoder.render(before)


def test_a_processor_that_leaves_an_image_out_is_found_out() -> None:
    """SmolVLM's keeps images and the frames of videos under one name: beside a video, an image is not there."""
    policy = Policy(zoo.folder_of("smolvlm"), dtype="float32").load()
    with pytest.raises(VideoError, match="a: the model's processor leaves it out of a prompt that shows 1 image and 1"):
        encoded(policy, "both")
    encoded(policy, "two images", "image", "text", "video")


def test_a_processor_that_cannot_stack_two_videos_says_so() -> None:
    """LLaVA-OneVision's stacks the frames of all videos of a prompt."""
    policy = Policy(zoo.folder_of("llava_onevision"), dtype="float32").load()
    prompt, _ = KINDS["two videos"]
    with pytest.raises(VideoError, match="v: the model's processor does not take 4 frames of 56 x 56, 8 fra"):
        ProcessorEncoder(policy.processor)([prompt], [Media(items=(clip("v"), clip("w", 8)))])


def test_who_looks_at_the_one_clip_is_told_that_there_is_none() -> None:
    with pytest.raises(ValueError, match=r"clip.frames is .* this prompt shows image, video; .* clip.items"):
        _ = KINDS["both"][1].frames
    with pytest.raises(ValueError, match="this prompt shows neither image nor video"):
        _ = KINDS["text"][1].pts_s
