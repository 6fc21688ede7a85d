"""What a token in a row may see where a model has masks of its own: windows, and frames that see each other both ways.

A model builds a mask for each kind of its layers from a rule over a query's and a key's index, and hands the rule to
the mask function that goes with its attention. Here that rule is asked about rows. Inside a prompt, and inside a
completion, indices differ as they would alone. Between a completion and its prompt lie the completions before it: the
key's index is moved by their tokens, so that the rule hears the distance that there would be alone. All else is the
layout's: a completion sees its prompt and itself.

Shapes: R rows of L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import causal_mask_function, sdpa_mask

from orlaif.policy.prefix.current import Laid, current
from orlaif.policy.prefix.layout import GroupRows

#: Of batch, head, query and key: whether the query sees the key.
Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
#: Queries whose part of a mask is made at once.
CHUNK = 1024


def shifts(rows: GroupRows) -> Tensor:
    """i64[R, L], tokens of other completions between each token and its prompt; 0 in a prompt."""
    behind = torch.zeros(rows.shape, dtype=torch.long)
    for span in rows.spans:
        place, before = span.start + span.prompt, 0
        for length in span.completions:
            behind[span.row, place : place + length] = before
            place, before = place + length, before + length
    return behind.to(rows.source.device)


def rule_in_rows(rule: Rule, rows: GroupRows) -> Rule:
    """``rule``, which holds for a sequence alone, for ``rows``."""
    group, segment, shift = rows.group, rows.segment, rows.memo("shifts", shifts)

    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        in_prompt = segment[b, k] == 0
        near = (group[b, q] == group[b, k]) & (in_prompt | (segment[b, q] == segment[b, k]))
        return near & rule(b, h, q, torch.where(in_prompt, k + shift[b, q], k).clamp(max=group.shape[1] - 1))

    return visible


def _dense(rule: Rule, rows: GroupRows, by_one: bool) -> Tensor:
    """bool[R, 1, L, L]."""
    r, length = rows.shape
    parts: list[Any] = [
        sdpa_mask(
            batch_size=r,
            q_length=min(CHUNK, length - start),
            kv_length=length,
            q_offset=start,
            mask_function=rule_in_rows(rule, rows),  # type: ignore[arg-type]
            allow_is_causal_skip=False,
            use_vmap=by_one,
            device=rows.source.device,
        )
        for start in range(0, length, CHUNK)
    ]
    return torch.cat(parts, 2)


def _blocks(rule: Rule, rows: GroupRows) -> Any:
    """The same for FlexAttention."""
    from torch.nn.attention.flex_attention import create_block_mask

    r, length = rows.shape
    return create_block_mask(rule_in_rows(rule, rows), r, None, length, length, device=str(rows.source.device))


def is_causal(rule: Any) -> bool:
    """Whether a rule lets a token see all before it, and nothing else."""
    return rule is causal_mask_function


_WATCHED: ContextVar[list[Rule] | None] = ContextVar("orlaif_rules", default=None)


@contextmanager
def watched_rules() -> Iterator[list[Rule]]:
    """A context whose list fills with the rules that models build masks from."""
    rules: list[Rule] = []
    token = _WATCHED.set(rules)
    try:
        yield rules
    finally:
        _WATCHED.reset(token)


def row_mask(*args: Any, **kwargs: Any) -> Any:
    """A mask function of transformers: ``sdpa``'s, or where rows are current, what their tokens may see.

    Args:
        args: see ``transformers.masking_utils.sdpa_mask``.
        kwargs: likewise.

    Returns:
        bool[R, 1, L, L], or a block mask for ``flex``; bool[1, 1, 1, 1] where the rule is causal and no mask is read.

    Raises:
        ValueError: a mask over something else than the row.
    """
    running, rules = current(), _WATCHED.get()
    if rules is not None:
        rules.append(kwargs["mask_function"])
    if running is None:
        return sdpa_mask(*args, **kwargs)
    return _mask(running, **kwargs)


def _mask(
    running: Laid, *, mask_function: Rule, q_length: int, kv_length: int, use_vmap: bool = False, **_: Any
) -> Any:
    rows = running.rows
    if (q_length, kv_length) != (rows.shape[1],) * 2:
        raise ValueError(f"it masks {q_length} queries over {kv_length} keys in a row of {rows.shape[1]}")
    if is_causal(mask_function):
        return rows.mask if running.attention == "mask" else nothing_to_read(rows)
    if running.attention == "flex":
        return _blocks(mask_function, rows)
    return _dense(mask_function, rows, use_vmap)


def nothing_to_read(rows: GroupRows) -> Tensor:
    """bool[1, 1, 1, 1], which goes through transformers as it is: attention that knows rows needs no more."""
    return rows.source.new_ones(1, 1, 1, 1).bool()
