"""Ten steps of Oracle-RLAIF on a model of real size with random weights: seconds per stage, and peak memory as planned.

    python -m benchmarks.rlaif --size qwen2.5-vl-3b --output benchmarks/results/rlaif_3b.json         (one GPU)
    python -m benchmarks.rlaif --size qwen2.5-vl-tiny                                                 (any machine)

Qwen2.5-VL from its config, LoRA on the decoder, 32 frames. Batches are made before, not decoded
(``benchmarks/decode.py`` times that), answers are as random as the weights and so of full length, and the oracle is the
random one. On a GPU the peak is ``torch.cuda.max_memory_allocated``; on a CPU all live tensors are counted, as the plan
does on the meta device.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning import Callback, Trainer

from benchmarks.harness import about
from benchmarks.made_frames import MadeFrames
from benchmarks.models import SIZES, kept_model
from orlaif import OracleRLAIF
from orlaif.cli.plan.estimate import Estimate
from orlaif.cli.plan.live_bytes import LiveBytes
from orlaif.cli.plan.sizes import Plan, Setup
from orlaif.distributed.sharding import Sharding
from orlaif.losses import GRPORankLoss
from orlaif.oracles import RandomOracle
from orlaif.policy import Policy
from orlaif.rollout import BaseRollout, Pipelined, Rollout, SamplingParams
from orlaif.types import CandidateGroup, PromptBatch, Ranking


@dataclass(frozen=True, kw_only=True)
class Run:
    """What is run.

    Args:
        size: of the model (``benchmarks.models``).
        steps: of the optimizer.
        batch: P.
        group: G.
        tokens: T.
        frames: of a clip.
        height: of a frame, pixels.
        width: of a frame, pixels.
        sharded: under FSDP2.
        offloaded: weights, gradients and optimizer states on the host; with ``sharded``.
        recomputed: in the backward pass: ``none``, ``layers`` or ``selective``.
        activations_offloaded: what is kept for it waits on the host.
        quantization: of the frozen base (QLoRA).
        staleness: batches that are sampled and judged ahead.
        judge_s: seconds that the judge waits.
        rank: of the adapter.
        dtype: of the weights.
    """

    size: str = "qwen2.5-vl-3b"
    steps: int = 10
    batch: int = 1
    group: int = 8
    tokens: int = 128
    frames: int = 32
    height: int = 336
    width: int = 588
    sharded: bool = False
    offloaded: bool = False
    recomputed: str = "layers"
    activations_offloaded: bool = False
    quantization: dict[str, Any] | None = None
    staleness: int = 0
    judge_s: float = 0.0
    rank: int = 64
    dtype: str = "bfloat16"


class Waiting(RandomOracle):
    """Takes its time, as a judge behind a server does.

    Args:
        seconds: of a call.
    """

    mostly_waits = True

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def rank(self, groups: Sequence[CandidateGroup]) -> Ranking:
        """At random, later."""
        time.sleep(self.seconds)
        return super().rank(groups)


class Stages(Callback):
    """Seconds per stage of every step, and from the end of a step to the end of the next."""

    def __init__(self) -> None:
        self.seconds: list[dict[str, float]] = []
        self.ends: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Keep them."""
        names = [name for name in trainer.callback_metrics if name.startswith("time/") and "share" not in name]
        self.seconds.append({name[5:]: float(trainer.callback_metrics[name]) for name in names})
        self.ends.append(time.perf_counter())

    def medians(self) -> dict[str, float]:
        """Without the first step, in which things are compiled and caches made."""
        return {name: statistics.median(step[name] for step in self.seconds[1:]) for name in self.seconds[-1]}

    def step(self) -> float:
        """Median seconds of a step, by the clock on the wall."""
        return statistics.median(b - a for a, b in zip(self.ends, self.ends[1:], strict=False))


def module_of(run: Run, folder: str) -> OracleRLAIF:
    """What trains: LoRA on all of the decoder, a frozen tower, the fused head."""
    settings: dict[str, Any] = {"dtype": run.dtype, "freeze_vision": True, "quantization": run.quantization}
    settings["lora"] = {"r": run.rank, "lora_alpha": 2 * run.rank, "target_modules": "all-linear"}
    settings |= {"gradient_checkpointing": run.recomputed, "activation_offloading": run.activations_offloaded}
    settings["prefix_attention"] = "split"
    rollout: BaseRollout = Rollout(run.group, SamplingParams(max_new_tokens=run.tokens))
    return OracleRLAIF(
        Policy(folder, sharding=Sharding(cpu_offload=run.offloaded), **settings),
        Waiting(run.judge_s) if run.judge_s else RandomOracle(),
        rollout=Pipelined(rollout, run.staleness) if run.staleness else rollout,
        loss=GRPORankLoss(kl_coef=0.02, fused_head=True),
        order_consistency_every_n_steps=0,
        seed=0,
    )


