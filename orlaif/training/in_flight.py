"""A group in flight as a checkpoint holds it, and batches of groups from such records.

Groups are known by epoch and prompt, so that a run which goes on in batches of another size, or on another number of
processes, finds them as well.

Shapes: P prompts, G completions per prompt, T completion tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from orlaif.answer_format import AnswerFormat
from orlaif.types import CandidateGroup, Completions, OracleError, PromptBatch, Ranking


@dataclass(frozen=True, kw_only=True)
class Group:
    """The completions of one prompt, and what the oracle said of them.

    Args:
        epoch: that they were sampled for.
        prompt_id: of the prompt.
        ids: i64[G, T].
        mask: bool[G, T].
        logps: f32[G, T], by which they were sampled, if the rollout says.
        texts: G answers.
        ranks: i64[G]; None: the oracle is still to be asked.
        scores: f32[G], if it gave any.
        failures: of the oracle with this group: name of the oracle, prompt id and cause.
    """

    epoch: int
    prompt_id: str
    ids: Tensor
    mask: Tensor
    logps: Tensor | None
    texts: tuple[str, ...]
    ranks: Tensor | None
    scores: Tensor | None
    failures: tuple[tuple[str, str, str], ...]

    def plain(self) -> dict[str, Any]:
        """As a dictionary."""
        return dict(vars(self))

    @classmethod
    def of_plain(cls, values: dict[str, Any]) -> Group:
        """From :meth:`plain`."""
        return cls(**values)


#: By epoch and prompt id.
Groups: TypeAlias = dict[tuple[int, str], Group]


def candidate_groups(batch: PromptBatch, completions: Completions, answer_format: AnswerFormat) -> list[CandidateGroup]:
    """What the oracle is shown: P groups, each completion read by the policy's format."""
    return [
        CandidateGroup.of(prompt, clip, texts, answer_format)
        for prompt, clip, texts in zip(batch.prompts, batch.clips, completions.texts, strict=True)
    ]


def groups_of(epoch: int, batch: PromptBatch, completions: Completions, ranking: Ranking | None) -> Groups:
    """A record for each prompt of a batch.

    Args:
        epoch: of the batch.
        batch: P prompts.
        completions: theirs, on the CPU.
        ranking: of them; None: the oracle is still to be asked.
    """
    failures = () if ranking is None else ranking.failures
    scores = None if ranking is None else ranking.scores
    groups: Groups = {}
    for i, prompt in enumerate(batch.prompts):
        groups[epoch, prompt.id] = Group(
            epoch=epoch,
            prompt_id=prompt.id,
            ids=completions.ids[i].clone(),
            mask=completions.mask[i].clone(),
            logps=None if completions.logps is None else completions.logps[i].clone(),
            texts=completions.texts[i],
            ranks=None if ranking is None else ranking.ranks[i].cpu(),
            scores=None if scores is None else scores[i].cpu(),
            failures=tuple((e.oracle, e.prompt_id, e.cause) for e in failures if e.prompt_id == prompt.id),
        )
    return groups


def joined(groups: Sequence[Group], pad_id: int) -> tuple[Completions, Ranking | None]:
    """P records as a batch, on the CPU, filled up with ``pad_id``; no ranking where one of them has none."""
    longest = max(group.ids.shape[-1] for group in groups)
    logps = [group.logps for group in groups if group.logps is not None]
    completions = Completions(
        ids=_stacked([group.ids for group in groups], longest, pad_id),
        mask=_stacked([group.mask for group in groups], longest),
        texts=tuple(tuple(group.texts) for group in groups),
        logps=_stacked(logps, longest) if len(logps) == len(groups) else None,
    )
    ranks = [group.ranks for group in groups if group.ranks is not None]
    if len(ranks) < len(groups):
        return completions, None
    scores = None
    if any(group.scores is not None for group in groups):
        nothing = torch.full(ranks[0].shape, torch.nan)
        scores = torch.stack([nothing if group.scores is None else group.scores for group in groups])
    failures = tuple(OracleError(*failure) for group in groups for failure in group.failures)
    return completions, Ranking(ranks=torch.stack(ranks), scores=scores, failures=failures)


def overlaid(completions: Completions, recorded: Sequence[Group | None], pad_id: int) -> Completions:
    """``completions`` of P prompts, on the CPU, but those that are on record, if any, as they are there."""
    if not any(group is not None for group in recorded):
        return completions
    length = completions.ids.shape[-1]
    length = max(length, *(group.ids.shape[-1] for group in recorded if group is not None))
    ids, mask = _stacked(list(completions.ids), length, pad_id), _stacked(list(completions.mask), length)
    logps = None if completions.logps is None else _stacked(list(completions.logps), length)
    texts = list(completions.texts)
    for i, group in enumerate(recorded):
        if group is not None:
            ids[i], mask[i] = _padded(group.ids, length, pad_id), _padded(group.mask, length)
            texts[i] = tuple(group.texts)
            if logps is not None and group.logps is not None:
                logps[i] = _padded(group.logps, length)
    return Completions(ids=ids, mask=mask, texts=tuple(texts), logps=logps)


def _padded(values: Tensor, length: int, filler: int = 0) -> Tensor:
    return torch.nn.functional.pad(values, (0, length - values.shape[-1]), value=filler)


def _stacked(rows: Sequence[Tensor], length: int, filler: int = 0) -> Tensor:
    return torch.stack([_padded(row, length, filler) for row in rows])
