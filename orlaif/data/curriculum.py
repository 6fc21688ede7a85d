"""Orders of the training data that are not shuffled as a whole."""

from __future__ import annotations

import random

from orlaif.types import Prompts


class AnswerLengthCurriculum:
    """Easy questions first, as in VLM-RLAIF (Ahn et al. 2024): those with short reference answers, then the others.

    Args:
        stages: parts of equal size, each shuffled by itself; 2 are easy and hard.

    Raises:
        ValueError: fewer than 2 stages.
    """

    def __init__(self, stages: int = 2) -> None:
        if stages < 2:
            raise ValueError(f"AnswerLengthCurriculum.stages is {stages}; it must be 2 or more")
        self.stages = stages

    def order(self, dataset: Prompts, seed: int) -> list[int]:
        """Places of all prompts: the stages one after the other, each shuffled by ``seed``."""
        lengths = [len((dataset[i].answer or "").split()) for i in range(len(dataset))]
        places = sorted(range(len(dataset)), key=lambda i: lengths[i])  # stable: equal lengths keep the file's order
        rng = random.Random(seed)
        ends = [round(len(places) * (stage + 1) / self.stages) for stage in range(self.stages)]
        order: list[int] = []
        for start, end in zip([0, *ends], ends, strict=False):
            part = places[start:end]
            rng.shuffle(part)
            order += part
        return order
