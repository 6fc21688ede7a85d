"""What dynamic sampling buys: the demo with and without it, accuracy against the policy's tokens.

Both arms start from the same warm start and take the same number of steps, each of equally many groups; with dynamic
sampling all of these teach. Sampled tokens are those of all answers of the rollout, trained ones those that went
through the policy's passes. Validation accuracy is noted along with both at every validation; test accuracy at the end.
How many tokens an arm has sampled and trained when it first reaches the accuracy that plain training ends with, is in
the JSON as well, with 95 % intervals over seeds:

    .venv/bin/python -m benchmarks.dynamic_sampling [--seeds 0 1 2 3 4] [--steps 400] [--output outputs/dynamic]
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from lightning import Callback

from benchmarks.harness import about, installed
from benchmarks.significance import interval
from orlaif.demo.demo import Demo, quiet
from orlaif.demo.shapes import SIZES

INIT = "--model.init_args"
ARMS: dict[str, tuple[str, ...]] = {
    "all groups": (),
    "dynamic sampling": (f"{INIT}.dynamic_sampling.max_batches=8",),
}


class Tokens(Callback):
    """Counts the policy's tokens of a run, and keeps them beside every validation's accuracy."""

    def __init__(self) -> None:
        self.sampled = self.trained = 0
        self.curve: list[dict[str, float]] = []
        RUNS.append(self)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Count at the rollout, and at the loss of each part."""
        rollout, loss_of = pl_module.rollout.__class__.__call__, pl_module._loss_of

        def sampling(this: Any, *arguments: Any) -> Any:
            completions = rollout(this, *arguments)
            self.sampled += int(completions.mask.sum())
            return completions

        def training(batch: Any, part: Any) -> Any:
            self.trained += int(part.completions.mask.sum())
            return loss_of(batch, part)

        counted = type("Counted", (pl_module.rollout.__class__,), {"__call__": sampling})
        pl_module.rollout.__class__, pl_module._loss_of = counted, training

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """A point of the curve."""
        if not trainer.sanity_checking:
            accuracy = float(trainer.callback_metrics["val/accuracy"])
            point = {"step": trainer.global_step, "accuracy": accuracy}
            self.curve.append(point | {"sampled": self.sampled, "trained": self.trained})


#: Of the run under way, whose callbacks are made by the command line.
RUNS: list[Tokens] = []


def run_arm(demo: Demo, arm: str, steps: int, every: int, less: list[str]) -> dict[str, Any]:
    """Train from the warm start; the curve, and test accuracy."""
    extra = [
        "--trainer.enable_progress_bar=false",
        f"--trainer.max_steps={steps}",
        "--trainer.max_epochs=1000",
        f"{INIT}.lr_scheduler.init_args.total_steps={steps}",
        f"--trainer.val_check_interval={every}",
        "--trainer.callbacks+=benchmarks.dynamic_sampling.Tokens",
        *ARMS[arm],
        *less,
    ]
    run = arm.replace(" ", "_")
    demo.fit("demo_rlaif.yaml", run, demo.path("sft", "export"), extra)
    return {"curve": RUNS[-1].curve, "test": demo.test("demo_rlaif.yaml", run)["test/accuracy"]}


def reached(curve: list[dict[str, float]], accuracy: float, what: str) -> float | None:
    """Tokens (``sampled`` or ``trained``) at the first validation that is as good; None where none is."""
    return next((point[what] for point in curve if point["accuracy"] >= accuracy), None)


def summary(seeds: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Means and half widths of 95 % intervals over seeds: test accuracy, and tokens until plain training's accuracy."""
    found: dict[str, Any] = {}
    least = {number: seed["all groups"]["curve"][-1]["accuracy"] for number, seed in seeds.items()}
    for arm in ARMS:
        rows: dict[str, list[float | None]] = {"test": [seed[arm]["test"] for seed in seeds.values()]}
        for what in ("sampled", "trained"):
            rows[f"{what} in all"] = [seed[arm]["curve"][-1][what] for seed in seeds.values()]
            rows[f"{what} until plain accuracy"] = [
                reached(seed[arm]["curve"], least[number], what) for number, seed in seeds.items()
            ]
        found[arm] = {}
        for name, values in rows.items():
            known = [value for value in values if value is not None]
            mean, half = interval(known) if len(known) > 1 else (known[0] if known else None, None)
            found[arm][name] = {"mean": mean, "half_width": half, "seeds": len(known), "of": len(values)}
    return found


def main() -> None:
    """Run what is missing, write the JSON, print the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--every", type=int, default=20, help="batches between two validations")
    parser.add_argument("--warm-steps", type=int, default=None, help="of the warm start; by default its recipe's")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--output", default="outputs/dynamic")
    parser.add_argument("--result", default="benchmarks/results/dynamic_sampling.json")
    arguments = parser.parse_args()
    quiet()
    seeds: dict[int, dict[str, Any]] = {}
    for number in arguments.seeds:
        demo = Demo(number, os.path.join(arguments.output, f"seed{number}"))
        kept = demo.path("results.json")
        seeds[number] = json.loads(Path(kept).read_text()) if os.path.exists(kept) else {}
        demo.prepare()
        if not os.path.exists(demo.path("sft", "export")):
            warm = [] if arguments.warm_steps is None else [f"--trainer.max_steps={arguments.warm_steps}"]
            demo.fit("demo_sft.yaml", "sft", demo.path("model"), ["--trainer.enable_progress_bar=false", *warm])
        less = [f"--data.init_args.batch_size={arguments.batch_size}"]
        for arm in ARMS:
            if arm not in seeds[number]:
                seeds[number][arm] = run_arm(demo, arm, arguments.steps, arguments.every, less)
                Path(kept).write_text(json.dumps(seeds[number]))
    report = {
        "what": "the demo with and without dynamic sampling: accuracy against the policy's tokens",
        "settings": {name: getattr(arguments, name) for name in ("steps", "every", "warm_steps", "batch_size")},
        "test_questions": SIZES["test"],
        "summary": summary(seeds),
        "seeds": {str(number): seed for number, seed in seeds.items()},
        **about(cuda=False),
        "versions": installed("torch", "transformers", "lightning"),
    }
    Path(arguments.result).write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report["summary"], indent=2))


if __name__ == "__main__":  # the command line imports this file by its name, so that the lists of both must be one
    from benchmarks import dynamic_sampling

    dynamic_sampling.main()
