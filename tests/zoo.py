"""Tiny models of all families, two real clips of unequal length and size, what a model says of a sequence alone."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from orlaif.data.video import UniformSampling, decode_clip
from orlaif.policy import Policy
from orlaif.policy.asking import per_token
from orlaif.policy.encoding import ProcessorEncoder
from orlaif.policy.prefix.probe import random_tokens
from orlaif.tiny.tokens import WORDS
from orlaif.types import Completions, PromptBatch, VideoClip, VideoPrompt
from tests.conftest import SHARED_VIDEOS, random_completions, reads_media
from tests.families import made, original_numbering

QUESTIONS = ("what color is it ?", "what animal is in the clip and what does it mean")


@functools.cache
def folder_of(model_type: str) -> str:
    """A family's tiny model, made once; gone with the process."""
    return made(model_type, str(Path(_root().name) / model_type), WORDS)


@functools.cache
def _root() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="orlaif-zoo-")


@functools.cache
def clips() -> tuple[VideoClip, VideoClip]:
    """Four frames of a rocket, eight of a test picture that begins late; noise where nothing can decode them."""
    made = []
    for name, frames, size in (("nasa_13013.mp4", 4, (64, 96)), ("test_non_zero_start.mp4", 8, (96, 64))):
        if SHARED_VIDEOS.is_dir() and reads_media():
            clip = decode_clip(str(SHARED_VIDEOS / name), UniformSampling(frames))
            pixels, pts_s, duration_s = clip.frames.float(), clip.pts_s, clip.duration_s
        else:
            pixels = torch.rand(frames, 3, *size, generator=torch.Generator().manual_seed(frames)) * 255
            pts_s, duration_s = torch.arange(frames, dtype=torch.float64), float(frames)
        small = interpolate(pixels, size, mode="area").round().to(torch.uint8)
        made.append(VideoClip(frames=small, pts_s=pts_s, duration_s=duration_s, path=name))
    return made[0], made[1]


def encoded(policy: Policy, *places: int) -> PromptBatch:
    """Prompts about the :func:`clips` at ``places``, in the precision of the policy."""
    prompts = [VideoPrompt(id=str(i), video=clips()[i].path, question=QUESTIONS[i]) for i in places]
    encoder = ProcessorEncoder(policy.processor, family=policy.family)
    batch = encoder(prompts, [clips()[i] for i in places])
    dtype = getattr(torch, policy.dtype)

    def cast(value: Any) -> Any:
        if isinstance(value, list):
            return [cast(one) for one in value]
        return value.to(dtype) if value.is_floating_point() else value

    return replace(batch, mm_inputs={name: cast(value) for name, value in batch.mm_inputs.items()})


def answers(policy: Policy, p: int, g: int = 2, t: int = 3) -> Completions:
    """Random ragged completions of ordinary tokens: models count the marks of media in what they number themselves."""
    drawn = random_completions(policy, p, g, t)
    return replace(drawn, ids=random_tokens(policy.processor, policy.placeholder_ids, (p, g, t)))


def alone(policy: Policy, batch: PromptBatch, ids: Tensor) -> Tensor:
    """Log-probs f[T] of a completion i64[T] behind one prompt: transformers' forward, its own numbering, no padding."""
    t = len(ids)
    given = policy.family.inputs(policy.network, batch)
    given |= {name: pad(value, (0, t)) for name, value in per_token(batch, given).items()}
    tokens = torch.cat([batch.input_ids[0], ids])[None]
    with original_numbering(policy):
        logits = policy.network(
            input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False, **given
        ).logits
    logits = policy.mask_placeholders(logits[0, -t - 1 : -1])
    return logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]


def greedy(policy: Policy, batch: PromptBatch, length: int) -> list[int]:
    """What transformers' ``generate`` answers to one prompt."""
    given = policy.family.inputs(policy.network, batch)
    with original_numbering(policy):
        written = policy.network.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            max_new_tokens=length,
            do_sample=False,
            suppress_tokens=policy.placeholder_ids or None,
            **given,
        )
    return written[0, batch.input_ids.shape[1] :].tolist()
