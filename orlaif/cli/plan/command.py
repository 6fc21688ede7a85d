"""The subcommand ``orlaif plan``."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from orlaif.arguments import HelperParser
from orlaif.cli.plan.advice import advice
from orlaif.cli.plan.estimate import Estimate
from orlaif.cli.plan.hardware import GPUS, Hardware, hardware
from orlaif.cli.plan.host import clip_bytes, host_plan
from orlaif.cli.plan.judges import Judges
from orlaif.cli.plan.recipe_sizes import setup_of, video_tokens
from orlaif.cli.plan.seconds import Seconds, told
from orlaif.cli.plan.sizes import GB, Setup
from orlaif.cli.recipe import read_recipe
from orlaif.data.datamodule import VideoDataModule
from orlaif.training.base import PolicyModule
from orlaif.training.rlaif import OracleRLAIF


def size_in_bytes(text: str) -> float:
    """``80GB``, ``40 GiB`` or a number of GB; raises ValueError for anything else."""
    size = re.fullmatch(r"\s*([\d.]+)\s*(GiB|GB|G)?\s*", text, re.IGNORECASE)
    if size is None or not math.isfinite(float(size[1])) or float(size[1]) <= 0:
        raise ValueError(f"--gpu-memory is {text!r}; it must be a size such as 80GB or 40GiB")
    return float(size[1]) * (2**30 if (size[2] or "").lower() == "gib" else GB)


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
    parser = HelperParser(
        prog="orlaif plan",
        description="Memory of a recipe's step on each GPU and of the host, from the model's config alone, and what "
        "would make it fit. "
        "Further arguments are those of the recipe.",
    )
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--gpu-memory", default="80GB", help="of each, such as 80GB or 40GiB")
    parser.add_argument("--video", default="360x640", help="height x width of a typical video, before data.budget")
    parser.add_argument("--video-seconds", type=float, default=30.0, help="its length, for FpsSampling")
    parser.add_argument(
        "--prompt-tokens", type=int, help="tokens of the video, where they cannot be told by the config"
    )
    parser.add_argument("--text-tokens", type=int, default=64, help="tokens of a question with the chat template")
    parser.add_argument("--answer-tokens", type=int, default=64, help="tokens of an answer that is read from data")
    parser.add_argument("--answers", type=int, default=2, help="answers of a group that a ranker is trained on")
    parser.add_argument("--gpu", help=f"predicts seconds of a step on it: {', '.join(GPUS)}, or cpu")
    known, rest = parser.parse_known_args(arguments)
    memory = size_in_bytes(known.gpu_memory)
    if known.gpus < 1:
        raise ValueError(f"--gpus is {known.gpus}; it must be 1 or more")
    if known.answers < 2:
        raise ValueError(f"--answers is {known.answers}; it must be 2 or more, for a ranker compares them")
    if not (sides := re.fullmatch(r"(\d+)x(\d+)", known.video)):
        raise ValueError(f"--video is {known.video!r}; it must be height x width, such as 360x640")
    device = None if known.gpu is None else hardware(known.gpu.lower())
    recipe = read_recipe(rest)
    module, data = recipe.model, recipe.datamodule
    if not isinstance(module, PolicyModule) or not isinstance(data, VideoDataModule):
        raise ValueError("plan knows the training stages of orlaif, with orlaif.VideoDataModule")
    if known.prompt_tokens is not None:
        tokens = known.prompt_tokens, 0, 0, 0
    else:
        tokens = video_tokens(module.policy, data, int(sides[1]), int(sides[2]), known.video_seconds)
    sizes = known.text_tokens, known.answer_tokens, known.answers
    setup = setup_of(module, data, recipe.trainer_settings, known.gpus, tokens, *sizes)
    judges, looks_ahead = Judges(), 0
    if isinstance(module, OracleRLAIF):
        rollout, judges, looks_ahead = module.rollout, Judges.of(module.oracle.held_models()), module.batches_ahead
        setup = replace(setup, engine=rollout.engine_memory(memory), engine_sleeps=rollout.engine_sleeps)
        setup = replace(setup, judges=judges.gpu)
    estimate = Estimate(module.policy, module.optimizer)
    plan = estimate.plan(setup)
    notes = [*judges.notes, *estimate.passes.notes, *_of_precision(recipe.trainer_settings.get("precision"))]
    print("\n".join([plan.table(memory), *notes]))
    moved = isinstance(module, OracleRLAIF) and getattr(module.rollout, "sleep_level", 0) == 1
    clip = clip_bytes(data, int(sides[1]), int(sides[2]), known.video_seconds)
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
