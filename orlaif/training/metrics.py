"""What only ranks can tell about a training step: ties, silence, and agreement of orders."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torchmetrics.functional import kendall_rank_corrcoef

from orlaif.oracles import order_consistency
from orlaif.training.judging import warn_of_silence
from orlaif.training.lengths import cut_off
from orlaif.types import CandidateGroup, Completions, OracleError, Ranking

if TYPE_CHECKING:
    from orlaif.training.rlaif import OracleRLAIF


def kendall_tau(x: Tensor, y: Tensor, valid: Tensor) -> Tensor:
    """Kendall's tau-b of two orders of each group (Kendall 1945), ties allowed.

    Args:
        x: [P, G].
        y: [P, G].
        valid: bool[P, G], entries to compare.

    Returns:
        f32[P]; NaN where one of the two does not order the group at all.
    """
    taus = torch.full((len(x),), torch.nan)
    for i, (first, second, kept) in enumerate(zip(x.float(), y.float(), valid, strict=True)):
        first, second = first[kept], second[kept]
        if all(len(order.unique()) > 1 for order in (first, second)):
            tau = kendall_rank_corrcoef(first, second, variant="b")
            assert isinstance(tau, Tensor)  # a pair, where a test of significance is asked for
            taus[i] = tau
    return taus


def _mean(values: Tensor) -> Tensor:
    """Mean of what is not NaN; 0 where nothing is left."""
    return values.nanmean().nan_to_num(0.0)


def rank_metrics(
    ranks: Tensor, advantages: Tensor, lengths: Tensor, sequence_logps: Tensor | None
) -> dict[str, Tensor]:
    """The rank-native metrics of a step.

    Args:
        ranks: i64[P, G], -1 = not ranked.
        advantages: f32[P, G] or f32[P, G, T].
        lengths: i64[P, G], tokens of each answer.
        sequence_logps: f32[P, G], log-probs of the answers under the policy, if known.

    Returns:
        0-dim tensors: ``oracle/tie_rate`` (share of ranked pairs), ``oracle/unranked_rate`` (share of answers),
        ``oracle/zero_signal_rate`` (share of groups without any advantage), ``oracle/length_tau`` (positive: longer
        answers rank better), ``oracle/position_tau`` (positive: answers shown first rank better; they were sampled in
        no order, so anything but 0 is the oracle's) and ``oracle/policy_tau`` (positive: policy and oracle agree).
    """
    valid = ranks >= 0
    pair = (valid.unsqueeze(-1) & valid.unsqueeze(-2)).triu(1)
    ties = (ranks.unsqueeze(-1) == ranks.unsqueeze(-2)) & pair
    metrics = {
        "oracle/tie_rate": ties.sum() / pair.sum().clamp(min=1),
        "oracle/unranked_rate": (~valid).float().mean(),
        "oracle/zero_signal_rate": (advantages == 0).flatten(1).all(-1).float().mean(),
        "oracle/length_tau": _mean(kendall_tau(-ranks, lengths, valid)),
    }
    first = -torch.arange(ranks.shape[1], device=ranks.device).expand_as(ranks)
    metrics["oracle/position_tau"] = _mean(kendall_tau(-ranks, first, valid))
    if sequence_logps is not None:
        metrics["oracle/policy_tau"] = _mean(kendall_tau(-ranks, sequence_logps, valid))
    return metrics


def note_order_consistency(module: OracleRLAIF, groups: list[CandidateGroup], ranking: Ranking, batch_idx: int) -> None:
    """``oracle/order_consistency``: does the oracle rank alike when the candidates are shuffled?"""
    try:
        consistency = order_consistency(module.oracle, groups, ranking, torch.Generator().manual_seed(batch_idx))
    except OracleError:  # a second opinion only; the failure rate counts the first
        return
    module.notes.note("oracle/order_consistency", consistency, len(groups))


def note_completions(module: OracleRLAIF, completions: Completions, ranking: Ranking, advantages: Tensor) -> None:
    """Lengths, ends, and what only ranks can tell (``orlaif.training.metrics``).

    Args:
        module: notes them.
        completions: of P groups.
        ranking: of the same.
        advantages: f32[P, G] or f32[P, G, T].
    """
    lengths = completions.lengths
    cut = cut_off(completions, module.policy.eos_ids)
    module.notes.note("train/completions/mean_length", lengths.float().mean(), lengths.numel())
    module.notes.note("train/completions/clipped_ratio", cut.float().mean(), lengths.numel())
    sequence_logps = None if completions.logps is None else (completions.logps * completions.mask).sum(-1).cpu()
    metrics = rank_metrics(ranking.ranks.cpu(), advantages.cpu(), lengths.cpu(), sequence_logps)
    for name, value in metrics.items():
        module.notes.note(name, value, len(completions.ids))
    if ranking.scores is not None and (scored := int((~ranking.scores.isnan()).sum())):
        module.notes.note("oracle/mean_score", ranking.scores.nanmean(), scored)
    warn_of_silence(module, ranking, advantages)
