"""A group in one row: where the tokens of a prompt and its G completions lie, and who sees whom.

    group p = [ prompt | completion 1 | ... | completion G ]         without padding in between

A completion sees the prompt and, causally, itself, never its siblings; it carries the positions that it would have had
alone. So the vision tower and the prompt run once for the group, and log-probs and gradients equal those of the
duplicated batch. Groups lie in rows, one or several to a row, in the order of the batch: models fill in pixels in the
order of their tokens.

Shapes: P prompts of S tokens (padded left), G completions of T tokens (padded right); R rows of L tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class GroupSpan:
    """Where one group lies.

    Args:
        row: its row.
        start: its first token in that row.
        prompt: tokens of the prompt.
        completions: tokens of each completion, which follow the prompt one behind the other.
    """

    row: int
    start: int
    prompt: int
    completions: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens of prompt and completions together."""
        return self.prompt + sum(self.completions)


@dataclass(frozen=True, kw_only=True)
class GroupRows:
    """P groups in R rows of L tokens.

    Args:
        source: i64[R, L], each token's index into prompts [P * S] followed by completions [P * G * T]; -1 = padding.
        group: i32[R, L], the group of each token; -1 = padding, at the end of a row.
        segment: i32[R, L], 0 in a prompt, 1 .. G in a completion.
        predict: i64[P, G, T], the place in [R * L] whose logits predict that completion token; for the first token the
            end of the prompt, which all G share; where masked, also that.
        spans: the P groups, in plain numbers.
    """

    source: Tensor
    group: Tensor
    segment: Tensor
    predict: Tensor
    spans: tuple[GroupSpan, ...]
    _memo: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def to(self, device: torch.device | str) -> GroupRows:
        """The same layout with its tensors on ``device``."""
        moved = {name: getattr(self, name).to(device) for name in ("source", "group", "segment", "predict")}
        return GroupRows(**moved, spans=self.spans)

    def memo(self, name: str, build: Callable[[GroupRows], Any]) -> Any:
        """``build(self)``, built once: all layers use the same."""
        if name not in self._memo:
            self._memo[name] = build(self)
        return self._memo[name]

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and of places in a row, (R, L)."""
        return int(self.source.shape[0]), int(self.source.shape[1])

    @property
    def num_tokens(self) -> int:
        """How many places hold a token that is not padding."""
        return sum(span.length for span in self.spans)

    def lay(self, prompts: Tensor, completions: Tensor, padding: int = 0) -> Tensor:
        """Values of the tokens, in rows.

        Args:
            prompts: [..., P, S].
            completions: [..., P, G, T].
            padding: the value of padding.

        Returns:
            [..., R, L].
        """
        values = torch.cat([prompts.flatten(-2), completions.flatten(-3)], -1)
        return values[..., self.source.clamp(min=0)].masked_fill(self.source < 0, padding)

    @property
    def mask(self) -> Tensor:
        """bool[R, 1, L, L], True where the query (second to last) sees the key (last).

        Padding sees the padding before it, so that no row of a softmax is empty.
        """
        order = torch.arange(self.shape[1], device=self.source.device)
        same_group = self.group[:, :, None] == self.group[:, None, :]
        same_segment = self.segment[:, :, None] == self.segment[:, None, :]
        prompt = self.segment[:, None, :] == 0
        return (same_group & (prompt | same_segment) & (order[:, None] >= order)).unsqueeze(1)


def _spans(prompts: list[int], completions: list[list[int]], one_row: bool) -> list[GroupSpan]:
    """Put each group behind the one before it, in a new row where the row is full."""
    lengths = [prompt + sum(group) for prompt, group in zip(prompts, completions, strict=True)]
    capacity = sum(lengths) if one_row else max(lengths)
    spans: list[GroupSpan] = []
    row = start = 0
    for prompt, group, length in zip(prompts, completions, lengths, strict=True):
        if start + length > capacity:
            row, start = row + 1, 0
        spans.append(GroupSpan(row=row, start=start, prompt=prompt, completions=tuple(group)))
        start += length
    return spans


def group_rows(prompt_mask: Tensor, completion_mask: Tensor, one_row: bool = False) -> GroupRows:
    """Lay out groups in rows.

    Args:
        prompt_mask: i64 or bool[P, S], padded on the left.
        completion_mask: bool[P, G, T], padded on the right.
        one_row: put groups of different lengths into a single row, without any padding, instead of rows of the longest
            group's length. For attention whose cost does not grow with the row.

    Returns:
        The layout.
    """
    p, g, t = completion_mask.shape
    s, device = prompt_mask.shape[1], prompt_mask.device
    prompt_lengths, lengths = prompt_mask.long().sum(-1), completion_mask.sum(-1)
    prompts, completions = prompt_lengths.tolist(), lengths.tolist()
    uniform = len({(prompt, *group) for prompt, group in zip(prompts, completions, strict=True)}) == 1
    spans = _spans(prompts, completions, one_row and not uniform)
    num_rows = spans[-1].row + 1
    width = max(span.start + span.length for span in spans)

    first = torch.tensor([span.row * width + span.start for span in spans], device=device)
    prompt_at = (first - (s - prompt_lengths))[:, None] + torch.arange(s, device=device)
    before = prompt_lengths[:, None] + lengths.cumsum(-1) - lengths
    completion_at = (first[:, None] + before)[..., None] + torch.arange(t, device=device)
    places = torch.cat([prompt_at[prompt_mask.bool()], completion_at[completion_mask]])
    tokens = torch.cat([prompt_mask.bool().flatten(), completion_mask.flatten()]).nonzero().squeeze(-1)

    numbers = torch.arange(p, device=device, dtype=torch.int32)
    groups = torch.cat([numbers.repeat_interleave(s), numbers.repeat_interleave(g * t)])
    segments = torch.arange(1, g + 1, device=device, dtype=torch.int32).repeat_interleave(t).repeat(p)
    segments = torch.cat([segments.new_zeros(p * s), segments])
    rows = torch.full((3, num_rows * width), -1, dtype=torch.int64, device=device)
    rows[:, places] = torch.stack([tokens, groups[tokens].long(), segments[tokens].long()])
    source, group, segment = rows.view(3, num_rows, width)

    end_of_prompt = (first + prompt_lengths - 1)[:, None, None].expand(p, g, 1)
    predict = torch.cat([end_of_prompt, completion_at[..., :-1]], -1)
    return GroupRows(
        source=source,
        group=group.int(),
        segment=segment.int(),
        predict=predict.where(completion_mask, end_of_prompt),
        spans=tuple(spans),
    )
