"""Sequence parallelism as training uses it: passes of a group of processes, and what each of them has of a batch.

Within :func:`divided` a policy's passes, and its reference's, divide each prompt among the processes of a group
(``orlaif.policy.prefix.divided``), and take the completions of this process alone (:func:`dealt`). A loss over those is
this process's part of the loss; the gradients of all parts add up to that of one process.

Shapes: P prompts, G completions, T completion tokens; n processes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from orlaif.distributed.sequence import SequenceGroup
from orlaif.distributed.sharding import compute_dtype
from orlaif.distributed.sync import exchange, raise_together
from orlaif.policy.divided_tower import has_grids
from orlaif.policy.policy import Policy
from orlaif.policy.prefix.attention import autocast_dtype
from orlaif.policy.prefix.prepare import has_own_masks
from orlaif.policy.prefix.probe import TOLERANCE
from orlaif.policy.prefix.synthetic import random_tokens, synthetic_batch
from orlaif.policy.reference import evaluating
from orlaif.types import Completions, PromptBatch

log = logging.getLogger(__name__)


@contextmanager
def divided(policy: Policy, sequence: SequenceGroup | None) -> Iterator[None]:
    """A context in which passes of ``policy`` share their prompts; as ever where ``sequence`` is None.

    All processes of the group must run the same passes, each with its own completions.
    """
    before, policy.sequence = policy.sequence, sequence
    try:
        yield
    finally:
        policy.sequence = before


def check_divisible(policy: Policy) -> None:
    """Raise ValueError where ``policy.sequence_parallel`` asks for more than the loaded model allows."""
    number, choice = policy.sequence_parallel, policy.choice
    if number == 1:
        return
    assert choice is not None
    kind = policy.config.model_type
    if choice.layout != "shared" or "split" not in choice.attentions:
        raise ValueError(
            f"policy.sequence_parallel is {number}, which needs groups in rows by 'split', but not for model type "
            f"{kind!r}: {choice.said}"
        )
    if has_own_masks(policy.network):
        raise ValueError(
            f"policy.sequence_parallel is {number}, but model type {kind!r} has attention windows or frames that see "
            "each other, whose masks are of a whole row; set it to 1"
        )


@torch.no_grad()
def check_divided(policy: Policy, sequence: SequenceGroup) -> SequenceGroup:
    """Ask the loaded model whether it gives a synthetic prompt's completions the same log-probs where it is divided.

    All processes of the run must call.

    Returns:
        The group, which shares the tower's frames where the model gives the same log-probs then, too.

    Raises:
        ValueError: on all processes, where any gets other log-probs though the tower is whole.
    """
    kind, error = policy.config.model_type, None
    tolerance = TOLERANCE[autocast_dtype(policy.device, compute_dtype(policy.network))]
    batch = _several_frames(policy, sequence)
    apart = [*policy.placeholder_ids, *batch.input_ids.unique().tolist()]
    ids = random_tokens(policy.processor, apart, (1, sequence.size, 3)).to(policy.device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    completions = Completions(ids=ids, mask=mask, texts=(("",) * sequence.size,))
    with evaluating(policy.network):
        expected = dealt(policy.completion_logps(batch, completions), sequence)

        def off_by(group: SequenceGroup) -> float:
            policy.features.forget()
            with divided(policy, group):
                found = policy.completion_logps(batch, dealt_completions(completions, group))
            return float((found - expected).abs().max())

        if not (difference := off_by(sequence)) <= tolerance:
            error = ValueError(
                f"policy.sequence_parallel is {sequence.size}, but model type {kind!r} gives log-probs that differ by "
                f"{difference:.2g} where a prompt is divided; set it to 1"
            )
        raise_together(error)
        sharing = replace(sequence, shares_frames=True)
        try:
            difference, why = (off_by(sharing), "") if has_grids(batch) else (float("inf"), "they come in no grids")
        except Exception as problem:  # whatever a model that we do not know may raise
            difference, why = float("inf"), f"{type(problem).__name__}: {problem}"
    policy.features.forget()
    if all(exchange(difference <= tolerance)):
        return sharing
    log.info(
        "each process runs the tower of model type %r over all frames: %s", kind, why or f"off by {difference:.2g}"
    )
    return sequence


def _several_frames(policy: Policy, sequence: SequenceGroup) -> PromptBatch:
    """A synthetic prompt whose video has frames for all processes, where the model takes any number of them."""
    least = policy.family.probe_frames
    frames = 4 * sequence.size if least == 4 else least
    dtype = compute_dtype(policy.network)
    return synthetic_batch(policy.processor, ("what is this",), policy.device, dtype, policy.family, frames)


def dealt(x: Tensor, sequence: SequenceGroup, fill: bool | None = None) -> Tensor:
    """This process's of completions that are dealt out in turns: [P, G, ...] to [P, ceil(G / n), ...].

    Args:
        x: of G completions.
        sequence: the n processes.
        fill: where they do not go up, in place of another one of the last.
    """
    g = x.shape[1]
    at = torch.arange(sequence.index, -(-g // sequence.size) * sequence.size, sequence.size, device=x.device)
    own = x.index_select(1, at.clamp(max=g - 1))
    return own if fill is None else own.masked_fill((at >= g).view(-1, *(1,) * (x.ndim - 2)), fill)


def dealt_completions(completions: Completions, sequence: SequenceGroup | None) -> Completions:
    """This process's completions [P, ceil(G / n), T]; one without a token where they do not go up; all by itself."""
    if sequence is None:
        return completions
    g, logps = completions.group_size, completions.logps
    at = range(sequence.index, -(-g // sequence.size) * sequence.size, sequence.size)
    return replace(
        completions,
        ids=dealt(completions.ids, sequence),
        mask=dealt(completions.mask, sequence, fill=False),
        texts=tuple(tuple(group[min(i, g - 1)] for i in at) for group in completions.texts),
        logps=None if logps is None else dealt(logps, sequence),
    )


def collected(own: Tensor, group_size: int, sequence: SequenceGroup | None) -> Tensor:
    """Reverses :func:`dealt`, without gradient: [P, G, ...] of all processes, which must call."""
    if sequence is None:
        return own
    return sequence.gather(own.detach()).movedim(0, 2).flatten(1, 2)[:, :group_size]
