"""What log-probs and gradients are to be: each prompt with one completion, unpadded, by the model's own forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from orlaif.data.datamodule import Collator
from orlaif.data.video import UniformSampling
from orlaif.demo.shapes import ShapesDataset
from orlaif.policy import Policy
from orlaif.policy.encoding import ProcessorEncoder
from orlaif.policy.prefix.probe import alone
from orlaif.types import Completions, PromptBatch
from tests.families import made

Grads = dict[str, Tensor]
Made = tuple[Tensor, Grads]


def written(kind: str, folders: pytest.TempPathFactory) -> str:
    """The folder of a tiny model of this kind."""
    folder = str(folders.mktemp(kind))
    made(kind, folder)
    return folder


def encoded(policy: Policy, shapes: ShapesDataset, numbers: Sequence[int], frames: int = 8) -> PromptBatch:
    """Prompts of the embedded data set, in the policy's dtype."""
    collator = Collator(ProcessorEncoder(policy.processor, family=policy.family), UniformSampling(frames))
    batch = collator([shapes[i] for i in numbers]).batch
    dtype = getattr(torch, policy.dtype)

    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    inputs = {name: cast(value) for name, value in batch.mm_inputs.items()}
    return PromptBatch(
        prompts=batch.prompts,
        clips=batch.clips,
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        mm_inputs=inputs,
    )


def weights_of(logps: Tensor) -> Tensor:
    """Of the sum whose gradient is compared."""
    return torch.linspace(-1, 1, logps.numel(), dtype=logps.dtype).view_as(logps)


def truth(policy: Policy, shapes: ShapesDataset, numbers: Sequence[int], completions: Completions) -> Made:
    """Log-probs [P, G, T], 0 where masked, and the gradient of a weighted sum of them, by parameter.

    Args:
        policy: one with ``prefix: duplicate``, whose model knows nothing of rows.
        shapes: the data set.
        numbers: P places in it.
        completions: behind the P prompts.
    """
    rows = []
    for p, number in enumerate(numbers):
        single = encoded(policy, shapes, [number])
        for ids, mask in zip(completions.ids[p], completions.mask[p], strict=True):
            own = ids[mask]
            logits = policy.mask_placeholders(alone(policy.network, single, own, policy.family))
            logps = logits.log_softmax(-1).gather(-1, own[:, None])[:, 0]
            rows.append(torch.nn.functional.pad(logps, (0, len(ids) - len(own))))
    logps = torch.stack(rows).view(completions.ids.shape)
    return logps.detach(), gradients(policy, logps)


def gradients(policy: Policy, logps: Tensor) -> Grads:
    """The gradient of a weighted sum of ``logps``, by parameter."""
    policy.network.zero_grad()
    (logps * weights_of(logps)).sum().backward()
    return {name: p.grad for name, p in policy.network.named_parameters() if p.grad is not None}


def given(policy: Policy, shapes: ShapesDataset, numbers: Sequence[int], completions: Completions) -> Made:
    """The same as the policy makes them, for the padded batch."""
    logps = policy.completion_logps(encoded(policy, shapes, numbers), completions)
    return logps.detach(), gradients(policy, logps)


def differences(ours: Made, theirs: Made) -> tuple[float, float]:
    """Largest difference of a log-prob, and of a gradient as a part of the largest gradient."""
    assert ours[1].keys() == theirs[1].keys()
    largest = max(float(grad.abs().max()) for grad in theirs[1].values())
    of_gradients = max(float((ours[1][name] - grad).abs().max()) for name, grad in theirs[1].items())
    return float((ours[0] - theirs[0]).abs().max()), of_gradients / largest


def loaded(folder: str, dtype: str = "float32", **settings: Any) -> Policy:
    """A policy in training mode; an adapter, where there is one, is random, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = Policy(folder, dtype=dtype, **settings).load()
    policy.network.train()
    return policy


def pair(folder: str, dtype: str = "float32", prefix_attention: Any = "auto", **settings: Any) -> tuple[Policy, Policy]:
    """A policy with a shared prefix, and one of the same weights that knows nothing of it."""
    shared = loaded(folder, dtype, prefix="shared", prefix_attention=prefix_attention, **settings)
    return shared, loaded(folder, dtype, prefix="duplicate", **settings)
