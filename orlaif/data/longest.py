"""The longest prompt that the settings of a DataModule allow, before any video is opened."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import torch

from orlaif.data.sampling import PixelBudget, Sampling
from orlaif.types import Media, Picture, Prompt, PromptEncoder, Video, VideoClip

#: Shapes of frames, height by width: a processor's grid rounds each otherwise.
_SHAPES = ((1, 1), (9, 16), (16, 9), (3, 4), (4, 3))
#: Sides of a frame that no budget leaves as it is, and seconds of a video from which no sampling takes more frames.
_LARGE, _LONG_S = 8192, 1e6
#: Questions that are encoded: letters and tokens differ.
_TRIED = 4


def longest_prompt(
    prompts: Sequence[Prompt], encoder: PromptEncoder, sampling: Sampling, budget: PixelBudget
) -> tuple[int, str]:
    """Tokens of the longest question with the largest clip, and what that is in words.

    Args:
        prompts: all questions.
        encoder: of the model.
        sampling: how many frames a clip has at most.
        budget: how large they are at most.

    Raises:
        ValueError: ``sampling`` takes nothing from a long video.
        VideoError: the model takes no such clip.
    """
    number = len(sampling.times(0.0, _LONG_S))

    def clip_of(path: str, shape: tuple[int, int]) -> VideoClip:
        height, width = budget.size(shape[0] * _LARGE, shape[1] * _LARGE, number)
        return VideoClip(
            frames=torch.zeros(number, 3, height, width, dtype=torch.uint8),
            pts_s=torch.arange(number, dtype=torch.float64),
            duration_s=float(number),
            path=path,
        )

    def picture_of(path: str, shape: tuple[int, int]) -> Picture:
        height, width = budget.size(shape[0] * _LARGE, shape[1] * _LARGE, 1)
        return Picture(pixels=torch.zeros(3, height, width, dtype=torch.uint8), path=path)

    def tokens(prompt: Prompt, shape: tuple[int, int]) -> int:
        items = [(clip_of if isinstance(part, Video) else picture_of)(part.path, shape) for part in prompt.media]
        first = items[0] if prompt.video else None
        seen = first if isinstance(first, VideoClip) else Media(items=tuple(items))
        return int(encoder([prompt], [seen]).input_ids.shape[1])

    def shown(prompt: Prompt) -> tuple[int, int]:
        """Videos, which are many frames each, and images."""
        kinds = [isinstance(part, Video) for part in prompt.media]
        return sum(kinds), len(kinds)

    most = max(map(shown, prompts))
    prompts = [prompt for prompt in prompts if shown(prompt) == most]
    wordy = heapq.nlargest(_TRIED, prompts, key=lambda one: len(one.question) + sum(len(q + a) for q, a in one.history))
    longest, prompt = max(((tokens(one, _SHAPES[0]), one) for one in wordy), key=lambda found: found[0])
    longest = max(longest, *(tokens(prompt, shape) for shape in _SHAPES[1:]))
    large = f"a clip of {number} frames" if prompt.video else f"{prompt.shows}, videos of {number} frames,"
    return longest, f"prompt {prompt.id!r} with {large} as large as data.budget allows"
