"""From prompts and clips to a model's inputs: each prompt alone, by the model's own processor, and then as a batch.

What a prompt becomes never depends on its neighbours: neither its tokens (processors pad clips to the longest, and some
count the frames behind that) nor whether it can be encoded at all (some cannot stack unequal clips).

Shapes: P prompts of S tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.video_utils import VideoMetadata

from orlaif.policy.chat import Chat
from orlaif.policy.families import Family
from orlaif.policy.joining import Joining
from orlaif.types import (
    Image,
    Media,
    Picture,
    Prompt,
    PromptBatch,
    Seen,
    Text,
    Turn,
    Video,
    VideoClip,
    VideoError,
    VideoPrompt,
)

#: Rendered to ask a processor how it lays two of a kind.
_ONE_VIDEO = VideoPrompt(id="joining", video="joining", question="what is this")
_ONE_IMAGE = Prompt(id="joining", turns=(Turn("user", (Image("joining"), Text("what is this"))),))


def video_metadata(clip: Seen, prompt: Prompt | Video | None = None) -> VideoMetadata:
    """Exact frame times for processors that use them, in their terms: frame numbers of a source of 1000 fps.

    Processors take the rate of the frames to be their number by ``total_num_frames``; so that is what was looked at,
    which is less than the file where a segment was sampled.

    Args:
        clip: the frames.
        prompt: or video of one, whose segment was sampled, if it names one.
    """
    spacing = float(clip.pts_s.diff().mean())
    looked_at = len(clip.pts_s) * spacing
    spans = [clip.duration_s]
    if prompt is not None:
        end = clip.duration_s if prompt.end_s is None else min(prompt.end_s, clip.duration_s)
        spans.append(end - (prompt.start_s or 0.0))
    # Frames lie on the file's grid of times: where they span the file or the segment, that is the exact length.
    span_s = next((span for span in spans if abs(span - looked_at) <= spacing), looked_at)
    return VideoMetadata(
        total_num_frames=max(1, round(span_s * 1000)),
        fps=1000.0,
        duration=clip.duration_s,
        height=clip.frames.shape[-2],
        width=clip.frames.shape[-1],
        frames_indices=[round(t * 1000) for t in clip.pts_s.tolist()],
    )


def videos_of(prompt: Prompt) -> list[Video]:
    """The videos that a prompt shows, in their order."""
    return [part for part in prompt.media if isinstance(part, Video)]


def render(processor: Any, prompt: Prompt, system_prompt: str | None = None, chat: Chat | None = None) -> str:
    """A prompt by the model's chat template: its turns, parts in their order, and the start of an answer."""
    chat = chat or Chat()
    messages: list[dict[str, Any]] = []
    if system_prompt:
        messages.append({"role": "system", "content": [{"type": "text", "text": system_prompt}]})
    for turn in chat.asked(prompt).conversation():
        parts = [
            {"type": "text", "text": part.text} if isinstance(part, Text) else {"type": type(part).__name__.lower()}
            for part in turn.parts
        ]
        messages.append({"role": turn.role, "content": parts})
    kwargs = chat.chat_template_kwargs
    return str(processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **kwargs))


