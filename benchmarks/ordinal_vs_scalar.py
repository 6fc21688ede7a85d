"""Ranks against scores: the same judge, heard once as an order and once as numbers, calibrated and not.

One judge grades answers by the reference: right 1, right kind 1/2, other 0. It is heard in three voices:

    calibrated      the grade itself
    distorted       a * exp(4 * grade), with another a = exp(1.5 * normal) for each prompt: monotone, heavy-tailed
    noisy           the same of grade + 0.15 * t, with t of Student's t with 3 degrees for each (prompt, answer)

and through four mappings: `dcg`, `borda` (linear ranks: GOPO's map, arXiv 2602.03876, up to scale), `ndcg_penalty`, and
`zscore` of the scores. Ranks of the first two voices are the same, so those runs are shared.

So that no mapping wins by its scale: every step's gradient is scaled to the same norm (a clip value far below any
gradient), and the KL term weighs 1e-8, so that only the direction of a mapping's gradient is left. Same steps, same
batches. Read twice: after the last step (equal gradient norm), and where each run's KL from the warm start reaches the
smallest that any mapping of the same seed and voice ends with (equal KL; accuracy is linear between measurements).

Each run is one of the command line; results are kept as they come. Writes JSON and a plot, prints the README's table:

    .venv/bin/python -m benchmarks.ordinal_vs_scalar [--seeds 0 1 2 3 4] [--steps 200] [--output outputs/ordinal]
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import random
from collections.abc import Sequence
from typing import Any

import yaml

from benchmarks.demo_controls import interval
from benchmarks.harness import about, installed
from orlaif.demo.demo import Demo, quiet
from orlaif.demo.shapes import SIZES
from orlaif.oracles.reference_answer import ReferenceAnswerOracle
from orlaif.types import CandidateGroup

VOICES = ("calibrated", "distorted", "noisy")
MAPPINGS = {"dcg": "DCG", "borda": "Borda", "ndcg_penalty": "NDCGPenalty", "zscore": "ZScore"}


class Judge:
    """A judge that gives scores; a function of prompt and answer.

    Args:
        voice: one of ``VOICES``.
        seed: of scales and noise.

    Raises:
        ValueError: another voice.
    """

    def __init__(self, voice: str = "calibrated", seed: int = 0) -> None:
        if voice not in VOICES:
            raise ValueError(f"voice is {voice!r}; it must be one of {', '.join(VOICES)}")
        self.voice, self.seed = voice, seed
        self._grader = ReferenceAnswerOracle()

    def __call__(self, group: CandidateGroup) -> list[float]:
        """One score per answer."""
        grades = self._grader.rank([group]).scores
        assert grades is not None
        if self.voice == "calibrated":
            return grades[0].tolist()
        scale = math.exp(1.5 * random.Random(f"{self.seed}/{group.prompt.id}").gauss(0, 1))
        return [
            scale
            * math.exp(4 * (grade + (0.15 * self._noise(group.prompt.id, answer) if self.voice == "noisy" else 0)))
            for grade, answer in zip(grades[0].tolist(), group.answers, strict=True)
        ]

    def _noise(self, prompt_id: str, answer: str) -> float:
        """Student's t with 3 degrees of freedom, within 6, so that no score is infinite."""
        draw = random.Random(f"{self.seed}/{prompt_id}/{answer}")
        t = draw.gauss(0, 1) / math.sqrt(sum(draw.gauss(0, 1) ** 2 for _ in range(3)) / 3)
        return max(-6.0, min(6.0, t))


