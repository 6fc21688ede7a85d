"""From runs to the JSON of ``benchmarks/results``: readings of each mapping and voice, with paired intervals.

Greedy and sampled accuracy each at the rate that was chosen by it, the sampled one also where the greedy one chose, and
both at equal KL. No interval knows of the choice of a rate: the seeds that it is over share one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from benchmarks.ordinal_vs_scalar.judge import VOICES
from benchmarks.ordinal_vs_scalar.mappings import MAPPINGS, heard_as
from benchmarks.ordinal_vs_scalar.questions import SIZES
from benchmarks.ordinal_vs_scalar.sweep import (
    GREEDY,
    LEVEL,
    LEVEL_MAPPINGS,
    LEVEL_RATES,
    LEVEL_SEEDS,
    LEVEL_VOICES,
    LONG,
    LONG_MAPPINGS,
    LONG_VOICES,
    RATES,
    SAMPLED,
    SAMPLED_MAPPINGS,
    SHORT,
    TUNING_SEEDS,
    Found,
    Sweep,
    best,
)
from benchmarks.ordinal_vs_scalar.training import GROUP, PROMPTS
from benchmarks.significance import interval, paired_p

#: What every other mapping is compared with, seed by seed.
BASELINE = "zscore"
#: KL and accuracy where runs end, by rising rate.
Curve = list[tuple[float, float]]


def report(sweep: Sweep, seeds: Sequence[int]) -> Found:
    """All that the pages say, from a sweep that has run."""
    start = sweep.before(seeds)[0]
    table: Found = {}
    for voice in VOICES:
        table |= _of_voice(sweep, voice, seeds)
    longer: Found = {}
    for voice in LONG_VOICES:
        longer |= _longer(sweep, voice, seeds)
    return {
        "what": "test accuracy by mapping and by the judge's voice, each mapping at its own best learning rate; "
        "percent, mean and half a 95 % interval over seeds, differences paired, p of Student's t, the choice of a rate "
        "left out of both; equal_steps and sampled at the rate that greedy validation accuracy chose, by_sampled at "
        "the one that sampled accuracy chose, at_one_rate less the baseline's at the same rate",
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
        "tuning": _tuning(sweep, GREEDY),
        "tuning_sampled": _tuning(sweep, SAMPLED),
        "table": table,
        "longer": longer,
        "runs": {key: rounded(run) for key, run in sweep.runs.items() if "/test/" in key or "warm start" in key},
    }


def _tuning(sweep: Sweep, by: str) -> Found:
    """Validation accuracy by rate, of each mapping and voice."""
    return {
        f"{mapping}/{voice}": {f"{rate:g}": value for rate, value in sweep.tuned(mapping, voice, by=by).items()}
        for mapping, voice in itertools.product(MAPPINGS, VOICES)
        if heard_as(mapping, voice) == voice
    }


def _of_voice(sweep: Sweep, voice: str, seeds: Sequence[int]) -> Found:
    """The rows of one voice."""
    tuned = {name: sweep.tuned(name, heard_as(name, voice)) for name in MAPPINGS}
    ends = {name: sweep.tested(name, heard_as(name, voice), seeds, best(of))[-1] for name, of in tuned.items()}
    steps = {what: {name: _percent(end[what]) for name, end in ends.items()} for what in (GREEDY, SAMPLED)}
    rows: Found = {
        f"{name}/{voice}": {
            "rate": best(tuned[name]),
            "at_the_edge": _at_the_edge(best(tuned[name]), tuned[name]),
            "equal_steps": _compared(steps[GREEDY][name], steps[GREEDY][BASELINE]),
            "kl": interval(end["kl"]),
            "words": interval(end["words"]),
            "sampled": _compared(steps[SAMPLED][name], steps[SAMPLED][BASELINE]),
        }
        for name, end in ends.items()
    }
    parts = {"by_sampled": _by_sampled(sweep, voice, seeds)}
    if voice in LEVEL_VOICES:
        for what, key in ((GREEDY, "equal_kl"), (SAMPLED, "equal_kl_sampled")):
            parts[key] = _at_equal_kl(sweep, voice, seeds[:LEVEL_SEEDS], what)
        parts["at_one_rate"] = _at_one_rate(sweep, voice, seeds[:LEVEL_SEEDS])
    for part, of in parts.items():
        for name, reading in of.items():
            rows[f"{name}/{voice}"][part] = reading
    return rows


def _by_sampled(sweep: Sweep, voice: str, seeds: Sequence[int]) -> Found:
    """Of each mapping, sampled accuracy at the rate that sampled validation accuracy chose."""
    tuned = {name: sweep.tuned(name, heard_as(name, voice), by=SAMPLED) for name in SAMPLED_MAPPINGS}
    ends = {name: sweep.tested(name, heard_as(name, voice), seeds, best(of))[-1] for name, of in tuned.items()}
    steps = {name: _percent(end[SAMPLED]) for name, end in ends.items()}
    return {
        name: {
            "rate": best(of),
            "at_the_edge": _at_the_edge(best(of), of),
            "kl": interval(ends[name]["kl"]),
            **_compared(steps[name], steps[BASELINE]),
        }
        for name, of in tuned.items()
    }


def _at_equal_kl(sweep: Sweep, voice: str, seeds: Sequence[int], what: str) -> Found:
    curves = {name: sweep.ends(name, heard_as(name, voice), seeds, what) for name in LEVEL_MAPPINGS}
    level = {name: [100 * accuracy_at(curve, LEVEL) for curve in of] for name, of in curves.items()}
    return {
        name: {
            **_compared(level[name], level[BASELINE]),
            "outside": sum(not curve[0][0] <= LEVEL <= max(kl for kl, _ in curve) for curve in of),
        }
        for name, of in curves.items()
    }


def _at_one_rate(sweep: Sweep, voice: str, seeds: Sequence[int]) -> Found:
    """Of each mapping, for each of ``LEVEL_RATES``, greedy and sampled accuracy less the baseline's at that rate."""
    found: Found = {name: {} for name in LEVEL_MAPPINGS}
    for what in (GREEDY, SAMPLED):
        curves = {name: sweep.ends(name, heard_as(name, voice), seeds, what) for name in LEVEL_MAPPINGS}
        for place, rate in enumerate(LEVEL_RATES):
            ends = {name: _percent([curve[place][1] for curve in of]) for name, of in curves.items()}
            for name, values in ends.items():
                found[name].setdefault(f"{rate:g}", {})[what] = _compared(values, ends[BASELINE])
    return found


