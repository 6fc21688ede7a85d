"""The subcommand ``orlaif plan``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from orlaif.cli.plan.advice import advice
from orlaif.cli.plan.arguments import read
from orlaif.cli.plan.estimate import Estimate
from orlaif.cli.plan.hardware import Hardware, hardware
from orlaif.cli.plan.host import clip_bytes, host_plan
from orlaif.cli.plan.judges import Judges
from orlaif.cli.plan.processes import check_shared, processes_of, strategy_of
from orlaif.cli.plan.recipe_sizes import prompt_sizes, setup_of
from orlaif.cli.plan.seconds import Seconds, told
from orlaif.cli.plan.sizes import Setup
from orlaif.cli.recipe import read_recipe
from orlaif.data.datamodule import VideoDataModule
from orlaif.training.base import PolicyModule
from orlaif.training.rlaif import OracleRLAIF


def _seconds(seconds: Seconds, setup: Setup, device: Hardware) -> str:
    """The prediction, or why there is none."""
    try:
        return told(seconds.of_step(setup), device)
    except ValueError as error:
        return f"\nseconds of a step are not predicted: {error}"


def _of_precision(precision: Any) -> list[str]:
    """What a precision of the Trainer changes that is not counted."""
    if "mixed" not in str(precision):
        return []
    return [
        f"not counted: trainer.precision is {precision!r}, under which products and their activations have 16 bits and "
        "copies of weights in 16 bits stay for a pass; the plan takes all to be of policy.dtype"
    ]


def main(arguments: Sequence[str]) -> int:
    """The subcommand; 0 where it fits, else 1."""
    known, rest = read(arguments)
    memory = known.memory
    device = None if known.gpu is None else hardware(known.gpu.lower())
    recipe = read_recipe(rest)
    module, data = recipe.model, recipe.datamodule
    if not isinstance(module, PolicyModule) or not isinstance(data, VideoDataModule):
        raise ValueError("plan knows the training stages of orlaif, with orlaif.VideoDataModule")
    gpus, said = processes_of(recipe.trainer_settings, known.gpus)
    strategy_of(recipe.trainer_settings, gpus, module.policy)  # what is refused, before anything is counted
    check_shared(module.processes_per_prompt, gpus, said)
    size = known.height, known.width, known.video_seconds
    tokens, share, missing = prompt_sizes(module.policy, data, *size, known.prompt_tokens)
    sizes = known.text_tokens, known.answer_tokens, known.answers
    setup = setup_of(module, data, recipe.trainer_settings, gpus, tokens, *sizes)
    judges, looks_ahead = Judges(), 0
    if isinstance(module, OracleRLAIF):
        rollout, judges, looks_ahead = module.rollout, Judges.of(module.oracle.held_models()), module.batches_ahead
        setup = replace(setup, engine=rollout.engine_memory(memory), engine_sleeps=rollout.engine_sleeps)
        setup = replace(setup, judges=judges.gpu)
    estimate = Estimate(module.policy, module.optimizer)
    plan = estimate.plan(setup)
    if known.gpus is None:
        print(f"for          {gpus} GPU{'s' if gpus > 1 else ''}, by {said}")
    notes = [*missing, *judges.notes, *estimate.passes.notes, *_of_precision(recipe.trainer_settings.get("precision"))]
    print("\n".join([plan.table(memory), *notes]))
    moved = isinstance(module, OracleRLAIF) and getattr(module.rollout, "sleep_level", 0) == 1
    clip = int(share * clip_bytes(data, *size))
    print(host_plan(estimate, setup, data, clip, looks_ahead, judges, moved).table())
    if device is not None:
        recorded = isinstance(module, OracleRLAIF) and bool(getattr(module.rollout, "compile_decode", False))
        print(_seconds(Seconds(estimate, device, recorded), setup, device))
    if plan.total <= memory:
        return 0
    print("\nwhat would change it, each on top of those above:")
    for line in advice(estimate, setup, memory):
        print(f"  {line}")
    return 1