def run(demo: Demo, mapping: str, voice: str, steps: int, every: int) -> dict[str, Any]:
    """One run: accuracy (500 test questions, greedy) every so many steps, and KL from the warm start with it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    name = f"{mapping}_{voice}"
    overlay = {
        "model": {
            "class_path": "orlaif.OracleRLAIF",
            "init_args": {
                "oracle": {
                    "class_path": "orlaif.oracles.ScoreOracle",
                    "init_args": {
                        "score": {
                            "class_path": "benchmarks.ordinal_vs_scalar.Judge",
                            "init_args": {"voice": voice, "seed": demo.seed},
                        }
                    },
                },
                "advantage": {"class_path": f"orlaif.advantages.{MAPPINGS[mapping]}"},
                "loss": {"kl_coef": 1e-8},
                "lr_scheduler": {
                    "class_path": "torch.optim.lr_scheduler.OneCycleLR",
                    "init_args": {"max_lr": 0.0015, "total_steps": steps, "pct_start": 0.1},
                },
                "order_consistency_every_n_steps": 0,
            },
        },
        "trainer": {
            "max_steps": steps,
            "gradient_clip_val": 1e-3,
            "val_check_interval": every,
            "log_every_n_steps": 5,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "enable_checkpointing": False,
            "callbacks": None,
        },
    }
    path = demo.path(f"{name}.yaml")
    with open(path, "w", encoding="utf-8") as file:
        yaml.safe_dump(overlay, file)
    test = ["--data.init_args.val.init_args.split=test"]
    demo.fit("demo_rlaif.yaml", name, demo.path("sft", "export"), ["--config", path, *test])
    events = EventAccumulator(demo.path(name), size_guidance={"scalars": 0}).Reload()
    kl = [(event.step, event.value) for event in events.Scalars("train/kl")]
    accuracy = [(event.step + 1, event.value) for event in events.Scalars("val/accuracy")]
    curve = []
    for step, value in accuracy:
        near = [k for at, k in kl if step - every // 2 < at <= step] or [kl[-1][1]]
        curve.append({"step": step, "accuracy": value, "kl": sum(near) / len(near)})
    norms = [event.value for event in events.Scalars("train/grad_norm")]
    return {
        "curve": curve,
        "smallest_gradient_norm": min(norms),
        "zero_signal": _mean(events, "oracle/zero_signal_rate"),
    }


def _mean(events: Any, tag: str) -> float:
    values = [event.value for event in events.Scalars(tag)]
    return sum(values) / len(values)


def run_seed(seed: int, output: str, steps: int, every: int) -> dict[str, Any]:
    """The warm start's accuracy, and every mapping's run in every voice."""
    demo = Demo(seed, os.path.join(output, f"seed{seed}"))
    path = demo.path("results.json")
    results: dict[str, Any] = {}
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            results = json.load(file)
    demo.prepare()
    if "warm start" not in results:
        demo.fit("demo_sft.yaml", "sft", demo.path("model"), ["--trainer.enable_progress_bar=false"])
        results["warm start"] = demo.test("demo_sft.yaml", "sft")["test/accuracy"]
    for voice in VOICES:
        for mapping in MAPPINGS:
            key = f"{mapping}/{voice}"
            if voice == "distorted" and mapping != "zscore":
                continue  # the ranks are those of the calibrated voice
            if key not in results:
                results[key] = run(demo, mapping, voice, steps, every)
                with open(path, "w", encoding="utf-8") as file:
                    json.dump(results, file)
    return results


def curve_of(row: dict[str, Any], mapping: str, voice: str) -> list[tuple[float, float]]:
    """(KL, accuracy) from the warm start on."""
    shared = "calibrated" if voice == "distorted" and mapping != "zscore" else voice
    points = row[f"{mapping}/{shared}"]["curve"]
    return [(0.0, row["warm start"]), *((p["kl"], p["accuracy"]) for p in points)]


def accuracy_at(curve: Sequence[tuple[float, float]], kl: float) -> float:
    """Where the curve first reaches ``kl``, linear between its points."""
    for (k0, a0), (k1, a1) in itertools.pairwise(curve):
        if k1 >= kl:
            return a0 + (a1 - a0) * (kl - k0) / max(k1 - k0, 1e-12)
    return curve[-1][1]


def summary(results: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Mean and 95 % interval over seeds: at equal gradient norm, at equal KL, and each mapping less ``zscore``."""
    table: dict[str, Any] = {}
    for voice in VOICES:
        ends: dict[str, list[float]] = {mapping: [] for mapping in MAPPINGS}
        level: dict[str, list[float]] = {mapping: [] for mapping in MAPPINGS}
        for row in results.values():
            curves = {mapping: curve_of(row, mapping, voice) for mapping in MAPPINGS}
            kl = min(max(k for k, _ in curve) for curve in curves.values())
            for mapping, curve in curves.items():
                ends[mapping].append(100 * curve[-1][1])
                level[mapping].append(100 * accuracy_at(curve, kl))
        for how, values in (("equal gradient norm", ends), ("equal KL", level)):
            for mapping in MAPPINGS:
                paired = [a - b for a, b in zip(values[mapping], values["zscore"], strict=True)]
                table[f"{voice}/{how}/{mapping}"] = {
                    "accuracy": interval(values[mapping]),
                    "less_zscore": interval(paired),
                    "seeds": values[mapping],
                }
    return table


