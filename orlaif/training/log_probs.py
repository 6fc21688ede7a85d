"""What a loss compares the policy with: log-probs of the frozen reference, and of the policy before its updates.

Shapes: P prompts, G completions per prompt, g of them in a part (``microbatch``), T completion tokens.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from orlaif.policy import evaluating
from orlaif.types import Completions, PromptBatch

if TYPE_CHECKING:
    from orlaif.training.rlaif import OracleRLAIF


@dataclass(frozen=True, kw_only=True)
class LogProbs:
    """Of the completions of a batch, in its parts; None where the recipe needs none.

    Args:
        reference: f32[P, g, T] each, by the frozen reference.
        old: f32[P, g, T] each, by the policy of before the updates.
    """

    reference: list[Tensor | None]
    old: list[Tensor | None]


def log_probs(module: OracleRLAIF, batch: PromptBatch, completions: Completions) -> LogProbs:
    """What the loss will compare with, of this process's of the completions [P, G, T] of P prompts."""
    parts = module.own_completions(completions).split(module.microbatch)
    reference: list[Tensor | None] = [None] * len(parts)
    old: list[Tensor | None] = [None] * len(parts)
    if module.loss.kl_coef:
        with module.notes.stage("reference", module.device):
            reference = [logps_without_gradient(module, batch, part, reference=True) for part in parts]
    if module.num_updates > 1 or module.rollout.correction is not None:
        with module.notes.stage("old_logps", module.device):
            old = [logps_without_gradient(module, batch, part) for part in parts]
    return LogProbs(reference=reference, old=old)


def logps_without_gradient(
    module: OracleRLAIF, batch: PromptBatch, completions: Completions, reference: bool = False
) -> Tensor:
    """f32[P, g, T] by the reference, or by the policy of this moment."""
    with torch.no_grad(), module.divided(), nullcontext() if reference else evaluating(module.policy.network):
        return module.policy.completion_logps(
            batch,
            completions,
            reference=reference,
            temperature=module.rollout.sampling.temperature,
            fused_head=module.loss.fused_head,
            implementation=module.loss.implementation,
        )
