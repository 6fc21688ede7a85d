"""A rollout's tokens per second: duplicated and shared caches, a compiled step, and that as a CUDA graph."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest import mock

import torch

from benchmarks.gpu.notebook import MissingError, Notebook
from benchmarks.gpu.policies import lay_out, policy_of, prompts
from benchmarks.harness import seconds, spread
from orlaif.policy import Policy
from orlaif.policy.prefix.decode import shared_step
from orlaif.rollout import SamplingParams, compiled, generate
from orlaif.types import Completions, PromptBatch

SIZE, GROUP, TOKENS = "qwen2.5-vl-3b", 8, 128
#: Kind of clip, and prompts that are decoded together.
POINTS = [("long", 1), ("long", 4)]
REPEATS = 3


def without_graphs() -> AbstractContextManager[Any]:
    """The compiled step as kernels that the host launches, in place of CUDA graphs."""
    step = torch.compile(shared_step, dynamic=False)
    return mock.patch.object(compiled, "_compiled_decode", return_value=step)


#: Layout, whether the step is compiled, and what is in force meanwhile.
WAYS: dict[str, tuple[str, bool, Callable[[], AbstractContextManager[Any]]]] = {
    "eager, duplicated cache": ("duplicate", False, nullcontext),
    "eager": ("split", False, nullcontext),
    "CUDA graphs": ("split", True, nullcontext),
    "compiled": ("split", True, without_graphs),
}


def run(notebook: Notebook) -> None:
    """Each way at each size, the model loaded once; compiling comes last."""
    policy: list[Policy] = []

    def loaded() -> dict[str, Any]:
        policy.append(policy_of("qwen2.5-vl-least" if notebook.rehearse else SIZE, notebook))
        return {"parameters": sum(p.numel() for p in policy[0].network.parameters())}

    notebook.measure("model", loaded, 60)
    if not policy:
        return
    first: dict[tuple[str, int], Completions] = {}
    points = [("least", 2)] if notebook.rehearse else POINTS
    for way in WAYS:
        for clip, number in points:
            batch = prompts(policy[0], clip, number, notebook.device)
            notebook.measure(
                f"{way}, {number} prompts of {batch.input_ids.shape[1]}",
                lambda way=way, batch=batch, key=(clip, number): rollout(  # type: ignore[misc]
                    policy[0], batch, way, notebook, first, key
                ),
                60 if WAYS[way][1] else 20,
            )


def rollout(
    policy: Policy,
    batch: PromptBatch,
    way: str,
    notebook: Notebook,
    first: dict[tuple[str, int], Completions],
    key: tuple[str, int],
) -> dict[str, Any]:
    """Seconds of the first call, milliseconds of later ones, tokens per second, and how alike the answers are.

    Args:
        policy: samples.
        batch: of prompts.
        way: of :data:`WAYS`.
        notebook: of the part.
        first: the answers of the first way that ran, by ``key``; added to.
        key: of the point.
    """
    layout, compile_decode, meanwhile = WAYS[way]
    if compile_decode and not notebook.cuda and shutil.which("g++") is None:
        raise MissingError("no C++ compiler, which torch.compile needs on a CPU")
    group, tokens = (2, 4) if notebook.rehearse else (GROUP, TOKENS)
    lay_out(policy, layout)
    sampling = SamplingParams(max_new_tokens=tokens)
    made: list[Completions] = []

    def call() -> None:
        generator = torch.Generator(notebook.device).manual_seed(0)
        made.append(generate(policy, batch, group, sampling, generator, compile_decode=compile_decode))

    with meanwhile():
        begun = time.perf_counter()
        call()
        taken_first = time.perf_counter() - begun
        if compile_decode:  # of CUDA graphs, the second call records
            call()
        times = [seconds(call, notebook.cuda) for _ in range(1 if notebook.rehearse else REPEATS)]
    completions = made[-1]
    reference = first.setdefault(key, completions)
    length = min(completions.ids.shape[-1], reference.ids.shape[-1])
    same = (completions.ids[..., :length] == reference.ids[..., :length]).cumprod(-1)
    found = {
        "first_call_s": taken_first,
        **spread(times),
        "tokens": int(completions.mask.sum()),
        "first_tokens_alike": float(same[..., 0].float().mean()),
        "tokens_alike": float(same.float().mean()),
    }
    return found | {"tokens_per_s": found["tokens"] / found["median_ms"] * 1e3}
