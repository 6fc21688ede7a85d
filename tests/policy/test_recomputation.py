"""What is computed again: the gradients to the bit, and less memory between the passes."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor

from orlaif.cli.plan.live_bytes import LiveBytes
from orlaif.policy import Policy
from orlaif.policy.recomputation import recomputation, recompute
from orlaif.types import PromptBatch
from tests.conftest import random_completions

LORA = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False}
MASK, SPLIT = ({"prefix": "shared", "prefix_attention": way} for way in ("mask", "split"))
WAYS = ("none", "layers", "selective")


def trained(policy: Policy, batch: PromptBatch, way: str) -> tuple[Tensor, dict[str, Tensor], int, float]:
    """Log-probs, gradients, bytes that are alive between the passes, and products of both."""
    policy.network.gradient_checkpointing_disable()
    recompute(policy.network, recomputation(way))
    policy.network.zero_grad()
    completions = random_completions(policy, 5, 2, 6)
    gc.collect()
    with LiveBytes([*policy.network.parameters(), *policy.network.buffers()]) as live:
        logps = policy.completion_logps(batch, completions, implementation="torch")
        between = live.now
        logps.square().sum().backward()
    grads = {name: p.grad for name, p in policy.network.named_parameters() if p.grad is not None}
    return logps.detach(), grads, between, live.single


@pytest.mark.parametrize(("layout", "lora"), [(MASK, None), (SPLIT, LORA)], ids=["mask-full", "split-lora"])
def test_gradients_are_the_same_and_memory_is_ordered(
    tiny_model: str, batch: PromptBatch, layout: Any, lora: Any
) -> None:
    """To the bit; ``selective`` lies between the others in memory, and repeats few products or none."""
    policy = Policy(tiny_model, dtype="float32", lora=lora, gradient_checkpointing="selective", **layout).load()
    policy.network.train()
    policy.prompt_positions(batch)
    kept, layers, selective = (trained(policy, batch, way) for way in WAYS)
    assert len(kept[1]) > 10
    for other in (layers, selective):
        assert torch.equal(other[0], kept[0])
        assert other[1].keys() == kept[1].keys()
        for name, grad in other[1].items():
            assert torch.equal(grad, kept[1][name]), name
    assert layers[2] < 0.9 * selective[2]
    assert selective[2] < 0.9 * kept[2]
    assert layers[3] > 1.1 * kept[3]
    assert selective[3] < 1.05 * kept[3]


def test_values_that_recipes_give() -> None:
    assert [recomputation(value) for value in (False, True, *WAYS)] == [False, "layers", False, "layers", "selective"]
    wrong = "policy.gradient_checkpointing is 'some'; it must be false, true, 'none', 'layers' or 'selective'"
    with pytest.raises(ValueError, match=wrong):
        Policy("nowhere", gradient_checkpointing="some")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"policy\.gradient_checkpointing is 'selective'"):
        Policy("nowhere", prefix="fork", gradient_checkpointing="selective")
