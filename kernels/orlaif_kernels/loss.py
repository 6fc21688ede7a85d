"""The losses: GRPO_rank, or any objective, from logits or from hidden states and the LM head.

How memory traffic is spent. From logits, out of place, the forward pass reads them once and keeps five numbers a row;
the backward pass reads them again and writes the gradient: any number of backward passes, logits untouched. In place,
GRPO_rank does both sweeps over each row in one launch, the second from cache, and leaves the gradient where the logits
were: one read, one write, and no memory beyond the logits. From a head: see ``linear.py``.
"""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor

from orlaif_kernels.arguments import LossSettings, check_ids, check_tensors, check_tokens, choose
from orlaif_kernels.batch import prepare
from orlaif_kernels.in_place import in_place_loss
from orlaif_kernels.keywords import (
    GRPOArguments,
    HeadArguments,
    LinearGRPOArguments,
    LinearLossArguments,
    LossArguments,
)
from orlaif_kernels.linear import Head
from orlaif_kernels.linear_loss import linear_loss
from orlaif_kernels.logits import Logits
from orlaif_kernels.objective import GRPORank, Objective
from orlaif_kernels.rows import wide
from orlaif_kernels.statistics import statistics_of

Loss = tuple[Tensor, dict[str, Tensor]]
_SCALE = ("temperature", "softcap", "logit_scale", "loss_type")


def grpo_rank_loss(logits: Tensor, token_ids: Tensor, *, inplace: bool = False, **given: Unpack[GRPOArguments]) -> Loss:
    """The GRPO_rank loss (to be minimised) and its metrics.

    With ``w = exp(logp - old_logp)``, minus the weighted mean over completion tokens of
    ``min(min(w, delta) A, clip(w, 1 - clip_low, 1 + clip_high) A) - kl_coef KL(policy || reference) + entropy_coef
    H(policy)``.

    Sources: GRPO (arXiv 2402.03300), DAPO (2503.14476), Dr. GRPO (2503.20783), INTELLECT-2 (2505.07291) for delta,
    GSPO (2507.18071) for the sequence ratio, Oracle-RLAIF (2510.02561) for ranks.

    Args:
        logits: [N, T, V] at the positions that predict the completion tokens, or [N, T + 1, V], the last of which is
            ignored; bf16, fp16, f32 (``torch`` also f64). -inf excludes an entry of the vocabulary. Computed with in
            float32 or wider.
        token_ids: i64[N, T] (or i32). Where the mask counts, an id outside ``[0, V)`` is an error on a CPU, and on a
            GPU makes the loss NaN.
        inplace: the gradient may take the place of the logits. Then the logits must not be used again: a second
            backward pass raises, and so does another loss on the same logits. Has an effect with ``triton``, outside
            ``torch.compile`` (which plans memory itself), on logits that are no view and that a gradient is asked of.
        given: :class:`LossArguments` and :class:`GRPOArguments`. Nothing but the logits is differentiated.

    Returns:
        The loss, a 0-dim tensor with gradient (f32, f64 for f64 logits), and detached 0-dim metrics: ``loss, entropy,
        clip_ratio/{low,high,region,runaway}_mean`` and, with ``ref_logps``, ``kl``; all but the first are means over
        the tokens that count.

    Raises:
        ValueError: a setting out of range, tensors that do not fit, both or neither of ``advantages`` and ``ranks``, or
            ``inplace`` on logits whose values or gradient someone else keeps.
        RuntimeError: ``triton`` where it cannot run.
    """
    settings, tokens = _split(given, LossSettings.__dataclass_fields__)
    return _from_logits(logits, inplace, tokens, token_ids, GRPORank(settings), settings)


def policy_loss(
    logits: Tensor, token_ids: Tensor, objective: Objective, *, inplace: bool = False, **given: Unpack[LossArguments]
) -> Loss:
    """Any objective from logits: :func:`grpo_rank_loss` with per-token terms of one's own (``objective.py``).

    Args:
        logits: as there, as is ``inplace``.
        token_ids: as there.
        objective: ``(logp, old, reference, entropy, advantage, mask) -> terms``, or terms and a dict of per-token
            values, by keyword.
        inplace: as there.
        given: :class:`LossArguments`.

    Returns:
        The loss and its metrics, ``loss``, ``entropy`` and those of the objective.

    Raises:
        ValueError: as there, or terms that are no number per token.
    """
    settings, tokens = _split(given, _SCALE)
    return _from_logits(logits, inplace, tokens, token_ids, objective, settings)


