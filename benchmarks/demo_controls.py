"""What the demo's gain is made of: the same warm start, followed by four different stages of equal length.

    rlaif          Oracle-RLAIF as in recipes/demo_rlaif.yaml: ranks by the reference answer, `dcg`
    random ranks   the same with an oracle that knows nothing: must gain nothing
    scores         the same with the oracle's scores in place of its ranks, `zscore` (scalar GRPO)
    more SFT       as many further supervised steps on the reference answers

Each arm of each seed is a separate run through the command line; results are kept as they come, so that an
interrupted benchmark goes on where it stopped. Writes JSON and prints the table of the README:

    .venv/bin/python -m benchmarks.demo_controls [--seeds 0 1 2 3 4] [--output outputs/demo_controls]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version

from benchmarks.significance import interval
from orlaif.demo.demo import Demo, quiet
from orlaif.demo.shapes import SIZES

ARMS: dict[str, tuple[str, Sequence[str]]] = {
    "rlaif": ("demo_rlaif.yaml", ()),
    "random ranks": ("demo_rlaif.yaml", ("--model.init_args.oracle=orlaif.oracles.RandomOracle",)),
    "scores (zscore)": ("demo_rlaif.yaml", ("--model.init_args.advantage=orlaif.advantages.ZScore",)),
    "more SFT": (
        "demo_sft.yaml",
        (
            "--trainer.max_steps=400",
            "--trainer.max_epochs=4",
            "--trainer.val_check_interval=100",
            "--model.init_args.lr_scheduler.init_args.total_steps=400",
            "--model.init_args.lr_scheduler.init_args.max_lr=0.0015",
        ),
    ),
}


def run_seed(seed: int, output: str, recipes: str) -> dict[str, float]:
    """Test accuracy of the warm start and of each arm."""
    demo = Demo(seed, os.path.join(output, f"seed{seed}"), recipes)
    results_path = demo.path("results.json")
    results: dict[str, float] = {}
    if os.path.exists(results_path):
        with open(results_path, encoding="utf-8") as file:
            results = json.load(file)

    def keep(arm: str, recipe: str, run: str) -> None:
        results[arm] = demo.test(recipe, run)["test/accuracy"]
        with open(results_path, "w", encoding="utf-8") as file:
            json.dump(results, file)

    demo.prepare()
    bar = "--trainer.enable_progress_bar=false"
    if "warm start" not in results:
        demo.fit("demo_sft.yaml", "sft", demo.path("model"), [bar])
        keep("warm start", "demo_sft.yaml", "sft")
    for arm, (recipe, extra) in ARMS.items():
        if arm not in results:
            run = arm.split(" (")[0].replace(" ", "_")
            demo.fit(recipe, run, demo.path("sft", "export"), [bar, *extra])
            keep(arm, recipe, run)
    return results


def table(results: dict[int, dict[str, float]]) -> str:
    """Markdown: accuracy of each seed, mean gain over the warm start with its interval, in points."""
    seeds = sorted(results)
    lines = [
        "| | " + " | ".join(f"seed {s}" for s in seeds) + " | gain (95 % interval) |",
        "|---" * (len(seeds) + 2) + "|",
    ]
    for arm in ("warm start", *ARMS):
        gains = [100 * (results[s][arm] - results[s]["warm start"]) for s in seeds]
        mean, half = interval(gains)
        gain = "" if arm == "warm start" else f"{mean:+.1f} ± {half:.1f}"
        lines.append(f"| {arm} | " + " | ".join(f"{100 * results[s][arm]:.1f}" for s in seeds) + f" | {gain} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, then write the JSON and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--output", default="outputs/demo_controls")
    parser.add_argument("--recipes", default="recipes")
    arguments = parser.parse_args()
    quiet()
    results = {seed: run_seed(seed, arguments.output, arguments.recipes) for seed in arguments.seeds}
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    report = {
        "what": "test accuracy of the demo's warm start and of four stages that start from it",
        "test_questions": SIZES["test"],
        "accuracy": {str(seed): row for seed, row in results.items()},
        "commit": commit,
        "versions": {name: version(name) for name in ("torch", "transformers", "lightning", "torchcodec")},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    with open(os.path.join(arguments.output, "demo_controls.json"), "w", encoding="utf-8") as file:
        json.dump(report, file, indent=2)
    print("\n" + table(results))


if __name__ == "__main__":
    main()
