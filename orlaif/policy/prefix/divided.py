"""A prompt divided among processes, and completions dealt out to them: what lies where, and what the decoder is given.

    whole     [ prompt                      | completion 1 | ... | completion G ]
    process i [ its run of the prompt       | its completions, whole            ]

Process i of n holds tokens ``S * i // n`` to ``S * (i + 1) // n`` of every prompt, and completions of its own, which no
other process has to know. Embeddings, and the vision tower's features in them, are made of whole prompts, as models
check that these fit; then, where they enter the decoder, each process keeps its tokens. From there on a token's place
is told by its positions alone, and attention (``orlaif.policy.prefix.divided_attention``) and recurrent layers
(``orlaif.policy.prefix.mixers``) are the only ones to look at other tokens.

A token's hidden state predicts the next token. So all completion tokens are predicted where they lie, but the first of
each, which the end of the prompt predicts: its hidden state goes from the last process to the others.

Shapes: P prompts of up to S tokens, G completions of T tokens on this process; R rows of L tokens as a whole, r rows of
l tokens here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from orlaif.distributed.sequence import SequenceGroup
from orlaif.policy.asking import base_of
from orlaif.policy.prefix.layout import GroupRows, group_rows


@dataclass(frozen=True, kw_only=True)
class Division:
    """What this process has of its groups.

    Args:
        group: the processes that share the prompts.
        whole: layout of whole prompts, with this process's completions.
        rows: layout of what this process keeps.
        kept: i64[r, l], the place in [R * L] of each of its tokens; 0 at padding.
        ends: i64[P], the place in [r * l] of the last token of each prompt's run.
    """

    group: SequenceGroup
    whole: GroupRows
    rows: GroupRows
    kept: Tensor
    ends: Tensor

    @property
    def prompts(self) -> list[int]:
        """Tokens of each whole prompt."""
        return [span.prompt for span in self.whole.spans]

    def keep(self, x: Tensor) -> Tensor:
        """[R, L, ...] to [r, l, ...]; anything at padding."""
        return x.flatten(0, 1).index_select(0, self.kept.flatten()).view(*self.kept.shape, *x.shape[2:])

    def with_ends(self, states: Tensor, hidden: Tensor) -> Tensor:
        """Hidden states with those of whole prompts in front.

        Args:
            states: [r * l, H], of all tokens here.
            hidden: [P * G, T, H], those that predict completion tokens but for the first of each.
        """
        ends = self.group.from_last({"": states.index_select(0, self.ends)}, states.requires_grad)[""]
        first = ends.repeat_interleave(len(hidden) // len(ends), 0).unsqueeze(1)
        return torch.cat([first, hidden[:, 1:]], 1)


def divide(prompt_mask: Tensor, completion_mask: Tensor, group: SequenceGroup) -> Division:
    """Divide prompts among the processes of a group.

    Args:
        prompt_mask: i64 or bool[P, S], padded on the left; the same on all processes.
        completion_mask: bool[P, G, T], of this process's completions, padded on the right.
        group: of processes.

    Raises:
        ValueError: a prompt of fewer than two tokens for each process.
    """
    whole = group_rows(prompt_mask, completion_mask, one_row=True)
    shortest = min(span.prompt for span in whole.spans)
    if shortest < 2 * group.size:  # recurrent layers take a single token for decoding, and write their state in place
        raise ValueError(
            f"policy.sequence_parallel is {group.size}, and a prompt has {shortest} tokens; it must have "
            f"{2 * group.size} or more"
        )
    runs = [group.share(span.prompt) for span in whole.spans]
    lengths = torch.tensor([stop - start for start, stop in runs])
    longest = int(lengths.max())
    mask = torch.arange(longest) >= longest - lengths[:, None]
    rows = group_rows(mask.to(prompt_mask.device), completion_mask, one_row=True)
    kept = torch.zeros(rows.shape, dtype=torch.long)
    ends = []
    for theirs, mine, (start, stop) in zip(whole.spans, rows.spans, runs, strict=True):
        first = theirs.row * whole.shape[1] + theirs.start
        behind = torch.arange(first + theirs.prompt, first + theirs.length)
        places = torch.cat([torch.arange(first + start, first + stop), behind])
        kept[mine.row, mine.start : mine.start + mine.length] = places
        ends.append(mine.row * rows.shape[1] + mine.start + mine.prompt - 1)
    device = prompt_mask.device
    return Division(group=group, whole=whole, rows=rows, kept=kept.to(device), ends=torch.tensor(ends, device=device))


@contextmanager
def decoder_keeps(model: Any, division: Division | None) -> Iterator[None]:
    """Let the decoder of ``model`` be given no more than this process's tokens; all where there is no division."""
    if division is None:
        yield
        return

    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = _Given(division, (*args, *kwargs.values()))
        return tuple(map(given.kept, args)), {name: given.kept(value) for name, value in kwargs.items()}

    handle = base_of(model).get_decoder().register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class _Given:
    """What a decoder is given for all tokens, and what is kept of it.

    Beside values of tokens ([R, L, ...], or positions [3, R, L]) models give values of the tokens at a mask alone:
    bool[R, L], and a tensor for each layer that adds some, [tokens at the mask, ...].
    """

    def __init__(self, division: Division, values: tuple[Any, ...]) -> None:
        self.division, self.shape = division, division.whole.shape
        self.marked: Tensor | None = None
        self.number = -1
        masks = [value for value in values if self._is_mask(value)]
        if len(masks) == 1:
            mask = masks[0].flatten()
            self.number = int(mask.sum())
            at = division.kept.flatten()
            at = at[mask[at] & (division.rows.source >= 0).flatten()]
            self.marked = (mask.long().cumsum(0) - 1)[at]

    def _is_mask(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.dtype == torch.bool and value.shape == self.shape

    def kept(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(map(self.kept, value))
        if not isinstance(value, Tensor):
            return value
        if value.shape[:2] == self.shape:
            out = self.division.keep(value)
            return out & (self.division.rows.source >= 0) if self._is_mask(value) else out
        if value.shape[-2:] == self.shape:
            return self.division.keep(value.flatten(0, -3).movedim(0, -1)).movedim(-1, 0).unflatten(0, value.shape[:-2])
        if self.marked is not None and value.shape[:1] == (self.number,):
            return value.index_select(0, self.marked)
        return value
