"""A replay of hard prompts: in every epoch they come once more, drawn by what was last measured of them.

A replayed row is the prompt under an id of its own (``<id>~1``), so that it is given other answers than its first
appearance: what is random about an answer is a function of seed, epoch and id.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import replace

from torch.utils.data import Dataset

from orlaif.data.curriculum import AnswerLengthCurriculum
from orlaif.data.pass_rates import MeasuredDataset, Missing
from orlaif.data.prompts import PromptDataset
from orlaif.data.share import Share
from orlaif.types import Prompt


class Rows(Dataset[Prompt]):
    """Prompts of an epoch by places, and how often each has come before.

    Args:
        dataset: of all prompts.
        places: of each row, and 0, 1, ... for its first, second, ... appearance.
    """

    def __init__(self, dataset: PromptDataset, places: list[tuple[int, int]]) -> None:
        self.dataset, self.places = dataset, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Prompt:
        place, again = self.places[index]
        prompt = self.dataset[place]
        return replace(prompt, id=f"{prompt.id}~{again}") if again else prompt


class HardPromptReplay(MeasuredDataset):
    """All rows once in an epoch, and hard ones again, which make up a stated share of it, all shuffled together.

    A hard prompt is one that is sometimes right, and the harder the more seldom it is: its weight is 1 - pass rate, and
    0 for one that was never right, whose groups tie. Draws are a function of (seed, epoch), the same on all processes.

    Args:
        dataset: of all rows, such as :class:`~orlaif.data.pass_rates.PassRateFilter`.
        file: ``predictions/pass_rates.jsonl`` of ``orlaif predict``, or a pattern; what was last measured counts.
        share: of the rows of an epoch that are replayed ones, above 0 and below 1.
        missing: rows without an entry: ``error``, ``keep`` (never replayed) or ``leave_out``.
        field: ``pass_rate`` or ``mean_score``.

    Raises:
        ValueError: a share out of its range; on loading, no prompt that is sometimes right.
    """

    def __init__(
        self,
        dataset: PromptDataset,
        file: str,
        share: float = 0.25,
        missing: Missing = "error",
        field: str = "pass_rate",
    ) -> None:
        super().__init__(dataset, file, field, missing)
        if not 0 < share < 1:
            raise ValueError(f"HardPromptReplay.share is {share}; it must be above 0 and below 1")
        self.share = share
        self.weights: list[float] = []

    def chosen(self, prompts: list[Prompt], rates: Mapping[str, float]) -> list[Prompt]:
        """All rows, with their weights."""
        measured = [rates.get(prompt.id, 0.0) for prompt in prompts]
        self.weights = [max(0.0, 1.0 - rate) if rate > 0 else 0.0 for rate in measured]
        if not any(self.weights):
            raise ValueError(f"HardPromptReplay.file {self.file}: no row is right sometimes, and sometimes not")
        return prompts

    def fingerprint(self) -> str:
        """And a hash of what decides on the replay."""
        prompts = super().fingerprint()  # which loads the rates
        return f"{prompts}, replayed by {hashlib.sha256(repr((self.share, self.weights)).encode()).hexdigest()[:12]}"

    @property
    def num_rows(self) -> int:
        """Of an epoch, the replayed ones included."""
        return len(self) + self.num_replayed

    @property
    def num_replayed(self) -> int:
        """Rows of an epoch that are replayed ones."""
        return round(len(self) * self.share / (1 - self.share))

    def epoch(
        self, number: int, seed: int, share: Share, fixed: bool, curriculum: AnswerLengthCurriculum | None
    ) -> Dataset[Prompt]:
        """As of :meth:`PromptDataset.epoch`; ``fixed`` rows are replayed at the end of the epoch.

        Raises:
            ValueError: a curriculum, which would be another order.
        """
        if curriculum is not None:
            raise ValueError("data.curriculum must be null with HardPromptReplay, which has an order of its own")
        rng = random.Random(f"{seed}/{0 if fixed else number}")
        appeared = [1] * len(self)
        rows = [(place, 0) for place in range(len(self))]
        for place in rng.choices(range(len(self)), self.weights, k=self.num_replayed):
            rows.append((place, appeared[place]))
            appeared[place] += 1
        if not fixed:
            rng.shuffle(rows)
        return Rows(self, share.of(rows))
