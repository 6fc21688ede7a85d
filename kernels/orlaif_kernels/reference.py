"""The plain-PyTorch truth of a row's statistics: autograd over the definition, at any precision and any memory.

The kernels are tested against it in float64, and a gradient of a gradient is taken through it.

Shapes: N completions, T tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from orlaif_kernels.arguments import LossSettings


def statistics(logits: Tensor, token_ids: Tensor, mask: Tensor, settings: LossSettings) -> tuple[Tensor, Tensor]:
    """Log-prob of each token and exact entropy, [N, T] in float32 or wider, 0 where masked; differentiable twice."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    wide = wide.where(mask.unsqueeze(-1), 0.0)
    excluded = wide == -torch.inf
    z = wide.masked_fill(excluded, 0.0)
    if settings.softcap is not None:
        z = settings.softcap * torch.tanh(z * settings.logit_scale / settings.softcap)
    else:
        z = z * settings.logit_scale
    log_p = torch.log_softmax((z / settings.temperature).masked_fill(excluded, -torch.inf), -1)
    ids = token_ids.long().masked_fill(~mask, 0)
    within = (ids >= 0) & (ids < logits.shape[-1])
    logps = log_p.gather(-1, ids.where(within, 0).unsqueeze(-1)).squeeze(-1).where(within, torch.nan)
    # Excluded entries have p = 0 and log p = -inf; 0 * -inf would be NaN, in the backward pass as well.
    entropy = -(log_p.exp() * log_p.masked_fill(excluded, 0.0)).sum(-1)
    return logps.masked_fill(~mask, 0.0), entropy.masked_fill(~mask, 0.0)
