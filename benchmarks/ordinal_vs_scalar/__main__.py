"""Ranks against scores, every mapping at its own best learning rate, under five voices of one judge.

This is no video-language model: ``questions.py`` has the demo's questions, ``policy.py`` a recurrent policy of 0.06 M
parameters, small enough to train R of them at once; the mappings, the ranking they are given and the loss are the
library's. Each mapping has the same trials: 7 rates on 3 tuning seeds, chosen on validation questions for each voice
(2 lower ones where the lowest is best), and is read on the test questions of other seeds behind the last step (equal
steps). The rate is chosen by greedy accuracy and, for those that equal KL has, by sampled accuracy too. At equal KL: on
8 of those seeds each mapping is run at three rates and read, linear between the ends of those runs, where a run ends
1.25 nats an answer from the warm start. Some are trained three times as long, their rates tuned again.

One process and one thread, resumable; writes JSON and a plot:

    OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.ordinal_vs_scalar [--seeds 16] [--output outputs/ordinal]
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from benchmarks.harness import about, installed
from benchmarks.ordinal_vs_scalar.report import report
from benchmarks.ordinal_vs_scalar.shown import plot
from benchmarks.ordinal_vs_scalar.sweep import Sweep


def main() -> None:
    """Run what is missing, then write the JSON and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=16, help="test seeds, from 0")
    parser.add_argument("--output", type=Path, default=Path("outputs/ordinal"))
    arguments = parser.parse_args()
    seeds = list(range(arguments.seeds))
    sweep = Sweep(arguments.output)
    sweep.all(seeds)
    found = {**report(sweep, seeds), **about(cuda=False), "versions": installed("torch")}
    of = sorted({reading["commit"] for run in sweep.runs.values() for reading in run})
    if of != [found["commit"]]:
        found["commit_note"] = f"its runs of {' and '.join(of)}, each with its own"
    text = re.sub(r"\[[^\[\]{}\"]*\]", lambda numbers: " ".join(numbers[0].split()), json.dumps(found, indent=1))
    (arguments.output / "ordinal_vs_scalar.json").write_text(text, encoding="utf-8")
    plot(found, str(arguments.output / "ordinal_vs_scalar.png"))


if __name__ == "__main__":
    main()
