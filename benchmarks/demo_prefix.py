"""What sharing a prompt gains in the demo, whose prompts are short: stages of a step, shared and duplicated.

    .venv/bin/python -m benchmarks.demo_prefix [--output benchmarks/results/demo_prefix.json] [--whole]

Runs of the demo's second stage from the same warm start (made first where `make demo` has not been run), taking turns.
``predicted_policy`` is the ratio of floating-point operations of the policy's forward and backward pass, as PyTorch
counts them. The losses of the first steps are compared, and with ``--whole`` the test accuracy after all 400 steps (ten
minutes more).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import warnings
from typing import Any

import torch
from lightning import Callback, Trainer
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import about, installed
from orlaif import OracleRLAIF, VideoDataModule
from orlaif.data.datamodule import Collator
from orlaif.data.video import UniformSampling
from orlaif.demo.demo import Demo, quiet
from orlaif.demo.shapes import ShapesDataset
from orlaif.losses import GRPORankLoss
from orlaif.oracles import ReferenceAnswerOracle
from orlaif.policy import Policy
from orlaif.policy.encoding import ProcessorEncoder
from orlaif.rollout import Rollout, SamplingParams, generate

STEPS, WARM = 25, 5


class Clock(Callback):
    """Seconds per stage, and the loss, of every step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Keep what this step logged."""
        self.steps.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def run(model: str, data: str, prefix: Any) -> list[dict[str, float]]:
    """Steps of the demo's recipe, at a constant rate."""
    module = OracleRLAIF(
        Policy(model, dtype="float32", prefix=prefix),
        ReferenceAnswerOracle(),
        Rollout(group_size=8, sampling=SamplingParams(max_new_tokens=4)),
        loss=GRPORankLoss(kl_coef=0.02),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-4),
        seed=0,
    )
    clock = Clock()
    videos = VideoDataModule(train=ShapesDataset(data, "train"), sampling=UniformSampling(8), batch_size=32)
    Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_steps=STEPS,
        gradient_clip_val=1.0,
        callbacks=[clock],
    ).fit(module, videos)
    return clock.steps


def operations(model: str, data: str, prefix: Any) -> float:
    """Floating-point operations of the policy's forward and backward pass on one batch."""
    policy = Policy(model, dtype="float32", prefix=prefix).load()
    dataset = ShapesDataset(data, "train")
    dataset.load()
    batch = Collator(ProcessorEncoder(policy.processor), UniformSampling(8))([dataset[i] for i in range(32)]).batch
    completions = generate(policy, batch, 8, SamplingParams(max_new_tokens=4), torch.Generator().manual_seed(0))
    policy.network.train()
    with FlopCounterMode(display=False) as counter:
        policy.completion_logps(batch, completions).sum().backward()
    return float(counter.get_total_flops())


def warm_start(demo: Demo) -> None:
    """The demo's first stage, where it has not been run."""
    demo.prepare()
    if not os.path.exists(demo.path("sft", "export", "config.json")):
        demo.fit("demo_sft.yaml", "sft", demo.path("model"))


def accuracy(demo: Demo, prefix: str) -> float:
    """Test accuracy after the whole second stage."""
    run_name = f"rlaif_{prefix}"
    key = f"--model.init_args.policy.init_args.prefix={prefix}"
    demo.fit("demo_rlaif.yaml", run_name, demo.path("sft", "export"), [key, "--trainer.enable_progress_bar=false"])
    return demo.test("demo_rlaif.yaml", run_name)["test/accuracy"]


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="outputs/demo_prefix.json")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--whole", action="store_true")
    arguments = parser.parse_args()
    quiet()
    warnings.filterwarnings("ignore")
    demo = Demo(0, "outputs/demo")
    warm_start(demo)
    start, data = demo.path("sft", "export"), demo.path("data")
    steps: dict[str, list[dict[str, float]]] = {"shared": [], "duplicate": []}
    losses: dict[str, list[float]] = {}
    for _ in range(arguments.turns):
        for prefix, kept in steps.items():
            new = run(start, data, prefix)
            losses[prefix] = [step["train/loss"] for step in new]
            kept += new[WARM:]
    stages = [name for name in steps["shared"][0] if name.startswith("time/")]
    medians = {
        prefix: {stage: 1e3 * statistics.median(step[stage] for step in kept) for stage in stages}
        for prefix, kept in steps.items()
    }
    report: dict[str, Any] = {
        **about(False),
        "versions": installed("torch", "transformers", "lightning"),
        "predicted_policy": operations(start, data, "duplicate") / operations(start, data, "shared"),
        "median_ms": medians,
        "steps": len(steps["shared"]),
        "largest_difference_of_losses": max(
            abs(a - b) for a, b in zip(losses["shared"], losses["duplicate"], strict=True)
        ),
        "largest_loss": max(abs(a) for a in losses["duplicate"]),
    }
    if arguments.whole:
        report["test_accuracy"] = {prefix: accuracy(demo, prefix) for prefix in steps}
    os.makedirs(os.path.dirname(arguments.output) or ".", exist_ok=True)
    with open(arguments.output, "w", encoding="utf-8") as file:
        json.dump(report, file, indent=1)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
