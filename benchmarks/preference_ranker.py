"""The paper's oracle, end to end, on the embedded data set: no reference answer is seen after the labels are made.

For each seed: the demo's warm start; groups of its answers to the training and the validation questions, ranked once; a
pairwise and a listwise ranker trained on the former and held out on the latter; and Oracle-RLAIF of the warm start
against either. Test accuracy is that of 500 questions, greedy. Each stage is one of the command line, as in the header
of recipes/ranker_demo.yaml. Writes JSON and prints the table of the page of benchmarks:

    .venv/bin/python -m benchmarks.preference_ranker [--seeds 0 1 2] [--output outputs/preference_ranker] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections import Counter

import torch

from benchmarks.harness import about, installed
from benchmarks.significance import interval
from orlaif.cli.recipe import run as run_cli
from orlaif.data.preferences import PreferenceJsonl
from orlaif.data.video import UniformSampling, decode_clip
from orlaif.demo.demo import POLICY_PATH, Demo, quiet
from orlaif.oracles import PreferenceRanker, order_consistency
from orlaif.types import CandidateGroup, PreferencePrompt

BAR = "--trainer.enable_progress_bar=false"
KINDS = {"pairwise": "PreferenceRankerTraining", "listwise": "ListwiseRankerTraining"}
#: Behind a full warm start: enough for every stage to run, and for no figure that means anything.
QUICK = {
    "predict": ["--trainer.limit_predict_batches=2"],
    "ranker_demo.yaml": ["--trainer.max_steps=20", "--trainer.val_check_interval=10"],
    "demo_rlaif.yaml": ["--trainer.max_steps=3", "--trainer.limit_val_batches=0"],
}


def prepared(demo: Demo, quick: bool) -> tuple[str, float, dict[str, str]]:
    """The warm start, its test accuracy, and the files of ranked groups by split."""
    more = {stage: flags if quick else [] for stage, flags in QUICK.items()}
    demo.prepare()
    start = demo.fit("demo_sft.yaml", "sft", demo.path("model"), [BAR])
    accuracy = demo.test("demo_sft.yaml", "sft")["test/accuracy"]
    for run, split in (("train", "train"), ("held_out", "validation")):
        shapes = {"root": demo.path("data"), "split": split, "seed": demo.seed}
        dataset = json.dumps({"class_path": "orlaif.demo.shapes.ShapesDataset", "init_args": shapes})
        sampling = ["--model", "orlaif.PreferenceSampling", f"--data.init_args.predict={dataset}", BAR]
        demo.orlaif("predict", "demo_rlaif.yaml", f"sampled/{run}", start, [*sampling, *more["predict"]])
    files = {run: demo.path("sampled", run, "predictions", "preferences.jsonl") for run in ("train", "held_out")}
    return start, accuracy, files


def run_kind(demo: Demo, kind: str, start: str, files: dict[str, str], quick: bool) -> dict[str, float]:
    """One kind of ranker: trained, measured on the held-out groups, and the policy that learned from it."""
    more = {stage: flags if quick else [] for stage, flags in QUICK.items()}
    folder = demo.path(f"ranker_{kind}")
    ranker = ["fit", "--config", "recipes/ranker_demo.yaml", f"--model=orlaif.training.ranker.{KINDS[kind]}"]
    ranker += [f"--seed_everything={demo.seed}", f"{POLICY_PATH}={start}", BAR, f"--run_dir={folder}"]
    for split, run in (("train", "train"), ("val", "held_out"), ("test", "held_out")):
        ranker.append(f"--data.init_args.{split}.init_args.path={files[run]}")
    cli = run_cli([*ranker, *more["ranker_demo.yaml"]])
    results = {"held-out pair accuracy": float(cli.trainer.callback_metrics["val/pair_accuracy"])}
    export = os.path.join(folder, "export")
    results |= in_use(export, files["held_out"], kind)
    oracle = ["--config", "recipes/oracles/preference_ranker.yaml", f"--model.init_args.oracle.init_args.path={export}"]
    demo.fit("demo_rlaif.yaml", f"rlaif_{kind}", start, [*oracle, BAR, *more["demo_rlaif.yaml"]])
    results["rlaif"] = demo.test("demo_rlaif.yaml", f"rlaif_{kind}")["test/accuracy"]
    return results


def held_out(file: str, most: int = 64) -> list[CandidateGroup]:
    """Held-out groups of the commonest size."""
    prompts = [prompt for prompt in PreferenceJsonl(file).prompts if isinstance(prompt, PreferencePrompt)]
    size = Counter(len(prompt.answers) for prompt in prompts).most_common(1)[0][0]
    chosen = [prompt for prompt in prompts if len(prompt.answers) == size][:most]
    return [
        CandidateGroup(prompt=prompt, clip=decode_clip(prompt, UniformSampling(8)), answers=prompt.answers)
        for prompt in chosen
    ]


def loaded(folder: str, orders: int | None) -> PreferenceRanker:
    """A ranker as a run's oracle has it."""
    return PreferenceRanker(folder, dtype="float32", device="cpu", batch_size=32, num_orders=orders)


