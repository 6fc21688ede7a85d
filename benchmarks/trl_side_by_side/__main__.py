"""TRL's GRPOTrainer beside orlaif: one model, one text-only task, the same settings; accuracy and time of a step.

The task: five letters are to be said in reverse order; the reward is the share of places that are right. The model is
the demo's tiny Qwen3-VL, without any video, after a supervised warm start that is broken off early. From there both
train with plain scalar GRPO: group z-scores (``ZScore``; ``scale_rewards: group``), all tokens alike (``dapo``), the
same clip, KL coefficient, temperature, AdamW, schedule, gradient clip and number of prompts, answers and steps, in
float32.
Which prompts a step sees, and what is drawn from the policy, differs by each side's own random numbers. Two things are
left as each has them: TRL's KL gradient (``use_bias_correction_kl``, true by default), and the tokens that stand for
images and videos, which orlaif leaves out of its probabilities. Without these two the weights after two steps are equal
to float32's rounding (``tests/training/test_as_trl.py``).

Each run is a process of its own, orlaif and TRL in turn, on one thread. Both exports are read by one loop: greedy
answers to the same 500 test questions. A run that is there already is not made again. Writes JSON:

    .venv/bin/python -m benchmarks.trl_side_by_side [--seeds 0 1 2] [--output outputs/trl]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness import about, installed
from benchmarks.significance import interval
from benchmarks.trl_side_by_side.sides import GROUP, KL, LR, PROMPTS, STEPS, by_orlaif, by_trl
from benchmarks.trl_side_by_side.task import LETTERS, SIZES, data, read

SIDES, METRICS = ("orlaif", "trl"), ("accuracy", "reward")


def one(folder: Path, seed: int, side: str, sft_steps: int) -> None:
    """One stage of one seed, in this process."""
    if side == "sft":
        from orlaif.demo.tiny import make_tiny_model

        make_tiny_model(str(folder / "model"), [*LETTERS, "reverse"], seed=seed)
        data(folder, seed)
        by_orlaif(folder, seed, "sft", sft_steps)
    elif side == "orlaif":
        by_orlaif(folder, seed, "rl", STEPS)
    else:
        by_trl(folder, seed, STEPS)


def summary(runs: dict[str, Any]) -> dict[str, Any]:
    """Means over seeds with half a 95 % interval; accuracy in percent, the difference paired by seed."""
    rows: dict[str, Any] = {}
    for stage in ("sft", *SIDES):
        rows[stage] = {what: interval([100 * run[stage][what] for run in runs.values()]) for what in METRICS}
    for side in SIDES:
        rows[side]["seconds_per_step"] = statistics.median(run[side]["seconds_per_step"] for run in runs.values())
    rows["orlaif less trl"] = {
        what: interval([100 * (run["orlaif"][what] - run["trl"][what]) for run in runs.values()]) for what in METRICS
    }
    return rows


def main() -> None:
    """Make the runs that are missing, orlaif and TRL in turn; write the JSON after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", default="outputs/trl")
    parser.add_argument("--sft_steps", type=int, default=60)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    output = Path(arguments.output)
    if arguments.one:
        seed, side = arguments.one
        one(output / f"seed{seed}", int(seed), side, arguments.sft_steps)
        return
    path, runs = output / "runs.json", {}
    if path.is_file():
        runs = json.loads(path.read_text(encoding="utf-8"))
    for seed in map(str, arguments.seeds):
        folder = output / f"seed{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        sides = SIDES if int(seed) % 2 == 0 else SIDES[::-1]
        for side in ("sft", *sides):
            if side in runs.get(seed, {}):
                continue
            again = [sys.executable, "-m", "benchmarks.trl_side_by_side", "--output", str(output)]
            again += ["--sft_steps", str(arguments.sft_steps), "--one", seed, side]
            subprocess.run(again, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            run = folder / ("rl" if side == "orlaif" else side)
            seconds = json.loads((run / "steps.json").read_text(encoding="utf-8"))
            found = read(run / "export", int(seed)) | {"seconds_per_step": statistics.median(seconds)}
            runs.setdefault(seed, {})[side] = found
            path.write_text(json.dumps(runs, indent=2), encoding="utf-8")
            print(seed, side, found, flush=True)
    report = {
        "what": "TRL's GRPOTrainer and orlaif from one warm start, with one set of settings; percent, 95 % intervals",
        "settings": {"prompts": PROMPTS, "group": GROUP, "steps": STEPS, "lr": LR, "kl_coef": KL},
        "test_questions": SIZES["test"],
        "summary": summary(runs),
        "runs": runs,
        **about(cuda=False),
        "versions": installed("torch", "transformers", "trl", "lightning"),
    }
    (output / "trl_side_by_side.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report["summary"], indent=2))


if __name__ == "__main__":
    main()
