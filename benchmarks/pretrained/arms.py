"""What each seed runs: its warm start, and Oracle-RLAIF from it against one oracle after the other."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from benchmarks.judge_server import model_folder, serving
from benchmarks.pretrained.stages import Stages, read_json, write_json

KL = "--model.init_args.loss.kl_coef=0.2"
#: Oracles, and what they change in recipes/pretrained_rlaif.yaml.
ARMS: dict[str, tuple[str, ...]] = {
    "rule": (),
    "rule-kl": (KL,),
    "random": ("--model.init_args.oracle=orlaif.oracles.RandomOracle",),
    "ranker": (),
    "ranker-kl": (KL,),
    "judge": (),
}
#: Of the clips for the ranker, one in so many is held out.
HELD_OUT = 8
#: Answers for the ranker are sampled hotter than the policy's: at 1 nearly all name the right color and shape, and a
#: ranker that has never seen another said does not mind when the policy drifts there.
TEMPERATURE = 1.5


def warm_start(stages: Stages) -> str:
    """The folder of the warm start, which all seeds share, trained and tested."""
    start = stages.fit("pretrained_sft.yaml", "sft", stages.path("model"), 0, stages.data("train=sft", "val=val"))
    stages.test("sft", start, 0)
    return start


def run_arm(stages: Stages, arm: str, seed: int, start: str, judge: str | None = None) -> dict[str, Any]:
    """Oracle-RLAIF against one oracle; the share of facts of the policy behind it."""
    run = f"seed{seed}/{arm}"
    oracle = list(ARMS[arm])
    if arm.startswith("ranker"):
        ranker = train_ranker(stages, start)
        oracle += [
            "--model.init_args.oracle=orlaif.oracles.PreferenceRanker",
            f"--model.init_args.oracle.init_args.path={ranker}",
        ]
    data = stages.data("train=rl", "val=val")
    server: AbstractContextManager[Sequence[str]] = judged(stages, judge) if arm == "judge" else nullcontext(())
    with server as asked:
        trained = stages.fit("pretrained_rlaif.yaml", run, start, seed, [*oracle, *asked, *data])
    return stages.test(run, trained, seed)


@contextmanager
def judged(stages: Stages, recipe: str | None) -> Iterator[Sequence[str]]:
    """Arguments for an oracle that asks a judge: ``recipe``'s, or SmolLM2 behind a server that runs meanwhile."""
    if recipe is not None:
        yield ["--config", recipe]
        return
    model = model_folder(stages.path("judge_model"))
    with serving(model, stages.path("judge_server.log")) as url:
        client = {
            "base_url": url,
            "model": model,
            "cache_dir": stages.path("judge_cache"),
        }
        yield [
            f"--config={os.path.join(stages.recipes, 'oracles', 'decision_judge.yaml')}",
            *(f"--model.init_args.oracle.init_args.client.init_args.{key}={value}" for key, value in client.items()),
        ]


def train_ranker(stages: Stages, start: str) -> str:
    """A pairwise ranker from the warm start's own answers to clips that nothing else learns from; its folder.

    All seeds share it, as they do the warm start.
    """
    run = "ranker"
    files = {}
    for split, rows in split_clips(stages).items():
        sampled = f"sampled_{split}"
        dataset = {"class_path": "orlaif.data.datasets.JsonlDataset", "init_args": {"path": rows}}
        files[split] = stages.path(sampled, "predictions", "preferences.jsonl")
        try:
            read_json(stages.path(sampled, "cost.json"))
        except FileNotFoundError:
            with stages.measured(sampled):
                sampling = ["--model", "orlaif.PreferenceSampling", f"--data.init_args.predict={json.dumps(dataset)}"]
                sampling += [f"--model.init_args.rollout.init_args.sampling.init_args.temperature={TEMPERATURE}"]
                sampling += stages.data("train=rl", "val=val", "test=test")
                stages.orlaif("predict", "pretrained_rlaif.yaml", sampled, start, 0, sampling)
    data = [f"--data.init_args.{split}.init_args.path={files[split]}" for split in ("train", "val")]
    try:
        read_json(stages.path(run, "cost.json"))
    except FileNotFoundError:
        with stages.measured(run):
            cli = stages.orlaif("fit", "pretrained_ranker.yaml", run, start, 0, data)
        accuracy = float(cli.trainer.callback_metrics["val/pair_accuracy"])
        write_json(stages.path(run, "held_out.json"), {"pair_accuracy": accuracy})
    return stages.path(run, "export")


def split_clips(stages: Stages) -> dict[str, str]:
    """Rows of the clips for the ranker, in files of their own: those it learns from, and those held out."""
    with open(stages.path("data", "ranker.jsonl"), encoding="utf-8") as file:
        rows = file.readlines()
    parts = {
        "train": [row for i, row in enumerate(rows) if i % HELD_OUT],
        "val": [row for i, row in enumerate(rows) if not i % HELD_OUT],
    }
    files = {}
    for split, kept in parts.items():
        files[split] = stages.path("data", f"ranker_{split}.jsonl")
        with open(files[split], "w", encoding="utf-8") as file:
            file.writelines(kept)
    return files