def in_use(folder: str, file: str, kind: str) -> dict[str, float]:
    """How often a shuffled group is ranked alike."""
    groups = held_out(file)
    found: dict[str, float] = {"answers in a group": len(groups[0].answers)}
    for orders in (1, 2) if kind == "listwise" else (None,):
        oracle = loaded(folder, orders)
        consistency = order_consistency(oracle, groups, oracle.rank(groups), torch.Generator().manual_seed(0))
        found[f"order consistency{', one order' if orders == 1 else ''}"] = consistency
    return found


def costs(demo: Demo, file: str) -> dict[str, dict[str, float]]:
    """Milliseconds of cores that each ranker takes for a group, taking turns: median of seven, least and most."""
    groups = held_out(file)
    times: dict[str, list[float]] = {}
    ways = {"pairwise": ("pairwise", None), "listwise, one order": ("listwise", 1), "listwise": ("listwise", 2)}
    oracles = {name: loaded(demo.path(f"ranker_{kind}", "export"), orders) for name, (kind, orders) in ways.items()}
    for oracle in oracles.values():
        oracle.rank(groups)  # the first also loads
    for _ in range(7):
        for name, oracle in oracles.items():
            begin = time.process_time()
            oracle.rank(groups)
            times.setdefault(name, []).append(1e3 * (time.process_time() - begin) / len(groups))
    return {name: {"median": statistics.median(ms), "least": min(ms), "most": max(ms)} for name, ms in times.items()}


def run_seed(seed: int, output: str, quick: bool) -> dict[str, dict[str, float]]:
    """Figures of each kind of ranker; what is there already is not run again."""
    demo = Demo(seed, os.path.join(output, f"seed{seed}"))
    path = demo.path("kinds.json")
    results: dict[str, dict[str, float]] = {}
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            results = json.load(file)
    missing = [kind for kind in KINDS if kind not in results]
    if missing:
        start, accuracy, files = prepared(demo, quick)
    for kind in missing:
        results[kind] = {"warm start": accuracy, **run_kind(demo, kind, start, files, quick)}
        with open(path, "w", encoding="utf-8") as file:
            json.dump(results, file)
    cost = costs(demo, demo.path("sampled", "held_out", "predictions", "preferences.jsonl"))
    for kind in KINDS:
        results[kind]["core ms per group"] = cost[kind]["median"]
    results["listwise"]["core ms per group, one order"] = cost["listwise, one order"]["median"]
    return results


def main() -> None:
    """Run what is missing, then write the JSON and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", default="outputs/preference_ranker")
    parser.add_argument("--quick", action="store_true", help="a few steps of each stage: shows that it runs")
    arguments = parser.parse_args()
    quiet()
    results = {seed: run_seed(seed, arguments.output, arguments.quick) for seed in arguments.seeds}
    gains = {kind: [100 * (row[kind]["rlaif"] - row[kind]["warm start"]) for row in results.values()] for kind in KINDS}
    report = {
        "what": "accuracy (a share) of 500 test questions before and after RLAIF against each kind of trained ranker; "
        "its held-out pair accuracy; core milliseconds per held-out group, and share of shuffled groups ranked alike",
        "quick": arguments.quick,
        "seeds": {str(seed): row for seed, row in results.items()},
        "gain": {
            kind: dict(zip(("mean", "half_95_interval"), interval(values), strict=True))
            for kind, values in gains.items()
            if len(values) > 1
        },
        **about(cuda=False),
        "versions": installed("torch", "transformers", "lightning", "torchcodec"),
    }
    with open(os.path.join(arguments.output, "preference_ranker.json"), "w", encoding="utf-8") as file:
        json.dump(report, file, indent=2)
    print("\n| seed | ranker | held-out pairs | warm start | RLAIF | gain | core ms per group | order consistency |")
    print("|---|---|---|---|---|---|---|---|")
    for place, (seed, kinds) in enumerate(results.items()):
        for kind, row in kinds.items():
            cells = [f"{100 * row[name]:.1f} %" for name in ("held-out pair accuracy", "warm start", "rlaif")]
            cells += [f"{gains[kind][place]:+.1f}", f"{row['core ms per group']:.1f}"]
            print(f"| {seed} | {kind} | {' | '.join(cells)} | {row['order consistency']:.2f} |")


if __name__ == "__main__":
    main()
