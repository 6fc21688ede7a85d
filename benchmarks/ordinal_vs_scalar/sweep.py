"""Which runs there are: every mapping under every voice at every rate on tuning seeds, then at its best on test seeds.

The best rate is chosen twice, by greedy and by sampled accuracy on the validation questions of the tuning seeds behind
the last step. Test seeds have other questions and other warm starts, and nothing is chosen on them.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.harness import commit
from benchmarks.ordinal_vs_scalar.judge import VOICES
from benchmarks.ordinal_vs_scalar.mappings import MAPPINGS, heard_as, mapping_of
from benchmarks.ordinal_vs_scalar.policy import Weights
from benchmarks.ordinal_vs_scalar.questions import Questions, kept, stacked
from benchmarks.ordinal_vs_scalar.training import measure, train, warm_start
from benchmarks.ordinal_vs_scalar.training import stacked as stacked_weights

#: What is read of a run, and what its rate may be chosen by: greedy and sampled accuracy.
GREEDY, SAMPLED = "accuracy", "sampled"
RATES = tuple(1.25e-4 * 2**k for k in range(7))
#: Tried too where the first of ``RATES`` is the best of them.
LOWER = (3.125e-5, 6.25e-5)
TUNING_SEEDS = (100, 101, 102)
#: Steps behind which a run is read: once through the training questions, and three times.
SHORT = (25, 50, 100, 150, 200)
LONG = (50, 100, 200, 400, 600)
#: What is trained for longer.
LONG_MAPPINGS, LONG_VOICES = ("dcg", "borda", "zscore"), ("clean",)
#: Nats an answer at which mappings are compared, and rates whose runs end on both sides of it.
LEVEL, LEVEL_RATES, LEVEL_SEEDS = 1.25, (2.5e-4, 5e-4, 1e-3), 8
LEVEL_VOICES = ("clean", "quantised", "rescaled", "heavy", "length")
LEVEL_MAPPINGS = ("dcg", "borda", "zscore", "mean_centered", "odrpo")
#: What is run at the rate of the best sampled accuracy too.
SAMPLED_MAPPINGS = LEVEL_MAPPINGS

Found = dict[str, Any]


class Sweep:
    """Runs, kept in a JSON file as they come.

    Args:
        folder: of questions and runs; a sweep that was interrupted goes on where it stopped.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "runs.json"
        self.runs: dict[str, list[Found]] = json.loads(self.path.read_text()) if self.path.is_file() else {}
        self.data = cache(lambda seed: kept(folder, seed))
        self.start = cache(lambda seed: warm_start(self.data(seed)["warm"], seed))

    def before(self, seeds: Sequence[int]) -> list[Found]:
        """The warm starts, on test questions."""
        return self._named(f"warm start/{_told(seeds)}", lambda: [self._start_of(seeds)])

    def tuned(self, mapping: str, voice: str, at: Sequence[int] = SHORT, by: str = GREEDY) -> dict[float, float]:
        """Mean validation accuracy over the tuning seeds of each rate that was tried, behind the last step."""
        found = self._tried(mapping, voice, RATES, at, by)
        if best(found) == RATES[0]:
            found = self._tried(mapping, voice, LOWER, at, by) | found
        return found

    def tested(
        self, mapping: str, voice: str, seeds: Sequence[int], rate: float, at: Sequence[int] = SHORT
    ) -> list[Found]:
        """Readings of a run of each test seed at ``rate``."""
        return self._run(mapping, voice, seeds, [rate] * len(seeds), "test", at)

    def all(self, seeds: Sequence[int]) -> None:
        """Every run that is missing."""
        self.before(seeds)
        for mapping, voice in itertools.product(MAPPINGS, VOICES):
            if heard_as(mapping, voice) == voice:
                for by in (GREEDY, SAMPLED) if mapping in SAMPLED_MAPPINGS else (GREEDY,):
                    self.tested(mapping, voice, seeds, best(self.tuned(mapping, voice, by=by)))
        for voice, mapping in itertools.product(LONG_VOICES, LONG_MAPPINGS):
            for by in (GREEDY, SAMPLED):
                self.tested(mapping, voice, seeds, best(self.tuned(mapping, voice, LONG, by)), LONG)
        for voice, mapping in itertools.product(LEVEL_VOICES, LEVEL_MAPPINGS):
            if heard_as(mapping, voice) == voice:
                self.ends(mapping, voice, seeds[:LEVEL_SEEDS])

    def ends(
        self, mapping: str, voice: str, seeds: Sequence[int], what: str = GREEDY
    ) -> list[list[tuple[float, float]]]:
        """For each test seed where its runs at ``LEVEL_RATES`` end: KL and accuracy, greedy or sampled."""
        count, each = len(LEVEL_RATES), [seed for seed in seeds for _ in LEVEL_RATES]
        last = self._run(mapping, voice, each, [*LEVEL_RATES] * len(seeds), "test", SHORT[-1:])[-1]
        points = list(zip(last["kl"], last[what], strict=True))
        return [points[at : at + count] for at in range(0, len(points), count)]

    def _tried(
        self, mapping: str, voice: str, rates: Sequence[float], at: Sequence[int], by: str
    ) -> dict[float, float]:
        seeds = [seed for seed in TUNING_SEEDS for _ in rates]
        last = self._run(mapping, voice, seeds, [*rates] * len(TUNING_SEEDS), "validation", at[-1:])[-1][by]
        return {rate: sum(last[k :: len(rates)]) / len(TUNING_SEEDS) for k, rate in enumerate(rates)}

    def _run(
        self, mapping: str, voice: str, seeds: Sequence[int], rates: Sequence[float], split: str, at: Sequence[int]
    ) -> list[Found]:
        def run() -> list[Found]:
            start, questions = self._weights(seeds), self._set(seeds, split)
            found = train(
                mapping_of(mapping, voice),
                voice,
                start,
                seeds,
                rates,
                self._set(seeds, "train"),
                at,
                lambda weights: measure(weights, start, questions),
            )
            return [{"step": step, **reading} for step, reading in zip(at, found, strict=True)]

        tried = ",".join(f"{rate:g}" for rate in sorted(set(rates)))
        longer = "" if at[-1] == SHORT[-1] else f"@{at[-1]}"
        return self._named(f"{mapping}/{voice}{longer}/{split}/{tried}/{_told(seeds)}", run)

    def _named(self, key: str, run: Callable[[], list[Found]]) -> list[Found]:
        if key not in self.runs:
            self.runs[key] = [{**reading, "commit": commit()} for reading in run()]
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps(self.runs))
            partial.rename(self.path)
            print(key, [round(x, 3) for x in self.runs[key][-1]["accuracy"]], flush=True)
        return self.runs[key]

    def _start_of(self, seeds: Sequence[int]) -> Found:
        weights = self._weights(seeds)
        return measure(weights, weights, self._set(seeds, "test"))

    def _weights(self, seeds: Sequence[int]) -> Weights:
        together = stacked_weights([self.start(seed) for seed in seeds])
        return {name: value.detach() for name, value in together.items()}

    def _set(self, seeds: Sequence[int], split: str) -> Questions:
        return stacked([self.data(seed)[split] for seed in seeds])


def best(tuned: dict[float, float]) -> float:
    """The rate of the highest accuracy, the smallest of those that are equal."""
    return max(sorted(tuned), key=lambda rate: tuned[rate])


def _told(seeds: Sequence[int]) -> str:
    return ",".join(map(str, sorted(set(seeds))))
