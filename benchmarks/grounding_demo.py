"""What Oracle-RLAIF by tIoU gains on rendered clips whose event has a known interval, over seeds.

Runs ``python -m orlaif.demo --grounding`` once a seed, seeds that are done already excepted, and writes mIoU of the
warm start, behind RLAIF and of the best answer that does not look at the clip, with steps and seconds:

    .venv/bin/python -m benchmarks.grounding_demo [--seeds 0 1 2] [--output outputs/grounding_demo]
"""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

import yaml

from benchmarks.harness import about, installed
from orlaif.demo.demo import quiet
from orlaif.demo.grounding import GroundingDemo

RECIPES = {"warm_start": "demo_grounding_sft.yaml", "rlaif": "demo_grounding.yaml"}


def of_seed(seed: int, output: str, recipes: str) -> dict[str, Any]:
    """The demo's summary, from its file where it has run."""
    demo = GroundingDemo(seed, os.path.join(output, f"seed{seed}"), recipes)
    if not os.path.exists(demo.path("summary.json")):
        demo.run()
    with open(demo.path("summary.json"), encoding="utf-8") as file:
        summary: dict[str, Any] = json.load(file)
    return summary


def steps_of(recipe: str) -> int:
    """Steps of a recipe."""
    with open(recipe, encoding="utf-8") as file:
        return int(yaml.safe_load(file)["trainer"]["max_steps"])


def main() -> None:
    """Run what is missing, then write the JSON and print a line a seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", default="outputs/grounding_demo")
    parser.add_argument("--recipes", default="recipes")
    parser.add_argument("--beside", default="nothing", help="what else the machine did meanwhile, for the record")
    arguments = parser.parse_args()
    quiet()
    found = {str(seed): of_seed(seed, arguments.output, arguments.recipes) for seed in arguments.seeds}
    report = {
        "what": "mIoU and R@t on the grounding demo's test clips, greedy, before and after RLAIF; seconds of stages",
        "steps": {stage: steps_of(os.path.join(arguments.recipes, name)) for stage, name in RECIPES.items()},
        "found": found,
        "beside": arguments.beside,
        **about(cuda=False),
        "versions": installed("torch", "transformers", "lightning", "torchcodec"),
    }
    with open(os.path.join(arguments.output, "grounding_demo.json"), "w", encoding="utf-8") as file:
        json.dump(report, file, indent=2)
    for seed, row in found.items():
        before, after = row["before"]["miou"], row["after"]["miou"]
        print(f"seed {seed}: mIoU {before:.3f} -> {after:.3f}; best constant answer {row['constant_miou']:.3f}")


if __name__ == "__main__":
    main()
