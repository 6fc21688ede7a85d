"""Groups through the model: in as few passes as their inputs allow, and put together again.

Shapes: P prompts, G completions, T completion tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from orlaif.distributed.sync import exchange
from orlaif.policy.divided_tower import divided_tower
from orlaif.policy.encoding import sub_batches
from orlaif.policy.positions import PromptPositions
from orlaif.policy.vision import VisionFeatures
from orlaif.types import Completions, PromptBatch

if TYPE_CHECKING:
    from orlaif.policy.families import Family
    from orlaif.policy.policy import Policy


class LastBatch:
    """Parts, positions and features of the last batch: rollout, reference and policy ask for the same."""

    def __init__(self) -> None:
        self.positions = PromptPositions()
        self.features = VisionFeatures()
        self._parts: tuple[PromptBatch, list[tuple[Tensor, PromptBatch]]] | None = None

    def parts(self, batch: PromptBatch, family: Family) -> list[tuple[Tensor, PromptBatch]]:
        """What of ``batch`` goes through a model in one pass each (:func:`~orlaif.policy.encoding.sub_batches`)."""
        if self._parts is None or self._parts[0] is not batch:
            self.positions.forget()
            self.features.forget()
            self._parts = (batch, sub_batches(batch, family))
        return self._parts[1]


def completion_outputs(
    policy: Policy, model: Any, batch: PromptBatch, completions: Completions, hidden: bool
) -> Tensor:
    """Outputs at the positions that predict completion tokens, and at no others.

    Args:
        policy: how groups go through the model.
        model: the policy's, or its reference.
        batch: P prompts.
        completions: their P x G completions; where ``policy.sequence`` says that processes share the prompts, those of
            this process.
        hidden: last hidden states instead of logits.

    Returns:
        [P * G, T, ...] in the model's dtype.

    Raises:
        ValueError: prompts that the model has no positions for.
    """
    policy.check_context(batch, completions.ids.shape[-1])
    parts = policy.parts(batch)
    # Where weights lie in shards, all processes must run the same layers in the same order.
    together = policy.is_sharded and not getattr(policy.network, "is_gathered", False)
    if together and policy.family.asks_decoder:  # which runs the tower, as often as there are parts
        with policy.gathered():
            for _, part in parts:
                policy.prompt_positions(part)
    passes = max(exchange(len(parts))) if together and policy.family.may_split else len(parts)
    fresh = not policy.features.has(parts[0][1])
    outputs = [_one_pass(policy, model, part, completions.of_prompts(at), hidden) for at, part in parts]
    at, part = parts[0]
    for _ in range(passes - len(parts)):  # as many as another process has, of no weight
        if fresh:  # the tower runs in those of others
            policy.features.forget(part)
        outputs[0] = outputs[0] + 0.0 * _one_pass(policy, model, part, completions.of_prompts(at), hidden)
    if len(parts) == 1:
        return outputs[0]
    g = completions.group_size
    rows = torch.cat([at for at, _ in parts]).argsort()
    return torch.cat([one.unflatten(0, (-1, g)) for one in outputs])[rows].flatten(0, 1)


def _one_pass(policy: Policy, model: Any, batch: PromptBatch, completions: Completions, hidden: bool) -> Tensor:
    """The same for prompts that go through the model together."""
    family, positions = policy.family, policy.prompt_positions(batch)
    assert policy.choice is not None
    at = (positions, policy.pad_id, family)
    with divided_tower(model, policy.sequence), policy.features.reused(family, model, batch):
        return policy.choice.outputs(model, batch, completions, *at, hidden, policy.sequence)
