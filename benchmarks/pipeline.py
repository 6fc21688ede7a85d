"""Sampling ahead: seconds of a step beside its stages, samples per second by actors, and what older weights cost.

    .venv/bin/python -m benchmarks.pipeline steps     a judge that sleeps 1 s; the engine in the step, on a thread at
                                                      staleness 1 and 2, and behind Ray with 2 actors
    .venv/bin/python -m benchmarks.pipeline actors    answers per second of 1 and of 2 actors
    .venv/bin/python -m benchmarks.pipeline accuracy  the demo at staleness 0 and 1, five seeds, each kept as it comes

Each writes JSON below ``--output`` and prints what it found. Timings need a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning import Callback, Trainer

from benchmarks.harness import about
from orlaif import OracleRLAIF, VideoDataModule
from orlaif.data.collator import Collator
from orlaif.data.video import UniformSampling
from orlaif.demo.demo import Demo, quiet
from orlaif.demo.shapes import ShapesDataset, words
from orlaif.demo.tiny import make_tiny_model
from orlaif.oracles import ReferenceAnswerOracle
from orlaif.policy import Policy
from orlaif.policy.encoding import ProcessorEncoder
from orlaif.rollout import BaseRollout, Pipelined, Remote, Rollout, SamplingParams
from orlaif.types import CandidateGroup, Ranking

#: Steps that are not counted: of the first, nothing can be ahead.
WARM = 4
#: Of a step, in the order in which they run where nothing is ahead.
STAGES = ("time/rollout", "time/oracle", "time/reference", "time/old_logps", "time/policy")


class Sleeping(ReferenceAnswerOracle):
    """Takes a second, as a judge behind a server does."""

    mostly_waits = True

    def rank(self, groups: Sequence[CandidateGroup]) -> Ranking:
        """By the reference answer, a second later."""
        time.sleep(1.0)
        return super().rank(groups)


class Clock(Callback):
    """When steps begin, and what they log."""

    def __init__(self) -> None:
        self.at: list[float] = []
        self.stages: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Note the time."""
        self.at.append(time.perf_counter())

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Note the stages."""
        found = trainer.callback_metrics
        self.stages.append({name: float(found[name]) for name in STAGES if name in found})


def engine() -> Rollout:
    """Samples 8 answers of up to 16 tokens."""
    return Rollout(8, SamplingParams(max_new_tokens=16))


ARMS: dict[str, Callable[[], BaseRollout]] = {
    "in the step": engine,
    "on a thread, staleness 1": lambda: Pipelined(engine(), 1),
    "on a thread, staleness 2": lambda: Pipelined(engine(), 2),
    "2 actors, staleness 1": lambda: Remote(engine(), actors=2, staleness=1),
    "2 actors, staleness 2": lambda: Remote(engine(), actors=2, staleness=2),
}


def laid_out(folder: str) -> tuple[str, str]:
    """A tiny model and the clips of the demo; their folders."""
    model, root = os.path.join(folder, "model"), os.path.join(folder, "data")
    make_tiny_model(model, words())
    ShapesDataset(root, "train", size=256).prepare()
    return model, root


def steps(folder: str, number: int = 20) -> dict[str, dict[str, float]]:
    """By arm: median seconds of a step, of its longest stage, and of all stages together."""
    model, root = laid_out(folder)
    found = {}
    for name, rollout in ARMS.items():
        clock = Clock()
        module = OracleRLAIF(Policy(model, dtype="float32"), Sleeping(), rollout(), order_consistency_every_n_steps=0)
        data = VideoDataModule(ShapesDataset(root, "train", size=256), sampling=UniformSampling(8), batch_size=8)
        settings: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        Trainer(
            accelerator="cpu",
            max_steps=number,
            callbacks=[clock],
            default_root_dir=folder,
            limit_val_batches=0,
            enable_model_summary=False,
            **settings,
        ).fit(module, data)
        whole = [b - a for a, b in zip(clock.at[WARM:], clock.at[WARM + 1 :], strict=False)]
        stages = {n: statistics.median(step.get(n, 0.0) for step in clock.stages[WARM:]) for n in STAGES}
        training = sum(stages[n] for n in STAGES[2:])  # on one thread, one behind the other
        longest = max(stages["time/rollout"], stages["time/oracle"], training)
        found[name] = {"step": statistics.median(whole), "longest": longest, "sum": sum(stages.values()), **stages}
        print(f"{name:28s} step {found[name]['step']:.2f} s, longest {longest:.2f} s, sum {found[name]['sum']:.2f} s")
    return found


def actors(folder: str, calls: int = 10) -> dict[str, float]:
    """Answers per second of 1 and of 2 actors: batches of 8 prompts, 8 answers each."""
    model, root = laid_out(folder)
    policy = Policy(model, dtype="float32").load()
    train = ShapesDataset(root, "train", size=256)
    train.load()
    batch = Collator(ProcessorEncoder(policy.processor), UniformSampling(8))([train[i] for i in range(8)]).batch
    found = {}
    for number in (1, 2):
        rollout = Remote(Rollout(8, SamplingParams(max_new_tokens=64)), actors=number)
        rollout.begin(policy, whole=False)

        def sample(rollout: Remote = rollout) -> int:
            generators = [torch.Generator().manual_seed(i) for i in range(len(batch))]
            return int(rollout(rollout.take_weights(policy, batch), batch, generators).mask.any(-1).sum())

        sample()
        start = time.perf_counter()
        answers = sum(sample() for _ in range(calls))
        found[f"{number} actors"] = answers / (time.perf_counter() - start)
        rollout.close()
        print(f"{number} actors: {found[f'{number} actors']:.1f} answers per second")
    return found


OVERLAY = """
model:
  class_path: orlaif.OracleRLAIF
  init_args:
    rollout:
      class_path: orlaif.rollout.Pipelined
      init_args:
        staleness: {staleness}
        engine:
          class_path: orlaif.rollout.Rollout
          init_args: {{group_size: 8, sampling: {{max_new_tokens: 4, temperature: 1.0}}}}
