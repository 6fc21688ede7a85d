"""What would make a recipe fit: settings that take less, each on top of those before."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from orlaif.cli.plan.attention import has_windows
from orlaif.cli.plan.estimate import Estimate
from orlaif.cli.plan.recipe_sizes import in_grids
from orlaif.cli.plan.sizes import GB, Setup
from orlaif.distributed.sharding import Sharding
from orlaif.policy.recomputation import SEEN_BY_HOOKS

Remedy = tuple[str, Estimate, Setup]
#: Tokens of a prompt from which on its own processes are worth what they exchange.
LONG = 16384


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


def _shared_prompts(estimate: Estimate, setup: Setup, memory: float) -> Remedy | None:
    """Of a long prompt that is alone in its batch: by the fewest processes that are enough, or by all."""
    passes, numbers = estimate.passes, [n for n in range(2, setup.gpus + 1) if setup.gpus % n == 0]
    divides = passes.layout == "shared" and not passes.blocks and not has_windows(passes.text)
    if setup.sharers > 1 or not setup.may_share or setup.prompts > 1 or setup.prompt_tokens < LONG or not numbers:
        return None
    if not divides or estimate.compute.itemsize != 2:
        return None
    grids = in_grids(estimate.policy)
    for number in numbers:
        own, step = -(-setup.group_size // number), setup.accumulate * number
        sharers: dict[str, Any] = {"sharers": number, "samplers": number, "tower_sharers": number if grids else 1}
        shared = replace(setup, **sharers, part=min(setup.part, own), accumulate=step)
        if estimate.plan(shared).total <= memory:
            break
    label = f"policy.sequence_parallel: {number} with trainer.accumulate_grad_batches: {step}, the same step"
    return label, estimate.changed(sequence_parallel=number), shared


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
    _shared_prompts,
    _sharded,
    _offloaded,
    _with_lora,
    _quantised,
)


#: What does not go with quantised weights: they are tried in its place.
_UNQUANTISED = (_sharded, _offloaded, _with_lora)


class _Step(NamedTuple):
    """What was said, and what it was said of."""

    way: Callable[[Estimate, Setup, float], Remedy | None]
    estimate: Estimate
    setup: Setup
    line: str


def advice(estimate: Estimate, setup: Setup, memory: float) -> list[str]:
    """What would make it fit: settings that take less, each on top of those before, until it does.

    Args:
        estimate: of the model.
        setup: that does not fit.
        memory: bytes of a GPU.
    """
    said: list[_Step] = []
    total, before = estimate.plan(setup).total, math.inf
    while total < before:  # what did not help may do so after something else has
        before = total
        for way in _REMEDIES:
            undone = [way is _quantised and step.way in _UNQUANTISED for step in said]
            at = undone.index(True) if any(undone) else len(said)
            start = (said[at].estimate, said[at].setup) if at < len(said) else (estimate, setup)
            if (outcome := way(*start, memory)) is None:
                continue
            label, changed, smaller = outcome
            if (needed := changed.plan(smaller).total) >= total:
                continue
            said[at:] = [_Step(way, *start, f"{label}: {needed / GB:.1f} GB")]
            estimate, setup, total = changed, smaller, needed
            if total <= memory:
                return [step.line for step in said]
    enough = "and that is not enough: fewer or smaller frames (data.sampling, data.budget), or a smaller model"
    return [*(step.line for step in said), enough]
