"""The paper's oracle, end to end, on the embedded data set: no reference answer is seen after the labels are made.

For each seed: the demo's warm start; groups of its answers to the training and the validation questions, ranked once;
a preference ranker trained on the former and held out on the latter; and Oracle-RLAIF of the warm start against that
ranker. Test accuracy is that of 500 questions, greedy. Each stage is one of the command line, as in the header of
recipes/ranker_demo.yaml. Writes JSON and prints the README's table:

    .venv/bin/python -m benchmarks.preference_ranker [--seeds 0 1 2] [--output outputs/preference_ranker]
"""

from __future__ import annotations

import argparse
import json
import os

from benchmarks.demo_controls import interval
from benchmarks.harness import about, installed
from orlaif.cli.recipe import run as run_cli
from orlaif.demo.demo import POLICY_PATH, Demo, quiet

BAR = "--trainer.enable_progress_bar=false"


def run_seed(seed: int, output: str) -> dict[str, float]:
    """Accuracy before and after, and the ranker's held-out pair accuracy; what is there already is not run again."""
    demo = Demo(seed, os.path.join(output, f"seed{seed}"))
    path = demo.path("results.json")
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    demo.prepare()
    start = demo.fit("demo_sft.yaml", "sft", demo.path("model"), [BAR])
    results = {"warm start": demo.test("demo_sft.yaml", "sft")["test/accuracy"]}
    for run, split in (("train", "train"), ("held_out", "validation")):
        shapes = {"root": demo.path("data"), "split": split, "seed": seed}
        dataset = json.dumps({"class_path": "orlaif.demo.shapes.ShapesDataset", "init_args": shapes})
        sampling = ["--model", "orlaif.PreferenceSampling", f"--data.init_args.predict={dataset}", BAR]
        demo.orlaif("predict", "demo_rlaif.yaml", f"sampled/{run}", start, sampling)
    files = {run: demo.path("sampled", run, "predictions", "preferences.jsonl") for run in ("train", "held_out")}
    ranker = ["fit", "--config", "recipes/ranker_demo.yaml", f"--seed_everything={seed}", f"{POLICY_PATH}={start}", BAR]
    for split, run in (("train", "train"), ("val", "held_out"), ("test", "held_out")):
        ranker.append(f"--data.init_args.{split}.init_args.path={files[run]}")
    cli = run_cli([*ranker, f"--run_dir={demo.path('ranker')}"])
    results["held-out pair accuracy"] = float(cli.trainer.callback_metrics["val/pair_accuracy"])
    oracle = f"--model.init_args.oracle.init_args.path={demo.path('ranker', 'export')}"
    demo.fit("demo_rlaif.yaml", "rlaif", start, ["--config", "recipes/oracles/preference_ranker.yaml", oracle, BAR])
    results["rlaif"] = demo.test("demo_rlaif.yaml", "rlaif")["test/accuracy"]
    with open(path, "w", encoding="utf-8") as file:
        json.dump(results, file)
    return results


def main() -> None:
    """Run what is missing, then write the JSON and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", default="outputs/preference_ranker")
    arguments = parser.parse_args()
    quiet()
    results = {seed: run_seed(seed, arguments.output) for seed in arguments.seeds}
    gains = [100 * (row["rlaif"] - row["warm start"]) for row in results.values()]
    report = {
        "what": "accuracy in percent of 500 test questions before and after RLAIF against a trained preference ranker",
        "seeds": {str(seed): {name: 100 * value for name, value in row.items()} for seed, row in results.items()},
        "gain": dict(zip(("mean", "half_95_interval"), interval(gains), strict=True)),
        **about(cuda=False),
        "versions": installed("torch", "transformers", "lightning", "torchcodec"),
    }
    with open(os.path.join(arguments.output, "preference_ranker.json"), "w", encoding="utf-8") as file:
        json.dump(report, file, indent=2)
    print("\n| seed | held-out pairs | warm start | RLAIF against the ranker | gain |\n|---|---|---|---|---|")
    for (seed, row), gain in zip(results.items(), gains, strict=True):
        cells = [100 * row[name] for name in ("held-out pair accuracy", "warm start", "rlaif")]
        print(f"| {seed} | " + " | ".join(f"{cell:.1f} %" for cell in cells) + f" | {gain:+.1f} |")


if __name__ == "__main__":
    main()
