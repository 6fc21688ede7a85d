"""Making a vLLM engine in a training process, and leaving that process as it was."""

from __future__ import annotations

import importlib.util
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from orlaif.distributed.sync import local_process_index, num_processes, process_index
from orlaif.policy import Policy
from orlaif.policy.context import context_limit
from orlaif.stages import stage

#: Kinds of models that vLLM serves with images only.
_WITHOUT_VIDEO = ("smolvlm", "idefics3")
#: Room for a sequence that an engine has at least, where the model allows it.
_ROOM = 1024


def check_engine(policy: Policy, sleep_level: int) -> None:
    """Raise ValueError for what no engine can do here, before one is made.

    Args:
        policy: whose checkpoint the engine is to load; its weights need not be there.
        sleep_level: as ``rollout.sleep_level``.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ValueError("rollout is VLLMRollout, which needs vLLM: pip install '.[vllm]'")
    if (kind := policy.config.model_type) in _WITHOUT_VIDEO:
        raise ValueError(
            f"rollout is VLLMRollout, and vLLM serves models of type {kind!r} without video; use orlaif.rollout.Rollout"
        )
    if sleep_level and policy.device.type == "cpu":
        raise ValueError(f"rollout.sleep_level is {sleep_level}, and vLLM does not sleep on a CPU; use 0 here")


def default_room(config: Any, needed: int) -> int:
    """``max_model_len`` for so many tokens of a prompt and its answer: a multiple of 64, at least 1024.

    Args:
        config: of transformers; the room is no more than the model has positions for.
        needed: tokens.
    """
    room = max(_ROOM, -(-needed // 64) * 64)
    return min(room, context_limit(config) or room)


@stage("starting vLLM")
def make_engine(policy: Policy, room: int, options: dict[str, Any]) -> Any:
    """A ``vllm.LLM`` of the policy's checkpoint in this process; on several, one in each.

    Args:
        policy: whose checkpoint it loads.
        room: most tokens of a prompt and its answer.
        options: further arguments, which win over those chosen here.
    """
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # in this process, to be given weights
    from vllm import LLM

    chosen: dict[str, Any] = {
        "model": policy.source.model,
        "revision": policy.source.revision,
        "dtype": policy.dtype,
        "logprobs_mode": "processed_logprobs",  # at the temperature, without the excluded tokens
        "limit_mm_per_prompt": {"video": 1},
        "seed": process_index(),
        "max_model_len": room,
    }
    if num_processes() > 1:
        chosen["distributed_executor_backend"] = "external_launcher"
    with launched_environment():
        return LLM(**chosen | options)


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Put the random state of torch, numpy and Python back afterwards: an engine seeds its whole process."""
    python, arrays = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)


@contextmanager
def launched_environment() -> Iterator[None]:
    """Tell vLLM's external launcher which process this is; Lightning's own launcher leaves these names unset."""
    if num_processes() == 1:
        yield
        return
    values = {"RANK": process_index(), "WORLD_SIZE": num_processes(), "LOCAL_RANK": local_process_index()}
    before = {name: os.environ.get(name) for name in values}
    os.environ.update({name: str(value) for name, value in values.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