def _longer(sweep: Sweep, voice: str, seeds: Sequence[int]) -> Found:
    """The same of three passes over the training questions, at equal steps."""
    found: Found = {f"{name}/{voice}": {} for name in LONG_MAPPINGS}
    for by, key in ((GREEDY, "equal_steps"), (SAMPLED, "by_sampled")):
        tuned = {name: sweep.tuned(name, voice, LONG, by) for name in LONG_MAPPINGS}
        runs = {name: sweep.tested(name, voice, seeds, best(of), LONG)[-1] for name, of in tuned.items()}
        ends = {name: _percent(run[by]) for name, run in runs.items()}
        for name, of in tuned.items():
            found[f"{name}/{voice}"][key] = {
                "rate": best(of),
                "at_the_edge": _at_the_edge(best(of), of),
                "kl": interval(runs[name]["kl"]),
                **_compared(ends[name], ends[BASELINE]),
            }
    return found


def _percent(shares: Sequence[float]) -> list[float]:
    return [100 * share for share in shares]


def _at_the_edge(rate: float, tuned: dict[float, float]) -> bool:
    return rate in (min(tuned), max(tuned))


def _compared(values: Sequence[float], baseline: Sequence[float]) -> Found:
    paired = [a - b for a, b in zip(values, baseline, strict=True)]
    both = {"accuracy": interval(values), "less_zscore": interval(paired), "p": paired_p(paired)}
    return {**both, "seeds": rounded(list(values))}


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