def linear_grpo_rank_loss(
    hidden: Tensor, weight: Tensor, token_ids: Tensor, **given: Unpack[LinearGRPOArguments]
) -> Loss:
    """:func:`grpo_rank_loss` of ``hidden @ weight.T + bias``, which never exist at once.

    Args:
        hidden: [N, T, H], the model's last hidden states at the positions that predict the completion tokens.
        weight: [V, H], the LM head, same dtype as ``hidden`` (under autocast both are cast); a sharded ``DTensor`` is
            gathered. A head that requires no gradient costs neither the GEMM nor the memory of one.
        token_ids: i64[N, T] (or i32).
        given: :class:`LossArguments`, :class:`GRPOArguments` and :class:`HeadArguments`. With ``ratio="sequence"`` the
            logits are computed twice, for the ratio needs a completion's every token first. How many tokens count is
            read by the host (one synchronisation), but not while a CUDA graph is captured: masked tokens are then
            computed with, too.

    Returns:
        As :func:`grpo_rank_loss`. The gradients are made in the forward pass and given away by the backward pass: a
        second one raises, and so does a gradient of the gradient.

    Raises:
        ValueError: as :func:`grpo_rank_loss`, or a head that does not fit.
        RuntimeError: ``triton`` where it cannot run.
    """
    settings, tokens = _split(given, LossSettings.__dataclass_fields__)
    return _from_head(hidden, weight, tokens, token_ids, GRPORank(settings), settings)


def linear_policy_loss(
    hidden: Tensor, weight: Tensor, token_ids: Tensor, objective: Objective, **given: Unpack[LinearLossArguments]
) -> Loss:
    """Any objective through a head: three GEMMs, as for GRPO_rank, and dl/dlogp and dl/dH of each chunk by autograd.

    Args:
        hidden: as for :func:`linear_grpo_rank_loss`, as are ``weight`` and ``token_ids``.
        weight: as there.
        token_ids: as there.
        objective: as for :func:`policy_loss`; with ``level = "sequence"`` the logits are computed twice.
        given: :class:`LossArguments` and :class:`HeadArguments`.

    Returns:
        As :func:`policy_loss`.

    Raises:
        ValueError: as there.
    """
    settings, tokens = _split(given, _SCALE)
    return _from_head(hidden, weight, tokens, token_ids, objective, settings)


# ------------------------------------------------------------------------------------------------------------ the same


def _split(given: Any, of_settings: Any) -> tuple[LossSettings, dict[str, Any]]:
    """Settings, and the rest; what no one knows is a TypeError."""
    known = {*LinearLossArguments.__annotations__, *of_settings}
    if unknown := sorted(given.keys() - known):
        raise TypeError(f"unknown arguments {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    if given.get("mask") is None:
        raise TypeError("mask is missing: bool[N, T], True on completion tokens")
    return LossSettings(**{k: x for k, x in given.items() if k in of_settings}), {
        k: x for k, x in given.items() if k not in of_settings
    }


def _in_place(logits: Tensor, implementation: str) -> bool:
    """Whether the gradient may take the place of these logits, where that was allowed."""
    if not (torch.is_grad_enabled() and logits.requires_grad):
        return False
    if logits.is_leaf or logits.retains_grad:
        what = (
            "are a leaf that requires a gradient and would lose its values"
            if logits.is_leaf
            else "retain their gradient (retain_grad), which would take the place of their values"
        )
        raise ValueError(f"inplace is True, but the logits {what}; pass inplace=False")
    able = implementation == "triton" and not torch.compiler.is_compiling()
    return able and logits.is_contiguous() and not logits._is_view()


def _from_logits(logits: Tensor, inplace: bool, tokens: dict[str, Any], *rest: Any) -> Loss:
    check_tensors(logits=logits)
    chosen = choose(tokens.get("implementation", "auto"), logits)
    how = chosen + " inplace" * (inplace and _in_place(logits, chosen))
    return _loss(Logits(logits, None, None, how), tokens, *rest)


def _from_head(hidden: Tensor, weight: Tensor, tokens: dict[str, Any], *rest: Any) -> Loss:
    how = {name: tokens.pop(name) for name in HeadArguments.__annotations__ if name in tokens}
    return _loss(Head.of(hidden, weight, tokens.get("implementation", "auto"), **how), tokens, *rest)


def _loss(
    source: Logits | Head, tokens: dict[str, Any], token_ids: Tensor, objective: Objective, settings: LossSettings
) -> Loss:
    tokens["implementation"] = source.implementation
    per_token = {name: tokens.get(name) for name in ("old_logps", "ref_logps", "token_weights")}
    name = "hidden" if isinstance(source, Head) else "logits"
    mask = check_tokens(source.x, token_ids, tokens["mask"], name, **per_token)
    batch = prepare(token_ids, mask, settings, wide(source.x), tokens)
    check_ids(token_ids, batch.mask, source.vocabulary)
    fusible = isinstance(objective, GRPORank) and objective.fusible
    if isinstance(source, Logits) and "inplace" in source.how and fusible and source.x.dtype != torch.float16:
        return batch.finish(*in_place_loss(source, batch, settings))
    if isinstance(source, Head) and getattr(objective, "level", "token") == "token":
        total, sums = linear_loss(source, batch, objective, settings)
    else:
        total, sums = batch.loss(objective, *statistics_of(source, token_ids, batch.mask, settings))
    return batch.finish(total / batch.normalizer, sums)
