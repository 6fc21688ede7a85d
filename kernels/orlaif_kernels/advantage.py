"""``rank_advantage``: from the ranks of whole groups to advantages, in one launch for all groups."""

from __future__ import annotations

import torch
from torch import Tensor

from orlaif_kernels import mappings
from orlaif_kernels.arguments import Mapping, check_tensors, choose, one_of, whole_number
from orlaif_kernels.rows import on_device_of


def rank_advantage(
    ranks: Tensor,
    *,
    group_size: int,
    mapping: Mapping = "dcg",
    scores: Tensor | None = None,
    sequence_logps: Tensor | None = None,
    implementation: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Advantages of ranked groups.

    Args:
        ranks: int32 or int64, [P * G] or [P, G]; 0 = best, equal answers share a rank (dense or competition numbering),
            -1 = not ranked.
        group_size: G.
        mapping: ``dcg``, ``borda``, ``ndcg_penalty`` (needs ``sequence_logps``) or ``zscore`` (needs ``scores``); see
            ``orlaif_kernels.mappings`` for each one's formula.
        scores: float, shaped like ``ranks``; larger is better, NaN = no score.
        sequence_logps: float, shaped like ``ranks``: log-prob of each whole answer when it was sampled.
        implementation: ``auto``, ``torch`` or ``triton``.

    Returns:
        advantages and weights, f32, shaped like ``ranks``. Advantages sum to zero in each group. A weight is 0 for what
        teaches nothing (an answer without rank or score, a group whose answers are all equal) and 1 otherwise; the
        advantage is 0 wherever the weight is.

    Raises:
        ValueError: ranks that do not fill whole groups, a mapping without what it needs, or an infinite score.
        RuntimeError: ``triton`` where it cannot run.
    """
    one_of("mapping", mapping, Mapping)
    check_tensors(ranks=ranks, scores=scores, sequence_logps=sequence_logps)
    check_groups(ranks, group_size)
    needs = {"zscore": ("scores", scores), "ndcg_penalty": ("sequence_logps", sequence_logps)}
    if mapping in needs:
        name, tensor = needs[mapping]
        if tensor is None:
            raise ValueError(f"mapping {mapping!r} needs {name}")
        if not tensor.is_floating_point():
            raise ValueError(f"{name} are {tensor.dtype}; they must be floating point")
        if tensor.shape != ranks.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; ranks have {tuple(ranks.shape)}")
    chosen = choose(implementation, ranks.new_empty(0, dtype=torch.float32))
    scores = scores.detach() if mapping == "zscore" and scores is not None else None
    if scores is not None:
        mappings.check_scores(scores)
    sequence_logps = sequence_logps.detach() if mapping == "ndcg_penalty" and sequence_logps is not None else None
    if ranks.numel() == 0:
        return torch.zeros_like(ranks, dtype=torch.float32), torch.zeros_like(ranks, dtype=torch.float32)
    if chosen == "torch":
        return _torch(ranks, group_size, mapping, scores, sequence_logps)
    advantages, weights = torch.ops.orlaif_kernels.rank_advantage(
        ranks.contiguous(), scores, sequence_logps, group_size, mapping
    )
    return advantages, weights


def check_groups(ranks: Tensor, group_size: int) -> None:
    """Raise a ValueError unless ``ranks`` are whole groups of integers."""
    if ranks.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"ranks are {ranks.dtype}; they must be int32 or int64")
    whole_number("group_size", group_size)
    if ranks.ndim == 2 and ranks.shape[1] != group_size:
        raise ValueError(f"ranks have shape {tuple(ranks.shape)}; group_size {group_size} asks for [P, {group_size}]")
    if ranks.ndim not in (1, 2) or ranks.numel() % group_size:
        raise ValueError(f"ranks have shape {tuple(ranks.shape)}; it must be [P * {group_size}] or [P, {group_size}]")


def _torch(
    ranks: Tensor, group_size: int, mapping: str, scores: Tensor | None, sequence_logps: Tensor | None
) -> tuple[Tensor, Tensor]:
    grid = ranks.reshape(-1, group_size).long()
    keys, valid = grid, grid >= 0
    if mapping == "zscore":
        assert scores is not None
        keys = scores.reshape(grid.shape).masked_fill(~valid, torch.nan)
        valid = valid & ~keys.isnan()
        advantages = mappings.zscore(keys)
    elif mapping == "ndcg_penalty":
        assert sequence_logps is not None
        advantages = mappings.ndcg_penalty(grid, sequence_logps.reshape(grid.shape))
    else:
        advantages = {"dcg": mappings.dcg, "borda": mappings.borda}[mapping](grid)
    weights = (valid & mappings.has_signal(keys, valid)).float()
    return advantages.view(ranks.shape), weights.view(ranks.shape)


@torch.library.custom_op("orlaif_kernels::rank_advantage", mutates_args=())
def _rank_advantage(
    ranks: Tensor, scores: Tensor | None, sequence_logps: Tensor | None, group_size: int, mapping: str
) -> tuple[Tensor, Tensor]:
    advantages = torch.empty(ranks.shape, dtype=torch.float32, device=ranks.device)
    weights = torch.empty_like(advantages)
    from orlaif_kernels import group_kernel as k

    with on_device_of(ranks):
        k.group_kernel[(ranks.numel() // group_size,)](
            ranks,
            None if scores is None else scores.contiguous(),
            None if sequence_logps is None else sequence_logps.contiguous(),
            advantages,
            weights,
            ranks.numel(),
            group_size,
            mappings.ZSCORE_EPS,
            MAPPING=k.MAPPINGS[mapping],
            LANES=max(2, 1 << (group_size - 1).bit_length()),
            num_warps=4,
        )
    return advantages, weights


@_rank_advantage.register_fake
def _(
    ranks: Tensor, scores: Tensor | None, sequence_logps: Tensor | None, group_size: int, mapping: str
) -> tuple[Tensor, Tensor]:
    return ranks.new_empty(ranks.shape, dtype=torch.float32), ranks.new_empty(ranks.shape, dtype=torch.float32)
