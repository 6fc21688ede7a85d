"""Tables of the benchmark with a pretrained language model inside."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import Any

from benchmarks.figures.results import load, markdown, plus_minus, source

Rows = list[list[str]]


def gains() -> str:
    """Facts right before and after Oracle-RLAIF, by seed, with gains."""
    report = load("pretrained")
    seeds, start = report["seeds"], report["warm_start"]
    warm = [f"{100 * start['facts']:.1f}"] * len(seeds)
    rows: Rows = [["warm start", *warm, "", f"{100 * start['all']:.1f}", ""]]
    for arm, gained in report["gains"].items():
        done = [row[arm] for row in seeds.values() if arm in row]
        cells = [f"{100 * row[arm]['facts']:.1f}" if arm in row else "" for row in seeds.values()]
        cells += [_gain(gained["facts"]), f"{100 * fmean(row['all'] for row in done):.1f}", _gain(gained["all"])]
        rows.append([arm, *cells])
    both = {seed: row for seed, row in seeds.items() if "rule" in row and "random" in row}
    apart = {seed: 100 * (row["rule"]["facts"] - row["random"]["facts"]) for seed, row in both.items()}
    cells = [f"{apart[seed]:+.1f}" if seed in apart else "" for seed in seeds]
    rows.append(["rule over random", *cells, plus_minus(list(apart.values()), "+"), "", ""])
    head = ["", *(f"seed {seed}" for seed in seeds), "gain", "all four right", "gain"]
    return f"{markdown(head, rows)}\n\n{source('pretrained')}"


def sampled(window: int = 25) -> str:
    """Facts right among the answers sampled in training, first and last steps; the oracle's order; time and memory."""
    report = load("pretrained")
    rows: Rows = []
    for arm in report["gains"]:
        done = [row[arm] for row in report["seeds"].values() if arm in row]
        ends = [[100 * fmean(part) for part in _ends(row["sampled_facts"], window)] for row in done]
        cells = [_mean([end[side] for end in ends]) for side in (0, 1)]
        cells += [_mean([last - first for first, last in ends], "+")]
        pairs = [row["order"]["pairs"] for row in done if row["order"]["pairs"] is not None]
        cells += [f"{100 * fmean(pairs):.0f}" if pairs else ""]
        cells += [f"{fmean(row['core_seconds_per_step'] for row in done):.1f}"]
        rows.append([arm, *cells, f"{max(row['peak_gb'] for row in done):.1f}"])
    head = ["", f"first {window} steps", f"last {window}", "gain", "pairs", "core seconds a step", "peak, GB"]
    return f"{markdown(head, rows)}\n\n{source('pretrained')}"


def then() -> str:
    """Share of "what follows" that is right, by what it is, for each run."""
    report = load("pretrained")
    values = list(report["warm_start"]["by_then"])
    runs = {"warm start": report["warm_start"]}
    runs |= {
        f"{arm}, seed {seed}": row[arm]
        for arm in report["gains"]
        for seed, row in report["seeds"].items()
        if arm in row
    }
    rows = [[name, *(f"{100 * run['by_then'][value]:.0f}" for value in values)] for name, run in runs.items()]
    return f"{markdown(['', *values], rows)}\n\n{source('pretrained')}"


def _mean(values: list[float], sign: str = "") -> str:
    """With its interval where there is more than one seed."""
    return plus_minus(values, sign) if len(values) > 1 else f"{values[0]:{sign}.1f}"


def _ends(values: list[float], window: int) -> tuple[list[float], list[float]]:
    return values[:window], values[-window:]


def _gain(cell: dict[str, Any]) -> str:
    half = cell["half_95_interval"]
    return f"{cell['mean']:+.1f}" + ("" if half is None else f" ± {half:.1f}")


def facts() -> str:
    """Each fact's share: of the warm start, and of each oracle's policies, mean over seeds."""
    report = load("pretrained")
    rows: Rows = [["warm start", *(f"{100 * report['warm_start']['by_fact'][fact]:.1f}" for fact in report["facts"])]]
    for arm in report["gains"]:
        done = [row[arm]["by_fact"] for row in report["seeds"].values() if arm in row]
        rows.append([arm, *(f"{100 * fmean(row[fact] for row in done):.1f}" for fact in report["facts"])])
    return f"{markdown(['', *report['facts']], rows)}\n\n{source('pretrained')}"


def answers() -> str:
    """The same test questions before and after, drawn once for all runs; the judge has a table of its own."""
    report = load("pretrained")
    after = {arm: row["samples"] for arm, row in report["seeds"]["0"].items() if arm != "judge"}
    rows: Rows = []
    for place, one in enumerate(report["warm_start"]["samples"]):
        rows.append(
            [one["rendered"], *map(_cell, (one["answer"], *(told[place]["answer"] for told in after.values())))]
        )
    return f"{markdown(['rendered', 'warm start', *(f'after {arm}' for arm in after)], rows)}\n\n{source('pretrained')}"


def _cell(text: str) -> str:
    """On one line."""
    return " ".join(text.split())


def judged() -> str:
    """What the judge put first as the run went on, of one group in twenty steps."""
    rows = [
        [str(one["step"]), one["rendered"], one["answer"]] for one in load("pretrained")["seeds"]["0"]["judge"]["bests"]
    ]
    return f"{markdown(['step', 'rendered', 'put first by the judge'], rows)}\n\n{source('pretrained')}"


def signs() -> str:
    """What ``orlaif view`` calls trouble in each run."""
    rows: Rows = []
    report = load("pretrained")
    for arm in report["gains"]:
        for seed, row in report["seeds"].items():
            if arm in row:
                told = [f"{name} {value:.2f}" for name, value in row[arm]["signs"].items()]
                rows.append([arm, seed, ", ".join(told) or "none"])
    return f"{markdown(['', 'seed', 'signs of trouble'], rows)}\n\n{source('pretrained')}"


TABLES: dict[str, Callable[[], str]] = {
    "pretrained": gains,
    "pretrained-facts": facts,
    "pretrained-sampled": sampled,
    "pretrained-answers": answers,
    "pretrained-then": then,
    "pretrained-judged": judged,
    "pretrained-signs": signs,
}
