"""Some prompts of a batch, and some groups of its completions."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from orlaif.policy.encoding import ProcessorEncoder
from orlaif.types import Completions, PromptBatch


def taken(batch: PromptBatch, places: Sequence[int], encoder: ProcessorEncoder) -> PromptBatch:
    """Some prompts of a batch as a batch: encoded once more, since what a prompt becomes depends on no other.

    Args:
        batch: P prompts.
        places: of those wanted, in it.
        encoder: that made the batch, or one like it.
    """
    prompts, clips = [batch.prompts[i] for i in places], [batch.clips[i] for i in places]
    texts = [batch.texts[i] for i in places] if batch.texts else None
    return encoder(prompts, clips, texts).to(batch.input_ids.device)


def completions_of(completions: Completions, places: Sequence[int]) -> Completions:
    """The completions of some of P prompts."""
    at = torch.tensor(places, device=completions.device)
    return Completions(
        ids=completions.ids[at],
        mask=completions.mask[at],
        texts=tuple(completions.texts[i] for i in places),
        logps=None if completions.logps is None else completions.logps[at],
    )
