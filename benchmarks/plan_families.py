"""The plan's bytes beside those of a real step, stage by stage, of each family of which there is a tiny model.

    OMP_NUM_THREADS=1 python -m benchmarks.plan_families [--family qwen3_vl ...] [--plan]

A family's tiny model is made four times as wide and twice as deep (``benchmarks.wider``), and takes one step of
Oracle-RLAIF in a real Trainer on the CPU, in float32: two prompts with a video of noise, eight answers of up to 48
tokens each. Tensors that are alive are counted operation by operation (``benchmarks.by_stage``). Once all weights are
trained, once an adapter on all linear layers. ``--plan`` renews what the plan says and runs nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from torch.utils.data import DataLoader

from benchmarks.by_stage import ByStage
from benchmarks.harness import ROOT, about, commit, installed
from benchmarks.wider import wider_model
from orlaif import OracleRLAIF
from orlaif.cli.plan.estimate import Estimate
from orlaif.cli.plan.recipe_sizes import patches_of
from orlaif.cli.plan.sizes import Setup
from orlaif.losses import GRPORankLoss
from orlaif.oracles import RandomOracle
from orlaif.policy import Policy
from orlaif.policy.encoding import ProcessorEncoder
from orlaif.rollout import Rollout, SamplingParams
from orlaif.tiny import families
from orlaif.types import Delivery, PromptBatch, VideoClip, VideoPrompt

RESULT = ROOT / "benchmarks" / "results" / "plan_families.json"
STAGES = ("rollout", "reference", "policy", "update")
#: Prompts, answers of each, and their tokens: groups so long that attention reads no mask of a row.
PROMPTS, GROUP, TOKENS = 2, 8, 48
FRAMES, HEIGHT, WIDTH = 8, 192, 256
#: What is trained, by name.
TRAINED: dict[str, dict[str, Any]] = {"full": {}, "lora": {"lora": {"r": 4, "target_modules": "all-linear"}}}


def adamw(parameters: Any) -> torch.optim.Optimizer:
    """As it works on a GPU: on all weights together."""
    return torch.optim.AdamW(parameters, lr=1e-4, foreach=True)


class Watch(Callback):
    """Counts bytes by stage, from the moment at which the weights are there.

    Args:
        batch: that the step is given.
    """

    def __init__(self, batch: PromptBatch) -> None:
        self.batch = batch

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Weights do not count, and the batch does."""
        policy = pl_module.policy
        copied = [] if policy.lora is not None else list(policy.reference.parameters())
        self.live = ByStage([*policy.network.parameters(), *policy.network.buffers(), *copied])
        self.live.add([self.batch.input_ids, self.batch.attention_mask, *tensors(self.batch)])
        self.live.__enter__()

    def on_before_optimizer_step(self, *_: Any) -> None:
        """A stage that a run has no name for; what Python has not collected yet is no part of it."""
        gc.collect()
        self.live.name = "update"

    def on_train_batch_end(self, *_: Any) -> None:
        """The step is done."""
        self.live.__exit__(None, None, None)


def tensors(batch: PromptBatch) -> list[torch.Tensor]:
    """What a processor made of the videos."""
    values = [one for value in batch.mm_inputs.values() for one in (value if isinstance(value, list) else [value])]
    return [value for value in values if isinstance(value, torch.Tensor)]


def noise(policy: Policy) -> PromptBatch:
    """Prompts about a video of noise."""
    shape = (FRAMES, 3, HEIGHT, WIDTH)
    frames = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pts_s = torch.arange(FRAMES, dtype=torch.float64) / 2
    clip = VideoClip(frames=frames, pts_s=pts_s, duration_s=FRAMES / 2, path="noise")
    prompts = [VideoPrompt(id=f"p{i}", video="noise", question="what is this") for i in range(PROMPTS)]
    return ProcessorEncoder(policy.processor, family=policy.family)(prompts, [clip] * PROMPTS)


