"""Parts that train: steps of LoRA beside the plan by what is recomputed, shards, offload, QLoRA, sampling ahead."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from lightning import Callback, Trainer
from torch.distributed.tensor import DTensor

from benchmarks.gpu.notebook import MissingError, Notebook
from benchmarks.harness import installed
from benchmarks.rlaif import Run, measure

LEAST = Run(size="qwen2.5-vl-least", steps=3, group=2, tokens=4, frames=4, height=56, width=56, rank=2, dtype="float32")
FOUR_BITS = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16"}
#: Sharded, weights are those of one process but for the order of sums.
SAME = 1e-5
#: Seconds that the pipeline's judge takes.
JUDGE_S = 2.0


def base(notebook: Notebook, **changes: Any) -> Run:
    """What is run: 3B with 32 frames, or the least there is in a rehearsal."""
    return replace(LEAST if notebook.rehearse else Run(), **changes)


def short(notebook: Notebook, steps: int, **changes: Any) -> Run:
    """The same with fewer steps."""
    return base(notebook, steps=3 if notebook.rehearse else steps, **changes)


def rlaif_steps(notebook: Notebook) -> None:
    """Ten steps of 3B LoRA with 32 frames: seconds per stage, and the peak beside the plan's; by what is recomputed."""
    more = 2 if notebook.rehearse else 4
    notebook.measure("ten steps", lambda: measure(base(notebook)), 120)
    notebook.measure("ten steps, 4 prompts", lambda: measure(base(notebook, batch=more)), 120)
    on_host = {"activations_offloaded": True}
    runs: dict[str, dict[str, Any]] = {
        "layers, activations on the host, 4 prompts": {"batch": more, **on_host},
        "layers, activations on the host": on_host,
        "selective": {"recomputed": "selective"},
        "none": {"recomputed": "none"},
        "none, activations on the host": {"recomputed": "none", **on_host},
    }
    for name, changes in runs.items():
        notebook.measure(name, lambda changes=changes: measure(short(notebook, 4, **changes)), 60)  # type: ignore[misc]


class Weights(Callback):
    """What was trained, whole and on the CPU."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Keep it."""
        for name, weight in pl_module.policy.network.named_parameters():
            if weight.requires_grad:
                whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
                self.found[name] = whole.detach().float().cpu().clone()


def trained(run: Run) -> dict[str, torch.Tensor]:
    """The weights behind a run."""
    weights = Weights()
    measure(run, [weights])
    return weights.found


def same_weights() -> dict[str, Any]:
    """A small model in float32: largest distance of its weights under FSDP2 from those of one process without."""
    one = trained(LEAST)
    found: dict[str, Any] = {"trained": len(one)}
    for name, offloaded in (("sharded", False), ("sharded, offloaded", True)):
        other = trained(replace(LEAST, sharded=True, offloaded=offloaded))
        if other.keys() != one.keys():
            raise RuntimeError(f"{name}: other weights were trained: {sorted(other.keys() ^ one.keys())[:3]}")
        found[name] = max(float((other[n] - one[n]).abs().max()) for n in one)
    return found


def quantised(notebook: Notebook) -> dict[str, Any]:
    """QLoRA: the base in four bits."""
    if not installed("bitsandbytes"):
        raise MissingError("no bitsandbytes")
    if not notebook.cuda:
        raise MissingError("no CUDA GPU")
    return measure(short(notebook, 4, quantization=FOUR_BITS))


def sharding(notebook: Notebook) -> None:
    """FSDP2 on one GPU, offload, QLoRA: first that weights are the same, then seconds and peaks."""
    notebook.measure("same weights", same_weights, 40)
    for name in ("sharded", "sharded, offloaded"):
        far = notebook.entries.get("same weights", {}).get(name, 0.0)
        if not far <= SAME:
            notebook.fail(f"same weights: {name}", f"{far:.2g} from one process without shards; at most {SAME}")
    runs = {"one process": {}, "FSDP2": {"sharded": True}, "FSDP2, offloaded": {"sharded": True, "offloaded": True}}
    for name, changes in runs.items():
        notebook.measure(name, lambda changes=changes: measure(short(notebook, 4, **changes)), 60)  # type: ignore[misc]
    notebook.measure("QLoRA", lambda: quantised(notebook), 60)


def pipeline(notebook: Notebook) -> None:
    """Rollout and judge beside training: seconds of a step in turn, and one and two batches ahead."""
    waits = 0.1 if notebook.rehearse else JUDGE_S
    for staleness in (0, 1, 2):
        run = short(notebook, 8, judge_s=waits, staleness=staleness)
        name = "in the step" if not staleness else f"{staleness} ahead"
        notebook.measure(name, lambda run=run: measure(run), 60)  # type: ignore[misc]