"""


def accuracy(folder: str, seeds: Sequence[int]) -> dict[str, dict[str, float]]:
    """By seed: test accuracy of the warm start, and behind Oracle-RLAIF at staleness 0 and 1."""
    kept = os.path.join(folder, "accuracy_so_far.json")
    found: dict[str, dict[str, float]] = {}
    if os.path.exists(kept):
        with open(kept, encoding="utf-8") as file:
            found = json.load(file)
    bar = "--trainer.enable_progress_bar=false"
    for seed in seeds:
        demo, row = Demo(seed, os.path.join(folder, f"seed{seed}")), found.setdefault(str(seed), {})
        demo.prepare()
        if "warm start" not in row:
            demo.fit("demo_sft.yaml", "sft", demo.path("model"), [bar])
            row["warm start"] = demo.test("demo_sft.yaml", "sft")["test/accuracy"]
        for staleness in (0, 1):
            if (arm := f"staleness {staleness}") in row:
                continue
            overlay = demo.path(f"staleness{staleness}.yaml")
            with open(overlay, "w", encoding="utf-8") as file:
                file.write(OVERLAY.format(staleness=staleness))
            demo.fit("demo_rlaif.yaml", f"ahead{staleness}", demo.path("sft", "export"), [bar, f"--config={overlay}"])
            row[arm] = demo.test("demo_rlaif.yaml", f"ahead{staleness}")["test/accuracy"]
            with open(kept, "w", encoding="utf-8") as file:
                json.dump(found, file, indent=2)
        print(seed, row)
    return found


def main() -> None:
    """Run one of the three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["steps", "actors", "accuracy"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--output", default="outputs/bench/pipeline")
    arguments = parser.parse_args()
    quiet()
    os.makedirs(arguments.output, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.what == "accuracy":
            found: Any = accuracy(arguments.output, arguments.seeds)
        else:
            found = {"steps": steps, "actors": actors}[arguments.what](folder)
    with open(os.path.join(arguments.output, f"{arguments.what}.json"), "w", encoding="utf-8") as file:
        json.dump({"found": found, **about(False)}, file, indent=2)


if __name__ == "__main__":
    main()