def planned(run: Run, module: OracleRLAIF, first: PromptBatch) -> Plan:
    """What ``orlaif plan`` says of the run.

    Args:
        run: what is run.
        module: its module, not loaded yet.
        first: its first batch.
    """
    pixels = first.mm_inputs["pixel_values_videos"]
    setup = Setup(
        strategy="fsdp2" if run.sharded else "one",
        prompts=run.batch,
        group_size=run.group,
        part=run.group,
        prompt_tokens=first.input_ids.shape[1],
        completion_tokens=run.tokens,
        patches=pixels.shape[0],
        pixels=pixels.shape[1],
        reference=True,
        loss="fused_head",
        host_overhead=0,
    )
    return Estimate(module.policy, module.optimizer).plan(setup)


def fit(module: OracleRLAIF, data: MadeFrames, run: Run, callbacks: list[Callback], folder: str) -> int:
    """Train, and say how many bytes there were at once.

    Args:
        module: what trains.
        data: on what.
        run: what is run.
        callbacks: of the trainer.
        folder: for what the trainer writes.
    """
    cuda = torch.cuda.is_available()
    trainer = Trainer(
        accelerator="gpu" if cuda else "cpu",
        devices=1,
        strategy="fsdp2" if run.sharded else "auto",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=callbacks,
    )
    torch.manual_seed(0)  # PEFT draws the adapter's first weights
    if cuda:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        trainer.fit(module, data)
        return torch.cuda.max_memory_allocated()
    module.policy.load()
    standing = [*module.policy.network.parameters(), *module.policy.network.buffers()]
    weights = sum(p.numel() * p.element_size() for p in module.policy.network.parameters())
    # Threads, and shards in place of the weights, are not followed by the counter.
    counted = run.staleness == 0 and not run.sharded
    with LiveBytes(standing) if counted else nullcontext() as live:
        trainer.fit(module, data)
    # On a GPU a batch's pixels are a copy; here they are the loader's, made before.
    pixels = data.batches[0].mm_inputs["pixel_values_videos"]
    return 0 if live is None else live.peak + weights + pixels.numel() * pixels.element_size()


def measure(run: Run, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
    """Seconds per stage and the peak, beside the plan; where nothing counts the peak, 0.

    Args:
        run: what is run.
        callbacks: further ones of the trainer.
    """
    model = kept_model(run.size, "cuda" if torch.cuda.is_available() else "cpu")
    module = module_of(run, model)
    data = MadeFrames(module.policy, run.steps, run.batch, run.frames, run.height, run.width)
    plan = planned(run, module, data.batches[0])
    stages = Stages()
    with tempfile.TemporaryDirectory() as folder:
        peak = fit(module, data, run, [stages, *callbacks], folder)
    return {
        "run": asdict(run),
        "prompt_tokens": plan.setup.prompt_tokens,
        "tokens_per_step": plan.setup.tokens_per_step,
        "step_s": stages.step(),
        "medians": stages.medians(),
        "seconds": stages.seconds,
        "peak_bytes": peak,
        "planned_bytes": plan.total,
        "plan": {"standing": plan.standing, "phases": plan.phases},
    }


def main() -> None:
    """Run, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default=Run.size)
    for name in ("steps", "batch", "group", "tokens", "frames", "height", "width"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Run, name))
    parser.add_argument("--output")
    given = vars(parser.parse_args())
    output = given.pop("output")
    report = {"about": about(torch.cuda.is_available()), **measure(Run(**given))}
    peak, plan = report["peak_bytes"], report["planned_bytes"]
    print(f"measured {peak / 1e9:.3f} GB, planned {plan / 1e9:.3f} GB: {plan / peak - 1:+.1%}")
    medians = {name: round(value, 4) for name, value in report["medians"].items()}
    print("seconds, medians without the first step:", medians)
    if output:
        os.makedirs(os.path.dirname(output) or ".", exist_ok=True)
        with open(output, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)


if __name__ == "__main__":
    main()
