"""What would make a recipe fit: settings that take less, each on top of those before."""

from __future__ import annotations

import math
from dataclasses import replace

from orlaif.cli.plan.estimate import Estimate
from orlaif.cli.plan.sizes import GB, Setup
from orlaif.distributed.sharding import Sharding
from orlaif.policy.recomputation import SEEN_BY_HOOKS

Remedy = tuple[str, Estimate, Setup]


def _fused_head(estimate: Estimate, setup: Setup, memory: float) -> Remedy | None:
    if setup.loss in ("inplace", "logits") and setup.rollout:
        return "model.loss.fused_head: true", estimate, replace(setup, loss="fused_head")
    return None


def _recomputed(estimate: Estimate, setup: Setup, memory: float) -> Remedy | None:
    """Of ``selective``, which costs little time, and ``layers``, which takes least, the first that is enough."""
    if (before := estimate.policy.gradient_checkpointing) == "layers":
        return None
    others = {"prefix": "auto"} if estimate.policy.prefix == "fork" else {}  # which does not go with it
    if estimate.policy.activation_offloading and not SEEN_BY_HOOKS:
        before = "selective"
    for way in ("selective", "layers") if not before else ("layers",):
        changed = estimate.changed(gradient_checkpointing=way, **others)
        if changed.plan(setup).total <= memory:
            break
    label = "policy.prefix: auto with " if others else ""
    return f"{label}policy.gradient_checkpointing: {way}", changed, setup


def _activations_offloaded(estimate: Estimate, setup: Setup, memory: float) -> Remedy | None:
    """Where it is enough; otherwise it is tried again behind what does more."""
    if estimate.policy.activation_offloading or estimate.policy.gradient_checkpointing != "layers":
        return None
    changed = estimate.changed(activation_offloading=True)
    return ("policy.activation_offloading: true", changed, setup) if changed.plan(setup).total <= memory else None


def _smaller_parts(estimate: Estimate, setup: Setup, memory: float) -> Remedy | None:
    if setup.part == 1 or not setup.rollout:
        return None
    part = setup.part
    while part > 1 and estimate.plan(setup).total > memory:
        part = -(-part // 2)
        setup = replace(setup, part=part)
    return f"model.microbatch: {part}", estimate, setup


def _smaller_batches(estimate: Estimate, setup: Setup, memory: float) -> Remedy | None:
    if setup.prompts == 1:
        return None
    step, patches = setup.prompts * setup.accumulate, setup.patches // setup.prompts
    beside = setup.beside_pixels // setup.prompts
    while setup.prompts > 1 and estimate.plan(setup).total > memory:
        fewer = setup.prompts // 2
        setup = replace(setup, prompts=fewer, patches=patches * fewer, accumulate=-(-step // fewer))
        setup = replace(setup, beside_pixels=beside * fewer)
    label = f"data.batch_size: {setup.prompts} with trainer.accumulate_grad_batches: {setup.accumulate}, the same step"
    return label, estimate, setup


def _sharded(estimate: Estimate, setup: Setup, memory: float) -> Remedy | None:
    if setup.strategy == "fsdp2" or setup.gpus == 1 or estimate.policy.quantization is not None:
        return None
    return "trainer.strategy: fsdp2", estimate, replace(setup, strategy="fsdp2")


def _offloaded(estimate: Estimate, setup: Setup, memory: float) -> Remedy | None:
    if setup.strategy != "fsdp2" or estimate.sharding.cpu_offload:
        return None
    changed = estimate.changed(sharding=replace(estimate.sharding, cpu_offload=True))
    return "policy.sharding.cpu_offload: true", changed, setup


def _with_lora(estimate: Estimate, setup: Setup, memory: float) -> Remedy | None:
    if estimate.policy.lora is not None:
        return None
    lora = {"r": 16, "target_modules": "all-linear"}
    return "policy.lora: {r: 16, target_modules: all-linear}", estimate.changed(lora=lora), setup


def _quantised(estimate: Estimate, setup: Setup, memory: float) -> Remedy | None:
    if estimate.policy.quantization is not None:
        return None
    changed = estimate.changed(
        lora=estimate.policy.lora or {"r": 16, "target_modules": "all-linear"},
        dtype="bfloat16",
        quantization={"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16"},
        sharding=Sharding(),
    )
    label = "policy.quantization: {load_in_4bit: true, ...} under policy.lora, dtype: bfloat16, trainer.strategy: ddp"
    return label, changed, replace(setup, strategy="ddp" if setup.gpus > 1 else "one")


_REMEDIES = (
    _fused_head,
    _recomputed,
    _activations_offloaded,
    _smaller_parts,
    _smaller_batches,
    _sharded,
    _offloaded,
    _with_lora,
    _quantised,
)


def advice(estimate: Estimate, setup: Setup, memory: float) -> list[str]:
    """What would make it fit: settings that take less, each on top of those before, until it does.

    Args:
        estimate: of the model.
        setup: that does not fit.
        memory: bytes of a GPU.
    """
    said: list[str] = []
    total, before = estimate.plan(setup).total, math.inf
    while total < before:  # what did not help may do so after something else has
        before = total
        for remedy in _REMEDIES:
            if (outcome := remedy(estimate, setup, memory)) is None:
                continue
            label, changed, smaller = outcome
            if (needed := changed.plan(smaller).total) >= total:
                continue
            estimate, setup, total = changed, smaller, needed
            said.append(f"{label}: {total / GB:.1f} GB")
            if total <= memory:
                return said
    said.append("and that is not enough: fewer or smaller frames (data.sampling, data.budget), or a smaller model")
    return said
