"""A rollout of one's own: half of the group is sampled coolly, half of it hotly."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from orlaif.policy import Policy
from orlaif.rollout import BaseRollout, SamplingParams, generate
from orlaif.types import Completions, PromptBatch


class TwoTemperatures(BaseRollout):
    """The policy's own answers at two temperatures around the recipe's.

    Args:
        group_size: G, an even number.
        sampling: how tokens are drawn.
        spread: the temperatures are ``sampling.temperature`` times and over this.
    """

    def __init__(self, group_size: int = 8, sampling: SamplingParams | None = None, spread: float = 1.25) -> None:
        super().__init__(group_size, sampling)
        if group_size % 2:
            raise ValueError(f"rollout.group_size is {group_size}; TwoTemperatures needs an even number")
        self.spread = spread

    def __call__(self, policy: Policy, batch: PromptBatch, generator: Sequence[torch.Generator]) -> Completions:
        """G completions of each prompt."""
        halves = []
        for temperature in (self.sampling.temperature / self.spread, self.sampling.temperature * self.spread):
            sampling = replace(self.sampling, temperature=temperature)
            halves.append(generate(policy, batch, self.group_size // 2, sampling, generator))
        rows = [
            [half.ids[i, j][half.mask[i, j]].tolist() for half in halves for j in range(half.group_size)]
            for i in range(len(batch))
        ]
        texts = tuple(first + second for first, second in zip(halves[0].texts, halves[1].texts, strict=True))
        return Completions.padded(rows, texts, policy.pad_id, batch.input_ids.device)
