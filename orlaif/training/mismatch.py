"""Sampler against trainer: the weights of tokens that another engine drew, what is logged of them, and an alarm.

Metrics have TRL's names (``sampling/...``), and its meaning: of the weights after the bounds.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from orlaif.types import Completions

if TYPE_CHECKING:
    from orlaif.training.rlaif import OracleRLAIF

log = logging.getLogger(__name__)


def importance_weights(module: OracleRLAIF, completions: Completions, old: list[Tensor | None], mask: Tensor) -> Tensor:
    """Importance weights f32[P, G, T] by ``rollout.correction``; the mismatch is noted.

    Args:
        module: notes the mismatch; its rollout has the correction.
        completions: of P groups, with the sampler's log-probs.
        old: f32[P, g, T], the trainer's, in parts of the groups.
        mask: bool[P, G, T], the tokens that count.

    Raises:
        ValueError: the rollout gave no log-probs.
    """
    correction = module.rollout.correction
    assert correction is not None
    if completions.logps is None:
        raise ValueError(
            "the rollout gives no log-probs to correct by; set rollout.importance_cap and correction to null"
        )
    trainers = torch.cat([part for part in old if part is not None], 1)
    ratios = correction.ratios(trainers, completions.logps, completions.mask)
    weights = correction.bounded(ratios)
    if number := int(mask.sum()):
        difference = (trainers - completions.logps)[mask].abs()
        of_tokens = correction.level == "token"
        counted = mask if of_tokens else mask & (mask.cumsum(-1) == 1)  # an answer's weight is that of its first token
        kept = weights[counted]
        noted = {
            "sampling_logp_difference/mean": (difference.mean(), number),
            "sampling_logp_difference/max": (difference.max(), number),
            **{
                f"importance_sampling_ratio/{name}": (value, len(kept))
                for name, value in (("min", kept.min()), ("mean", kept.mean()), ("max", kept.max()))
            },
            "outside_ratio": (correction.outside(ratios)[counted].float().mean(), len(kept)),
        }
        for name, (value, weight) in noted.items():
            module.notes.note(f"train/sampling/{name}", value, weight)
        _warn(module, float(difference.mean()), correction.alarm)
    return weights


def _warn(module: OracleRLAIF, mean: float, alarm: float) -> None:
    """Once in a run, where the sampler is further from the trainer than other kernels and precisions bring it."""
    if mean <= alarm or not module.notes.first("mismatch"):
        return
    log.warning(
        "step %d: sampler and trainer differ by %.3g nats a token (rollout.correction.alarm: %g). Usual causes: the "
        "sampler has older weights (the difference grows from step to step), numbers positions otherwise, or sees "
        "other pixels (it is there from the first step)",
        module.global_step,
        mean,
        alarm,
    )