def markdown(table: dict[str, Any]) -> str:
    """Rows are mappings; columns are voices, each read twice."""
    ways = [(voice, how) for voice in VOICES for how in ("equal gradient norm", "equal KL")]
    lines = ["| | " + " | ".join(f"{voice}, {how}" for voice, how in ways) + " |", "|---" * (len(ways) + 1) + "|"]
    for mapping in MAPPINGS:
        cells = (table[f"{voice}/{how}/{mapping}"]["accuracy"] for voice, how in ways)
        lines.append(f"| `{mapping}` | " + " | ".join(f"{mean:.1f} ± {half:.1f}" for mean, half in cells) + " |")
    return "\n".join(lines)


def plot(results: dict[int, dict[str, Any]], table: dict[str, Any], path: str) -> None:
    """Accuracy against KL, a panel per voice, a line per seed; and the ends with their intervals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(VOICES) + 1, figsize=(16, 4))
    for axis, voice in zip(axes, VOICES, strict=False):
        for number, mapping in enumerate(MAPPINGS):
            for row in results.values():
                curve = curve_of(row, mapping, voice)
                axis.plot([k for k, _ in curve], [100 * a for _, a in curve], color=f"C{number}", alpha=0.6)
            axis.plot([], [], color=f"C{number}", label=mapping)
        axis.set(title=voice, xlabel="KL from the warm start, per token", ylabel="test accuracy, %")
        axis.legend()
    for number, mapping in enumerate(MAPPINGS):
        bars = [table[f"{voice}/equal gradient norm/{mapping}"]["accuracy"] for voice in VOICES]
        places = [i + 0.2 * (number - 1.5) for i in range(len(VOICES))]
        axes[-1].errorbar(places, [b[0] for b in bars], [b[1] for b in bars], fmt="o", capsize=3, label=mapping)
    axes[-1].set_xticks(range(len(VOICES)), VOICES)
    axes[-1].set(title="after the last step, 95 % intervals", ylabel="test accuracy, %")
    figure.tight_layout()
    figure.savefig(path, dpi=80)


def main() -> None:
    """Run what is missing, then write the JSON and the plot and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--output", default="outputs/ordinal")
    arguments = parser.parse_args()
    quiet()
    every = max(1, arguments.steps // 4)
    results = {seed: run_seed(seed, arguments.output, arguments.steps, every) for seed in arguments.seeds}
    table = summary(results)
    report = {
        "what": "test accuracy by mapping and by how the judge is heard; percent, mean and half a 95 % interval",
        "test_questions": SIZES["test"],
        "steps": arguments.steps,
        "table": table,
        "runs": {str(seed): row for seed, row in results.items()},
        **about(cuda=False),
        "versions": installed("torch", "transformers", "lightning", "torchcodec"),
    }
    with open(os.path.join(arguments.output, "ordinal_vs_scalar.json"), "w", encoding="utf-8") as file:
        json.dump(report, file, indent=2)
    plot(results, table, os.path.join(arguments.output, "ordinal_vs_scalar.png"))
    print("\n" + markdown(table))


if __name__ == "__main__":
    main()