def measured(folder: str, trained: str, tokens: int = TOKENS) -> dict[str, Any]:
    """Bytes of each stage of one step, and how groups went through the model.

    Args:
        folder: with the model.
        trained: a name of :data:`TRAINED`.
        tokens: of an answer, at most.
    """
    policy = Policy(folder, dtype="float32", **TRAINED[trained])
    module = OracleRLAIF(
        policy,
        oracle=RandomOracle(),
        rollout=Rollout(group_size=GROUP, sampling=SamplingParams(max_new_tokens=tokens)),
        loss=GRPORankLoss(kl_coef=0.05, implementation="torch"),
        optimizer=adamw,
        seed=0,
    )
    batch = noise(policy)
    watch = Watch(batch)
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(accelerator="cpu", max_steps=1, callbacks=[watch], default_root_dir=scratch, **quiet)
        batches: Any = [Delivery(batch=batch)]
        trainer.fit(module, DataLoader(batches, batch_size=None))
    choice = policy.choice
    assert choice is not None
    peaks = {stage: watch.live.peaks[stage] for stage in STAGES}
    return {"bytes": peaks, "layout": choice.layout, "attentions": choice.attentions}


def planned(folder: str, trained: str, tokens: int = TOKENS) -> dict[str, Any]:
    """What the plan says of the same step, the optimizer's states with its update."""
    policy = Policy(folder, dtype="float32", **TRAINED[trained])
    batch = noise(policy)
    patches, pixels, beside = patches_of(policy, batch)
    setup = Setup(
        prompts=PROMPTS,
        group_size=GROUP,
        part=GROUP,
        prompt_tokens=batch.input_ids.shape[1],
        completion_tokens=tokens,
        patches=patches,
        pixels=pixels,
        beside_pixels=beside,
        reference=True,
        loss="logits",
        host_overhead=0,
    )
    begun = time.process_time()
    plan = Estimate(policy, adamw, device="cpu").plan(setup)
    peaks = {stage: sum(plan.phases[stage].values()) for stage in STAGES}
    peaks["update"] += plan.standing["optimizer"]
    return {"bytes": peaks, "prompt_tokens": setup.prompt_tokens, "core_s": time.process_time() - begun}


def off(measured: dict[str, Any], planned: dict[str, Any]) -> dict[str, float]:
    """By how much the plan says more than was measured, of each stage."""
    return {stage: planned["bytes"][stage] / measured["bytes"][stage] - 1 for stage in STAGES}


def main() -> None:
    """Measure and plan, one family after the other, and write what was found beside what was there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", nargs="+", choices=families(), default=families())
    parser.add_argument("--plan", action="store_true", help="only what the plan says")
    parser.add_argument("--output", type=Path, default=RESULT)
    given = parser.parse_args()
    for family in given.family:
        with tempfile.TemporaryDirectory() as folder:
            try:
                wider_model(family, folder)
            except ImportError as error:  # a tower of a package that is not installed
                print(f"{family}: {error}", flush=True)
                continue
            report = json.loads(given.output.read_text()) if given.output.is_file() else {"families": {}}
            found = report["families"].setdefault(family, {})
            for trained in TRAINED:
                one = found.setdefault(trained, {})
                if not given.plan:
                    one["measured"] = measured(folder, trained)
                try:
                    one["planned"] = planned(folder, trained)
                except ValueError as error:  # passes that need numbers
                    one["refused"] = str(error)
                    print(family, error, flush=True)
                    continue
                print(family, trained, {stage: f"{x:+.0%}" for stage, x in off(**one).items()}, flush=True)
        if not given.plan:
            report |= {**about(False), "versions": installed("torch", "transformers", "peft", "lightning")}
            if family == families()[-1] and len(given.family) == len(families()):
                report.pop("commit_note", None)  # of figures that this run has replaced, all of them
        report["planned_at"] = commit()
        given.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
