"""From prompts and clips to a model's inputs, by its own processor: for the collator and the check of the prefix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers.video_utils import VideoMetadata

from orlaif.types import VideoClip, VideoPrompt


def video_metadata(clip: VideoClip) -> VideoMetadata:
    """Exact frame times for processors that use them, in their terms: frame numbers of a source of 1000 fps."""
    return VideoMetadata(
        total_num_frames=max(1, round(clip.duration_s * 1000)),
        fps=1000.0,
        duration=clip.duration_s,
        height=clip.frames.shape[-2],
        width=clip.frames.shape[-1],
        frames_indices=[round(t * 1000) for t in clip.pts_s.tolist()],
    )


def _text(processor: Any, prompt: VideoPrompt, system_prompt: str | None) -> str:
    messages: list[dict[str, Any]] = []
    if system_prompt:
        messages.append({"role": "system", "content": [{"type": "text", "text": system_prompt}]})
    content = [{"type": "video"}, {"type": "text", "text": prompt.question}]
    messages.append({"role": "user", "content": content})
    return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def encode(
    processor: Any, prompts: Sequence[VideoPrompt], clips: Sequence[VideoClip], system_prompt: str | None = None
) -> dict[str, Any]:
    """What the processor makes of P prompts.

    Args:
        processor: of transformers, padding prompts on the left.
        prompts: P prompts.
        clips: their P clips.
        system_prompt: goes before every question, if given.

    Returns:
        ``input_ids`` i64[P, S], ``attention_mask`` i64[P, S], and whatever else the processor returns.
    """
    inputs = processor(
        text=[_text(processor, prompt, system_prompt) for prompt in prompts],
        videos=[[clip.frames] for clip in clips],  # one video to a prompt; transformers 5.17 wants it said for SmolVLM
        video_metadata=[video_metadata(clip) for clip in clips],
        do_sample_frames=False,
        padding=True,
        return_tensors="pt",
    )
    return dict(inputs)
