"""From runs to the JSON of ``benchmarks/results``: two readings of each mapping and voice, with paired intervals."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from benchmarks.demo_controls import interval
from benchmarks.ordinal_vs_scalar.judge import VOICES
from benchmarks.ordinal_vs_scalar.mappings import MAPPINGS, heard_as
from benchmarks.ordinal_vs_scalar.questions import SIZES
from benchmarks.ordinal_vs_scalar.sweep import (
    LEVEL,
    LEVEL_MAPPINGS,
    LEVEL_SEEDS,
    LEVEL_VOICES,
    LONG,
    LONG_MAPPINGS,
    LONG_VOICES,
    RATES,
    SHORT,
    TUNING_SEEDS,
    Found,
    Sweep,
    best,
)
from benchmarks.ordinal_vs_scalar.training import GROUP, PROMPTS

#: What every other mapping is compared with, seed by seed.
BASELINE = "zscore"
#: KL and accuracy where runs end, by rising rate.
Curve = list[tuple[float, float]]


def report(sweep: Sweep, seeds: Sequence[int]) -> Found:
    """All that the pages say, from a sweep that has run."""
    start = sweep.before(seeds)[0]
    tuning = {
        f"{mapping}/{voice}": {f"{rate:g}": value for rate, value in sweep.tuned(mapping, voice).items()}
        for mapping, voice in itertools.product(MAPPINGS, VOICES)
        if heard_as(mapping, voice) == voice
    }
    table: Found = {}
    for voice in VOICES:
        table |= _of_voice(sweep, voice, seeds)
    longer: Found = {}
    for voice in LONG_VOICES:
        longer |= _longer(sweep, voice, seeds)
    return {
        "what": "test accuracy by mapping and by the judge's voice, each mapping at its own best learning rate; "
        "percent, mean and half a 95 % interval over seeds, differences paired",
        "test_questions": SIZES["test"],
        "validation_questions": SIZES["validation"],
        "steps": SHORT[-1],
        "steps_longer": LONG[-1],
        "prompts": PROMPTS,
        "group": GROUP,
        "rates": list(RATES),
        "tuning_seeds": list(TUNING_SEEDS),
        "seeds": list(seeds),
        "kl_level": LEVEL,
        "kl_seeds": list(seeds[:LEVEL_SEEDS]),
        "warm_start": interval([100 * value for value in start["accuracy"]]),
        "warm_start_sampled": interval([100 * value for value in start["sampled"]]),
        "warm_start_words": interval(start["words"]),
        "tuning": tuning,
        "table": table,
        "longer": longer,
        "runs": {key: rounded(run) for key, run in sweep.runs.items() if "/test/" in key or "warm start" in key},
    }


def _of_voice(sweep: Sweep, voice: str, seeds: Sequence[int]) -> Found:
    """The rows of one voice."""
    tuned = {name: sweep.tuned(name, heard_as(name, voice)) for name in MAPPINGS}
    ends = {name: sweep.tested(name, heard_as(name, voice), seeds, best(of))[-1] for name, of in tuned.items()}
    steps = {name: [100 * value for value in end["accuracy"]] for name, end in ends.items()}
    rows: Found = {
        f"{name}/{voice}": {
            "rate": best(tuned[name]),
            "at_the_edge": _at_the_edge(best(tuned[name]), tuned[name]),
            "equal_steps": _compared(steps[name], steps[BASELINE]),
            "kl": interval(end["kl"]),
            "words": interval(end["words"]),
            "sampled": interval([100 * value for value in end["sampled"]]),
        }
        for name, end in ends.items()
    }
    if voice not in LEVEL_VOICES:
        return rows
    curves = {name: sweep.ends(name, heard_as(name, voice), seeds[:LEVEL_SEEDS]) for name in LEVEL_MAPPINGS}
    level = {name: [100 * accuracy_at(curve, LEVEL) for curve in of] for name, of in curves.items()}
    for name, of in curves.items():
        outside = sum(not curve[0][0] <= LEVEL <= max(kl for kl, _ in curve) for curve in of)
        rows[f"{name}/{voice}"]["equal_kl"] = {**_compared(level[name], level[BASELINE]), "outside": outside}
    return rows


def _longer(sweep: Sweep, voice: str, seeds: Sequence[int]) -> Found:
    """The same of three passes over the training questions, at equal steps."""
    tuned = {name: sweep.tuned(name, voice, LONG) for name in LONG_MAPPINGS}
    runs = {name: sweep.tested(name, voice, seeds, best(of), LONG)[-1] for name, of in tuned.items()}
    ends = {name: [100 * value for value in run["accuracy"]] for name, run in runs.items()}
    return {
        f"{name}/{voice}": {
            "rate": best(of),
            "at_the_edge": _at_the_edge(best(of), of),
            "equal_steps": _compared(ends[name], ends[BASELINE]),
            "kl": interval(runs[name]["kl"]),
        }
        for name, of in tuned.items()
    }


def _at_the_edge(rate: float, tuned: dict[float, float]) -> bool:
    return rate in (min(tuned), max(tuned))


def _compared(values: Sequence[float], baseline: Sequence[float]) -> Found:
    paired = [a - b for a, b in zip(values, baseline, strict=True)]
    return {"accuracy": interval(values), "less_zscore": interval(paired), "seeds": rounded(list(values))}


def accuracy_at(curve: Curve, kl: float) -> float:
    """Where the curve first reaches ``kl``, linear between its points; its first or last where it lies outside."""
    if curve[0][0] >= kl:
        return curve[0][1]
    for (before, low), (behind, high) in itertools.pairwise(curve):
        if behind >= kl:
            return low + (high - low) * (kl - before) / (behind - before)
    return curve[-1][1]


def rounded(value: Any) -> Any:
    """Floats of lists and dicts to 4 digits."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, list) else value
