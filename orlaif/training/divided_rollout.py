"""A rollout by processes that share their prompts: each samples some of them, and all are given all answers.

Which process samples a prompt makes no difference to its answers, since randomness goes by prompt. With fewer prompts
than processes some have none to sample, and wait.

A process's prompts are encoded once more, by the policy's own processor. Where that is not what the batch holds (a
recipe with an encoder or a processor of its own), the first process samples all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from orlaif.distributed.sequence import SequenceGroup
from orlaif.policy import Policy
from orlaif.policy.encoding import ProcessorEncoder
from orlaif.rollout.remote import joined
from orlaif.training.some_prompts import completions_of, taken
from orlaif.types import Completions, PromptBatch

if TYPE_CHECKING:
    from orlaif.training.sharing import SharesPrompts

#: Samples the prompts of a batch, with a generator for each.
Sample = Callable[[PromptBatch, Sequence[torch.Generator]], Completions]


def sample_together(
    module: SharesPrompts, make: Sample, batch: PromptBatch, generators: Sequence[torch.Generator]
) -> Completions:
    """Completions of P prompts, on all processes that share them, which must all call.

    Args:
        module: whose policy samples.
        make: samples, and speaks to no other process.
        batch: P prompts.
        generators: one for each.

    Raises:
        Exception: as ``make``; on the others a RuntimeError that says so.
    """
    if (group := module.sequence) is None:
        return make(batch, generators)
    shares, part = _shares(module.policy, batch, group)
    places = shares[group.index]
    made, error = None, None
    with module.policy.gathered():  # of shards, which all processes must
        try:
            made = make(part, [generators[i] for i in places]).to("cpu") if places else None
        except Exception as problem:  # whatever it is, the others must not wait
            error = problem
    everyone = group.of_each((made, None if error is None else f"{type(error).__name__}: {error}"))
    if error is not None:
        raise error
    for _, said in everyone:
        if said is not None:
            raise RuntimeError(f"a process that samples some of this one's prompts stopped: {said}")
    module.policy.features.forget()  # of a rollout of one's own; those that all have are of a pass that all make
    whole = joined([one for one, _ in everyone if one is not None], module.policy.pad_id)
    order = sorted(range(len(batch)), key=[i for share in shares for i in share].__getitem__)
    return completions_of(whole, order).to(batch.input_ids.device)


def _shares(policy: Policy, batch: PromptBatch, group: SequenceGroup) -> tuple[list[list[int]], PromptBatch]:
    """Places of the prompts of each process, and this one's as a batch."""
    shares = [list(range(index, len(batch), group.size)) for index in range(group.size)]
    if len(batch) == 1:
        return shares, batch
    places, part, same = shares[group.index], batch, True
    if places:
        try:
            part = taken(batch, places, ProcessorEncoder(policy.processor, family=policy.family, chat=policy.chat))
            same = _tokens(part, range(len(places))) == _tokens(batch, places)
        except Exception:  # of a processor that is not the one which has encoded the batch
            same = False
    if all(group.of_each(same)):
        return shares, part
    return [list(range(len(batch))), *[[] for _ in shares[1:]]], batch


def _tokens(batch: PromptBatch, places: Sequence[int]) -> list[list[int]]:
    """Of some prompts, without their padding."""
    return [batch.input_ids[i][batch.attention_mask[i].bool()].tolist() for i in places]
