"""From prompts and clips to a model's inputs, by its own processor: for the collator and the check of the prefix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers.video_utils import VideoMetadata

from orlaif.types import PromptBatch, VideoClip, VideoPrompt


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


def render(processor: Any, prompt: VideoPrompt, system_prompt: str | None = None) -> str:
    """A prompt by the model's chat template: the video, earlier turns, the question, and the start of an answer."""
    messages: list[dict[str, Any]] = []
    if system_prompt:
        messages.append({"role": "system", "content": [{"type": "text", "text": system_prompt}]})
    video = [{"type": "video"}]
    for question, answer in prompt.history:
        messages.append({"role": "user", "content": [*video, {"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        video = []
    messages.append({"role": "user", "content": [*video, {"type": "text", "text": prompt.question}]})
    return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def encode(processor: Any, texts: Sequence[str], clips: Sequence[VideoClip]) -> dict[str, Any]:
    """What the processor makes of P prompts.

    Args:
        processor: of transformers, padding prompts on the left.
        texts: P texts (:func:`render`), each with one video.
        clips: their P clips.

    Returns:
        ``input_ids`` i64[P, S], ``attention_mask`` i64[P, S], and whatever else the processor returns.
    """
    inputs = processor(
        text=list(texts),
        videos=[[clip.frames] for clip in clips],  # one video to a prompt; transformers 5.17 wants it said for SmolVLM
        video_metadata=[video_metadata(clip) for clip in clips],
        do_sample_frames=False,
        padding=True,
        return_tensors="pt",
    )
    return dict(inputs)


class ProcessorEncoder:
    """The :class:`~orlaif.types.PromptEncoder` of a Hugging Face processor.

    Args:
        processor: of transformers, padding prompts on the left.
        system_prompt: goes before every question, if given.
    """

    def __init__(self, processor: Any, system_prompt: str | None = None) -> None:
        self.processor, self.system_prompt = processor, system_prompt

    def __call__(self, prompts: Sequence[VideoPrompt], clips: Sequence[VideoClip]) -> PromptBatch:
        """The batch of P prompts."""
        texts = [render(self.processor, prompt, self.system_prompt) for prompt in prompts]
        return to_batch(self.processor, prompts, clips, texts)


def to_batch(
    processor: Any, prompts: Sequence[VideoPrompt], clips: Sequence[VideoClip], texts: Sequence[str]
) -> PromptBatch:
    """The same as a batch."""
    inputs = encode(processor, texts, clips)
    return PromptBatch(
        prompts=tuple(prompts),
        clips=tuple(clips),
        input_ids=inputs.pop("input_ids"),
        attention_mask=inputs.pop("attention_mask"),
        mm_inputs=inputs,
        texts=tuple(texts),
    )