class ProcessorEncoder:
    """What prompts and clips become, for all who ask a model: DataModule, judges, rankers, and the check at load.

    The :class:`~orlaif.types.PromptEncoder` of a Hugging Face processor.

    Args:
        processor: of transformers.
        system_prompt: goes before every question, if given.
        family: where its model differs from others (``orlaif.policy.families``); by default generic behaviour.
        longest: tokens that a prompt may have, so that the model has positions for its answer too; None takes any.
        chat: what stands around a question; by default nothing.
    """

    def __init__(
        self,
        processor: Any,
        system_prompt: str | None = None,
        family: Family | None = None,
        longest: int | None = None,
        chat: Chat | None = None,
    ) -> None:
        self.longest = longest
        self.processor = processor
        self.system_prompt = system_prompt
        self.family = family or Family()
        #: Kinds of prompts of which nothing is left out by the processor: images and videos, at most 2 of each.
        self._whole: set[tuple[int, int]] = set()
        self.chat = chat or Chat()

    @property
    def special_texts(self) -> frozenset[str]:
        """Texts that the tokenizer takes for special tokens, or the processor for a picture, a video or a sound."""
        tokenizer = self.processor.tokenizer
        added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        media = [getattr(self.processor, f"{kind}_token", None) for kind in ("image", "video", "audio")]
        return frozenset(t for t in (*added, *tokenizer.all_special_tokens, *media) if isinstance(t, str) and t.strip())

    def render(self, prompt: Prompt) -> str:
        """The prompt by the model's chat template."""
        return render(self.processor, prompt, self.system_prompt, self.chat)

    def without_limit(self) -> ProcessorEncoder:
        """The same encoder, which takes prompts of any length."""
        return ProcessorEncoder(self.processor, self.system_prompt, self.family, chat=self.chat)

    def __call__(
        self, prompts: Sequence[Prompt], clips: Sequence[Seen], texts: Sequence[str] | None = None
    ) -> PromptBatch:
        """Encode each prompt by itself, and make a batch of them.

        Args:
            prompts: P prompts, P >= 1.
            clips: their P clips, or media.
            texts: the P prompts as the model is to read them; by default by :meth:`render`.

        Returns:
            The batch, padded on the left.

        Raises:
            VideoError: the processor does not take a clip, such as one of a shape that its model cannot see, or leaves
                one of several out, or makes more tokens of it than the model has positions for.
        """
        texts = [self.render(prompt) for prompt in prompts] if texts is None else list(texts)
        if len(prompts) > 1:
            pictures = any(isinstance(item, Picture) for clip in clips for item in clip.items)
            about_images = {"image": self.render(_ONE_IMAGE)} if pictures else {}
            self.family.learn(self.processor, self.render(_ONE_VIDEO), **about_images)
        encoded = [self._encoded(prompt, clip, text) for prompt, clip, text in zip(prompts, clips, texts, strict=True)]
        inputs = self.family.collate(encoded, int(self.processor.tokenizer.pad_token_id))
        return PromptBatch(
            prompts=tuple(prompts),
            clips=tuple(clips),
            input_ids=inputs.pop("input_ids"),
            attention_mask=inputs.pop("attention_mask"),
            mm_inputs=inputs,
            texts=tuple(texts),
        )

    def _encoded(self, prompt: Prompt, clip: Seen, text: str) -> dict[str, Any]:
        try:
            inputs = self._processed(prompt, clip, text)
            if isinstance(clip, Media):
                self._check_whole(prompt, clip, text, inputs)
        except (torch.OutOfMemoryError, MemoryError, ImportError, VideoError):  # no fault of the video, or told already
            raise
        except Exception as error:  # processors raise whatever they like
            cause = str(error).strip().split("\n")[0] or type(error).__name__
            raise VideoError(
                _file_of(prompt), f"the model's processor does not take {_shown(clip)} ({cause})"
            ) from error
        if self.longest is not None and (number := inputs["input_ids"].shape[-1]) > self.longest:
            raise VideoError(
                _file_of(prompt),
                f"prompt {prompt.id!r} has {number} tokens, and the model's context has room for {self.longest} before "
                "an answer; sample fewer or smaller frames (data.sampling, data.budget)",
            )
        return inputs

    def _processed(self, prompt: Prompt, seen: Seen, text: str) -> dict[str, Any]:
        if not isinstance(seen, Media):
            return self.family.encode(self.processor, text, seen, video_metadata(seen, prompt))
        clips = [item for item in seen.items if isinstance(item, VideoClip)]
        metadata = [video_metadata(clip, video) for clip, video in zip(clips, videos_of(prompt), strict=True)]
        return self.family.encode_media(self.processor, text, seen.items, metadata)

    def _check_whole(self, prompt: Prompt, seen: Media, text: str, inputs: dict[str, Any]) -> None:
        """Refuse a processor that leaves something out of what a prompt shows; each kind of prompt is asked about once.

        Some keep images and videos under one name, so that the one replaces the other: whatever is shown must be seen
        in what they return once its colours are inverted.

        Raises:
            VideoError: what is left out, by its file.
        """
        clips = sum(isinstance(item, VideoClip) for item in seen.items)
        kind = min(2, len(seen.items) - clips), min(2, clips)
        if kind in self._whole:
            return
        for i, item in enumerate(seen.items):
            other = (
                replace(item, pixels=255 - item.pixels)
                if isinstance(item, Picture)
                else replace(item, frames=255 - item.frames)
            )
            changed = replace(seen, items=(*seen.items[:i], other, *seen.items[i + 1 :]))
            if _same(inputs, self._processed(prompt, changed, text)):
                raise VideoError(
                    item.path,
                    f"the model's processor leaves it out of a prompt that shows {prompt.shows} "
                    f"(prompt {prompt.id!r}), so that this model takes no such prompts",
                )
        self._whole.add(kind)


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def _file_of(prompt: Prompt) -> str:
    """A file that errors of a prompt name: the first that it shows, else none."""
    return prompt.video or next((part.path for part in prompt.media), f"(prompt {prompt.id!r})")


def _shown(seen: Seen) -> str:
    """What is seen, in words."""
    shown = []
    for item in seen.items:
        height, width = (item.pixels if isinstance(item, Picture) else item.frames).shape[-2:]
        what = "an image" if isinstance(item, Picture) else f"{len(item.frames)} frames"
        shown.append(f"{what} of {width} x {height}")
    return ", ".join(shown) or "text alone"


def sub_batches(batch: PromptBatch, family: Family) -> list[tuple[Tensor, PromptBatch]]:
    """Parts of a batch that a model can take in one pass each, with the places i64[p] of their prompts.

    One, the batch itself, unless some inputs come in lists, a tensor for each prompt, whose shapes differ, or None.

    Args:
        batch: P prompts.
        family: that collated them, or one of the same class.
    """
    everything = torch.arange(len(batch), device=batch.input_ids.device)
    lists = {name: value for name, value in batch.mm_inputs.items() if isinstance(value, (list, tuple))}
    if not lists:
        return [(everything, batch)]
    joining = family.joining or Joining()
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i in range(len(batch)):
        groups.setdefault(tuple(joining.shape_beside(name, lists[name][i]) for name in lists), []).append(i)
    parts = []
    for places in groups.values():
        at = everything[places]
        mask = batch.attention_mask[at]
        s, kept = mask.shape[1], int(mask.sum(-1).max())
        there = {name: value for name, value in lists.items() if value[places[0]] is not None}
        inputs: dict[str, Any] = family.joined({name: [value[i] for i in places] for name, value in there.items()})
        for name, value in batch.mm_inputs.items():
            if name in lists:
                continue
            if isinstance(value, Tensor) and value.shape[:2] == batch.input_ids.shape:
                inputs[name] = value[at, s - kept :]
            else:
                inputs[name] = value
        part = replace(
            batch,
            prompts=tuple(batch.prompts[i] for i in places),
            clips=tuple(batch.clips[i] for i in places),
            input_ids=batch.input_ids[at, s - kept :],
            attention_mask=mask[:, s - kept :],
            mm_inputs=inputs,
            texts=tuple(batch.texts[i] for i in places) if batch.texts else (),
        )
        parts.append((at, part))
    return parts
