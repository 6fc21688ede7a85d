"""A replay of hard prompts: in every epoch they come once more, drawn by what was last measured of them.

A replayed row is the prompt under an id of its own (``<id>~1``), so that it is given other answers than its first
appearance: what is random about an answer is a function of seed, epoch and id.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from torch.utils.data import Dataset

from orlaif.data.curriculum import AnswerLengthCurriculum
from orlaif.data.pass_rates import MeasuredDataset, Missing
from orlaif.data.prompts import PromptDataset
from orlaif.data.running_rates import RunningRates
from orlaif.data.share import Share
from orlaif.types import Prompt

log = logging.getLogger(__name__)


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
    0 for one that was never right, whose groups tie. Draws are a function of (seed, epoch) and the rates, the same on
    all processes.

    Rates come from a file, or are measured while the run trains, or both: then what was seen of a prompt in training
    takes the place of the file's rate (:class:`~orlaif.data.running_rates.RunningRates`). An epoch is drawn by the
    rates of its beginning; a prompt without a rate has the weight 0.5 in it, and where no prompt has any weight, all
    are drawn alike.

    Args:
        dataset: of all rows, such as :class:`~orlaif.data.pass_rates.PassRateFilter`.
        file: ``predictions/pass_rates.jsonl`` of ``orlaif predict``, or a pattern; what was last measured counts.
            None: no rates before the run measures them.
        share: of the rows of an epoch that are replayed ones, above 0 and below 1.
        missing: rows without an entry in the file: ``error``, ``keep`` (without ``measure`` never replayed) or
            ``leave_out``.
        field: ``pass_rate`` or ``mean_score``.
        measure: measure rates while training, by the recipe's oracle, which must be one that gives scores.

    Raises:
        ValueError: a share out of its range, or neither ``file`` nor ``measure``; on loading, no prompt in the file
            that is sometimes right.
    """

    def __init__(
        self,
        dataset: PromptDataset,
        file: str | None = None,
        share: float = 0.25,
        missing: Missing = "error",
        field: Literal["pass_rate", "mean_score"] = "pass_rate",
        measure: bool = False,
    ) -> None:
        super().__init__(dataset, file or "", field, missing)
        if not 0 < share < 1:
            raise ValueError(f"HardPromptReplay.share is {share}; it must be above 0 and below 1")
        if file is None and not measure:
            raise ValueError("HardPromptReplay.file is null; it must name pass rates, or measure must be true")
        self.share = share
        self.weights: list[float] = []
        #: What the run measures, where it does; of its DataModule's checkpoints.
        self.rates = RunningRates(field, ()) if measure else None
        self._before: dict[str, float] = {}

    def load(self) -> None:
        """As of any measured data set; without a file, its rows alone."""
        if self.file:
            super().load()
        else:
            self.dataset.load()
            self._prompts = self.chosen([self.dataset[i] for i in range(len(self.dataset))], {})
        if self.rates is not None:
            self.rates.known = {prompt.id for prompt in self.prompts}

    def chosen(self, prompts: list[Prompt], rates: Mapping[str, float]) -> list[Prompt]:
        """All rows, with their weights by the file."""
        self._before = dict(rates)
        self.weights = self._weights(prompts, rates, unknown=0.0)
        if self.file and not any(self.weights):
            raise ValueError(f"HardPromptReplay.file {self.file}: no row is right sometimes, and sometimes not")
        return prompts

    @staticmethod
    def _weights(prompts: list[Prompt], rates: Mapping[str, float], unknown: float) -> list[float]:
        of_rows = [rates.get(prompt.id) for prompt in prompts]
        return [unknown if rate is None else max(0.0, 1.0 - rate) if rate > 0 else 0.0 for rate in of_rows]

    def _weights_of(self, epoch: int) -> list[float]:
        """Of all rows, by what is known when the epoch begins."""
        if self.rates is None:
            return self.weights
        measured = self.rates.of_epoch(epoch)
        weights = self._weights(self.prompts, {**self._before, **measured}, unknown=0.5)
        seen = f"rates of {len(measured)} of {len(weights)} rows are measured"
        log.info("replay of epoch %d: %s, %d can come again", epoch, seen, sum(weight > 0 for weight in weights))
        return weights if any(weights) else [1.0] * len(weights)

    def fingerprint(self) -> str:
        """And a hash of what decides on the replay, but for what a run measures itself."""
        prompts = super().fingerprint()  # which loads the rates
        by: tuple[object, ...] = (self.share, self.weights, *(() if self.rates is None else (self.field,)))
        return f"{prompts}, replayed by {hashlib.sha256(repr(by).encode()).hexdigest()[:12]}"

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
        number = 0 if fixed else number
        rng = random.Random(f"{seed}/{number}")
        appeared = [1] * len(self)
        rows = [(place, 0) for place in range(len(self))]
        for place in rng.choices(range(len(self)), self._weights_of(number), k=self.num_replayed):
            rows.append((place, appeared[place]))
            appeared[place] += 1
        if not fixed:
            rng.shuffle(rows)
        return Rows(self, share.of(rows))
