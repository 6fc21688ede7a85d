"""What the length of an answer does to its rank: those that were cut off, and DAPO's overlong penalty, on ranks too.

The oracle is asked about all answers first, and what it said stays as it is; the ranking that advantages are made of is
changed by the two rules here, in this order: the soft penalty, then what ``truncated`` says.

Shapes: P prompts, G completions per prompt, T completion tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from orlaif.answer_format import WholeAnswer
from orlaif.oracles import dense_ranks
from orlaif.types import Completions, Ranking

if TYPE_CHECKING:
    from orlaif.training.rlaif import OracleRLAIF

Truncated = Literal["keep", "mask", "last"]


@dataclass(frozen=True, kw_only=True)
class Overlong:
    """DAPO's soft overlong punishment (Yu et al. 2025, arXiv 2503.14476, equation 13; verl's ``overlong_buffer``).

    An answer of L tokens, of at most M (``max_new_tokens``), is too long by ``p = (L - (M - buffer)) / buffer``, held
    in [0, 1]. Its score falls by ``penalty * p``. Its rank, where ties share their mean place, falls by
    ``penalty * p * (G - 1)`` places, and the group is ordered anew: at ``penalty`` 1 the best of G answers, if it is
    as long as can be, ends level with the worst that is not, and half way into the buffer it falls half as far.

    Args:
        buffer: tokens before ``max_new_tokens`` within which the penalty rises.
        penalty: what it rises to.

    Raises:
        ValueError: a setting is out of its range.
    """

    buffer: int
    penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.buffer < 1:
            raise ValueError(f"overlong.buffer is {self.buffer}; it must be 1 or more tokens")
        if not self.penalty > 0:
            raise ValueError(f"overlong.penalty is {self.penalty}; it must be above 0 (leave overlong out for none)")


def check_lengths(truncated: Truncated, overlong: Overlong | None, max_new_tokens: int) -> None:
    """Raise ValueError for settings that cannot be."""
    if truncated not in get_args(Truncated):
        raise ValueError(f"truncated is {truncated!r}; it must be 'keep', 'mask' or 'last'")
    if overlong is not None and overlong.buffer > max_new_tokens:
        raise ValueError(
            f"overlong.buffer is {overlong.buffer}, more than the {max_new_tokens} tokens of sampling.max_new_tokens"
        )


def cut_off(completions: Completions, eos_ids: Sequence[int]) -> Tensor:
    """bool[P, G], answers that do not end by a token which ends answers, and so were cut off.

    Args:
        completions: [P, G, T].
        eos_ids: the tokens at which rollouts stop.
    """
    lengths = completions.lengths
    last = completions.ids.gather(-1, (lengths - 1).clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return ~(torch.isin(last, torch.tensor(eos_ids, device=last.device)) & (lengths > 0))


def penalised(ranking: Ranking, lengths: Tensor, overlong: Overlong, max_new_tokens: int) -> Ranking:
    """A ranking with overlong answers demoted, as :class:`Overlong` has it.

    Args:
        ranking: ranks i64[P, G], and scores, if any.
        lengths: i64[P, G], tokens of each answer.
        overlong: buffer and penalty.
        max_new_tokens: of the rollout.
    """
    too_long = (lengths - (max_new_tokens - overlong.buffer)) / overlong.buffer
    penalty = overlong.penalty * too_long.to(ranking.device).double().clamp(0, 1)
    places = mean_places(ranking.ranks) + penalty * (ranking.ranks.shape[1] - 1)
    scores = None if ranking.scores is None else (ranking.scores - penalty).float()
    return replace(ranking, ranks=dense_ranks(-places.round(decimals=9)), scores=scores)


def mean_places(ranks: Tensor) -> Tensor:
    """f64[P, G], the place of each answer from 0 on, ties at the mean of the places they share; NaN if not ranked."""
    valid = (ranks >= 0).unsqueeze(-2)  # of the others, along the last dimension
    before = ((ranks.unsqueeze(-2) < ranks.unsqueeze(-1)) & valid).sum(-1)
    level = ((ranks.unsqueeze(-2) == ranks.unsqueeze(-1)) & valid).sum(-1)
    return (before + (level - 1) / 2).double().masked_fill(ranks < 0, torch.nan)


def without(ranking: Ranking, left_out: Tensor) -> Ranking:
    """A ranking of the other answers; those of ``left_out`` bool[P, G] are -1 and have no score."""
    levels = (-ranking.ranks.double()).masked_fill((ranking.ranks < 0) | left_out, torch.nan)
    scores = None if ranking.scores is None else ranking.scores.masked_fill(left_out, torch.nan)
    return replace(ranking, ranks=dense_ranks(levels), scores=scores)


def behind(ranking: Ranking, last: Tensor) -> Ranking:
    """A ranking in which those of ``last`` bool[P, G] share the place behind all others.

    Their score becomes the lowest of their group, where it is not lower.
    """
    levels = (-ranking.ranks.double()).masked_fill(last, -torch.inf).masked_fill(ranking.ranks < 0, torch.nan)
    scores = ranking.scores
    if scores is not None:
        lowest = scores.nan_to_num(nan=torch.inf).amin(-1, keepdim=True).expand_as(scores)
        scores = torch.where(last & ~scores.isnan(), lowest, scores)
    return replace(ranking, ranks=dense_ranks(levels), scores=scores)


def by_length(module: OracleRLAIF, ranking: Ranking, completions: Completions) -> Ranking:
    """What the oracle said, changed by the recipe's ``overlong`` and ``truncated``; itself where they ask for nothing.

    Args:
        module: whose settings they are.
        ranking: of P groups.
        completions: [P, G, T] of the same.
    """
    if module.overlong is not None:
        longest = module.rollout.sampling.max_new_tokens
        ranking = penalised(ranking, completions.lengths, module.overlong, longest)
    if module.truncated == "keep":
        return ranking
    cut = cut_off(completions, module.policy.eos_ids).to(ranking.device)
    return without(ranking, cut) if module.truncated == "mask" else behind(ranking, cut)


def note_answers(module: OracleRLAIF, completions: Completions) -> None:
    """``answer/unreadable`` and ``answer/well_formed``, where the format is not the whole text."""
    kind = module.policy.answer_format
    if isinstance(kind, WholeAnswer):
        return
    reads = [kind.read(text) for group in completions.texts for text in group]
    module.notes.note("answer/unreadable", sum(read.answer is None for read in reads) / len(reads), len(reads))
    module.notes.note("answer/well_formed", sum(read.well_formed for read in reads) / len(reads), len(reads))
