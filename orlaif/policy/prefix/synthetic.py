"""Questions about videos of noise, and answers of ordinary tokens, the same every time: what a model is asked at load.

The clips are long and low: four seconds between frames, so that where positions count seconds, time exceeds height and
width, and text that is numbered behind either of them alone is found to overlap with the video.

Shapes: P prompts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from orlaif.policy.encoding import ProcessorEncoder
from orlaif.policy.families import SYNTHETIC, Family
from orlaif.types import PromptBatch, VideoClip, VideoPrompt

#: Seconds between the frames of the synthetic video.
SPACING_S = 4.0
#: Tokens of an attention window that synthetic prompts exceed.
WINDOW = 16


@contextmanager
def narrow_windows(model: Any) -> Iterator[None]:
    """A context in which a model with attention windows has ones of :data:`WINDOW` tokens, so that they show.

    Models build masks and caches from their config whenever they run.
    """
    config = model.config.get_text_config(decoder=True)
    window: int | None = getattr(config, "sliding_window", None)
    if not isinstance(window, int) or not WINDOW < window < getattr(config, "max_position_embeddings", 0):
        yield
        return
    config.sliding_window = WINDOW
    try:
        yield
    finally:
        config.sliding_window = window


def synthetic_batch(
    processor: Any,
    questions: tuple[str, ...],
    device: torch.device,
    dtype: torch.dtype,
    family: Family | None = None,
    num_frames: int = 4,
    seed: int = 0,
) -> PromptBatch:
    """Short questions about videos of noise, the same every time.

    Args:
        processor: of the model.
        questions: P of them.
        device: of the tensors.
        dtype: of the pixels.
        family: where the model differs from others.
        num_frames: of each video.
        seed: of the noise of the first; the next have the next ones.
    """
    prompts, clips = [], []
    for i, question in enumerate(questions):
        generator = torch.Generator().manual_seed(seed + i)
        frames = torch.randint(0, 256, (num_frames, 3, 56, 56), generator=generator, dtype=torch.uint8)
        pts_s = torch.arange(num_frames, dtype=torch.float64) * SPACING_S
        clips.append(VideoClip(frames=frames, pts_s=pts_s, duration_s=num_frames * SPACING_S, path=SYNTHETIC))
        prompts.append(VideoPrompt(id="probe", video="probe", question=question, answer="a"))
    batch = ProcessorEncoder(processor, family=family)(prompts, clips)

    def cast(value: Any) -> Any:
        if isinstance(value, list):
            return [cast(one) for one in value]
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    return replace(batch, mm_inputs={name: cast(value) for name, value in batch.mm_inputs.items()}).to(device)


def synthetic_prompt(
    processor: Any, device: torch.device, dtype: torch.dtype, family: Family | None = None
) -> PromptBatch:
    """A short question about a video of noise; see :func:`synthetic_batch`."""
    num_frames = 4 if family is None else family.probe_frames
    return synthetic_batch(processor, ("what is this",), device, dtype, family, num_frames)


def random_tokens(processor: Any, apart: list[int], shape: tuple[int, int, int]) -> Tensor:
    """Ordinary tokens i64[P, G, T], the same every time; no two of the G completions behind a prompt share one.

    Args:
        processor: of the model.
        apart: tokens to leave out: placeholders, and those of the prompts.
        shape: P, G, T.
    """
    special = {*apart, *processor.tokenizer.all_special_ids}
    vocabulary = torch.tensor([i for i in range(len(processor.tokenizer)) if i not in special])
    parts = [vocabulary[i :: shape[1]] for i in range(shape[1])]
    generator = torch.Generator().manual_seed(0)
    drawn = [part[torch.randint(len(part), (shape[0], shape[2]), generator=generator)] for part in parts]
    return torch.stack(drawn, 1)
