"""``grpo_rank_loss``: the clipped-ratio GRPO_rank loss from logits.

How the Triton implementation spends memory traffic. Out of place, the forward pass reads the logits once and keeps
three numbers a row; the backward pass reads them again and writes the gradient: any number of backward passes, logits
untouched. In place, one launch does both sweeps over each row, the second from cache, and leaves the gradient where
the logits were: one read, one write, and no memory beyond the logits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from orlaif_kernels import reference
from orlaif_kernels.advantage import check_groups, launch_groups, rank_advantage
from orlaif_kernels.arguments import (
    KLEstimator,
    LossSettings,
    LossType,
    Mapping,
    RatioLevel,
    check_tokens,
    choose,
    one_of,
)
from orlaif_kernels.rows import METRICS, STATE_SLOTS, Tokens, finish, scale_in_place, sequence_terms, triton_pass


def grpo_rank_loss(
    logits: Tensor,
    token_ids: Tensor,
    *,
    advantages: Tensor | None = None,
    ranks: Tensor | None = None,
    group_size: int | None = None,
    mapping: Mapping = "dcg",
    mask: Tensor,
    old_logps: Tensor | None = None,
    ref_logps: Tensor | None = None,
    temperature: float = 1.0,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    delta: float | None = None,
    kl_coef: float = 0.0,
    kl_estimator: KLEstimator = "k3",
    entropy_coef: float = 0.0,
    loss_type: LossType = "dapo",
    normalizer: Tensor | float | None = None,
    ratio: RatioLevel = "token",
    inplace: bool = False,
    implementation: str = "auto",
) -> tuple[Tensor, dict[str, Tensor]]:
    """The GRPO_rank loss (to be minimised) and its metrics.

    With ``w = exp(logp - old_logp)``, minus the weighted mean over completion tokens of
    ``min(min(w, delta) A, clip(w, 1 - clip_low, 1 + clip_high) A) - kl_coef KL(policy || reference) + entropy_coef
    H(policy)``.

    Sources: GRPO (arXiv 2402.03300), DAPO (2503.14476), Dr. GRPO (2503.20783), INTELLECT-2 (2505.07291) for delta,
    GSPO (2507.18071) for the sequence ratio, Oracle-RLAIF (2510.02561) for ranks.

    Args:
        logits: [N, T, V] at the positions that predict the completion tokens; bf16, fp16, f32 (``torch`` also
        f64). -inf
            excludes an entry of the vocabulary. Computed with in float32 or wider.
        token_ids: i64[N, T] (or i32); masked places may hold anything.
        advantages: f32[N]; or else
        ranks: i64[N] or i64[N / G, G] (or i32), as for :func:`rank_advantage`, whose map is then part of this
            operation.
        group_size: G, with ``ranks``.
        mapping: ``dcg``, ``borda`` or ``ndcg_penalty`` (sequence log-probs are then summed from ``old_logps``).
        mask: bool[N, T], True on completion tokens.
        old_logps: f32[N, T] of the policy that sampled; None means it was this policy: the ratio is exactly 1.
            Masked places may hold anything, NaN included; so for ``ref_logps``.
        ref_logps: f32[N, T] of the frozen reference; required where ``kl_coef`` is not 0.
        temperature: divides the logits, as in sampling.
        clip_low: the ratio is clipped at ``1 - clip_low``.
        clip_high: and at ``1 + clip_high``.
        delta: upper bound of the unclipped ratio, which is what bounds the loss of a bad answer; None = unbounded.
        kl_coef: weight of the KL to the reference.
        kl_estimator: ``k1``, ``k2`` or ``k3``.
        entropy_coef: weight of the exact entropy over the vocabulary.
        loss_type: ``grpo`` = mean per completion, then mean; ``dapo`` = all tokens alike; ``dr_grpo`` = sum over N * T
            (pass ``normalizer`` for another constant). A row without tokens is no completion and counts nowhere.
        normalizer: divides the weighted sum; None means this call's own (1 if that is 0).
        ratio: ``token``, or ``sequence``: one ratio per completion, the geometric mean of its tokens'.
        inplace: the gradient may take the place of the logits. Then the logits must not be used again: a second
            backward pass raises, and so does another loss on the same logits. Has an effect with ``triton``, outside
            ``torch.compile`` (which plans memory itself), on logits that are no view and that a gradient is asked of.
        implementation: ``auto`` (triton on CUDA, else torch), ``torch`` or ``triton``.

    Returns:
        The loss, a 0-dim tensor with gradient (f32, f64 for f64 logits), and detached 0-dim metrics: ``loss, entropy,
        clip_ratio/low_mean, clip_ratio/high_mean, clip_ratio/region_mean`` and, with ``ref_logps``, ``kl``; all but the
        first are means over completion tokens.

    Raises:
        ValueError: a setting out of range, shapes that do not fit, both or neither of ``advantages`` and ``ranks``, or
            ``inplace`` on a leaf that requires a gradient.
        RuntimeError: ``triton`` where it cannot run.
    """
    settings = LossSettings(
        temperature=temperature,
        clip_low=clip_low,
        clip_high=clip_high,
        delta=delta,
        kl_coef=kl_coef,
        kl_estimator=kl_estimator,
        entropy_coef=entropy_coef,
        loss_type=loss_type,
        ratio=ratio,
    )
    check_tokens(logits.shape, token_ids, mask, old_logps=old_logps, ref_logps=ref_logps)
    check_reference(settings, ref_logps)
    mask = mask.bool()
    check_advantages(advantages, ranks, group_size, mapping, token_ids.shape[0])
    chosen = choose(implementation, logits)
    if inplace and logits.is_leaf and logits.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "inplace is True, but the logits are a leaf that requires a gradient and would lose its values"
        )

    if chosen == "torch" or token_ids.numel() == 0:
        if ranks is not None:
            advantages = advantages_from_ranks(ranks, group_size, mapping, old_logps, mask, "torch")
        assert advantages is not None
        return reference.grpo_rank_loss(
            logits,
            token_ids,
            advantages=advantages,
            mask=mask,
            settings=settings,
            old_logps=old_logps,
            ref_logps=ref_logps,
            normalizer=normalizer,
        )

    if mapping == "ndcg_penalty" and ranks is not None:
        advantages, ranks = advantages_from_ranks(ranks, group_size, mapping, old_logps, mask, "triton"), None
    inputs: tuple[Any, ...] = (
        token_ids.contiguous(),
        mask.contiguous(),
        None if advantages is None else advantages.detach().float().contiguous(),
        None if ranks is None else ranks.flatten().contiguous(),
        None if old_logps is None else old_logps.detach().contiguous(),
        None if ref_logps is None else ref_logps.detach().contiguous(),
        as_normalizer(normalizer, logits.device),
        group_size or 1,
        mapping,
        *pack(settings),
    )
    wants_gradient = torch.is_grad_enabled() and logits.requires_grad
    if (
        inplace
        and wants_gradient
        and not torch.compiler.is_compiling()
        and not logits._is_view()
        and logits.is_contiguous()
    ):
        loss, metrics, _ = _InPlace.apply(logits, *inputs)
    else:
        loss, metrics, *_ = torch.ops.orlaif_kernels.grpo_rank_loss(_rows_of(logits), *inputs)
    return loss, named_metrics(loss, metrics, ref_logps)


# ------------------------------------------------------------------------------------------ shared with the fused head


def check_reference(settings: LossSettings, ref_logps: Tensor | None) -> None:
    """Raise a ValueError where the KL has no reference."""
    if settings.kl_coef != 0 and ref_logps is None:
        raise ValueError(f"kl_coef is {settings.kl_coef} but ref_logps is missing; pass them or set kl_coef to 0")


def check_advantages(
    advantages: Tensor | None, ranks: Tensor | None, group_size: int | None, mapping: str, num_completions: int
) -> None:
    """Raise a ValueError unless exactly one of advantages [N] and ranks of whole groups is there."""
    if (advantages is None) == (ranks is None):
        raise ValueError("pass exactly one of advantages and ranks")
    one_of("mapping", mapping, Mapping)
    if advantages is not None:
        if advantages.shape != (num_completions,):
            raise ValueError(f"advantages have shape {tuple(advantages.shape)}; they must be [{num_completions}]")
        return
    assert ranks is not None
    if group_size is None:
        raise ValueError("ranks need group_size")
    check_groups(ranks, group_size)
    if ranks.numel() != num_completions:
        raise ValueError(f"ranks have {ranks.numel()} entries for {num_completions} completions")
    if mapping == "zscore":
        raise ValueError("mapping 'zscore' needs scores: pass advantages=rank_advantage(..., scores=scores)[0]")


def advantages_from_ranks(
    ranks: Tensor, group_size: int | None, mapping: Mapping, old_logps: Tensor | None, mask: Tensor, implementation: str
) -> Tensor:
    """f32[N]; ``ndcg_penalty`` takes the sequence log-probs from the old ones."""
    assert group_size is not None
    sequence_logps = None
    if mapping == "ndcg_penalty":
        if old_logps is None:
            raise ValueError("mapping 'ndcg_penalty' needs old_logps, the log-probs when the answers were sampled")
        sequence_logps = old_logps.masked_fill(~mask, 0.0).sum(-1).view(ranks.shape)
    return rank_advantage(
        ranks, group_size=group_size, mapping=mapping, sequence_logps=sequence_logps, implementation=implementation
    )[0].flatten()


def as_normalizer(normalizer: Tensor | float | None, device: torch.device) -> Tensor | None:
    """A 0-dim f32 tensor on the device, without waiting for the device."""
    if normalizer is None:
        return None
    if isinstance(normalizer, Tensor):
        return normalizer.detach().to(device, torch.float32)
    return torch.full((), float(normalizer), dtype=torch.float32, device=device)


def pack(settings: LossSettings) -> tuple[list[float], str, str, str]:
    """Settings as an operator's schema can hold them."""
    numbers = [
        settings.temperature,
        settings.clip_low,
        settings.clip_high,
        settings.delta or 0.0,
        settings.kl_coef,
        settings.entropy_coef,
        settings.softcap or 0.0,
    ]
    return numbers, settings.kl_estimator, settings.loss_type, settings.ratio


def unpack(numbers: list[float], kl_estimator: str, loss_type: str, ratio: str) -> LossSettings:
    """The inverse of :func:`pack`."""
    temperature, clip_low, clip_high, delta, kl_coef, entropy_coef, softcap = numbers
    return LossSettings(
        temperature=temperature,
        clip_low=clip_low,
        clip_high=clip_high,
        delta=delta or None,
        kl_coef=kl_coef,
        kl_estimator=kl_estimator,  # type: ignore[arg-type]
        entropy_coef=entropy_coef,
        loss_type=loss_type,  # type: ignore[arg-type]
        ratio=ratio,  # type: ignore[arg-type]
        softcap=softcap or None,
    )


def named_metrics(loss: Tensor, metrics: Tensor, ref_logps: Tensor | None) -> dict[str, Tensor]:
    """The metrics by name, detached."""
    named = dict(zip(METRICS, metrics.detach().unbind(), strict=True))
    if ref_logps is None:
        del named["kl"]
    return {"loss": loss.detach(), **named}


def prologue(
    token_ids: Tensor,
    mask: Tensor,
    advantages: Tensor | None,
    ranks: Tensor | None,
    old_logps: Tensor | None,
    ref_logps: Tensor | None,
    group_size: int,
    mapping: str,
    settings: LossSettings,
    empty_state: bool = True,
) -> Tokens:
    """Advantages from ranks and lengths from the mask, in one Triton launch; and room for the rows' state."""
    n, t = token_ids.shape
    lengths = torch.empty(n, dtype=torch.int32, device=mask.device)
    weights = None
    if ranks is not None:
        advantages = torch.empty(n, dtype=torch.float32, device=mask.device)
        weights = torch.empty_like(advantages)
    launch_groups(
        group_size=group_size if ranks is not None else min(n, 8),
        ranks=ranks,
        mask=mask,
        mapping=mapping,
        advantages=advantages,
        weights=weights,
        lengths=lengths,
    )
    make = torch.empty if empty_state else torch.zeros
    return Tokens(
        token_ids=token_ids,
        mask=mask,
        lengths=lengths,
        state=make(STATE_SLOTS, n * t, dtype=torch.float32, device=mask.device),
        settings=settings,
        advantages=advantages,
        old_logps=old_logps,
        ref_logps=ref_logps,
    )


# ------------------------------------------------------------------------------------------------------- out of place


def _rows_of(logits: Tensor) -> Tensor:
    """Logits whose rows the kernel can address; a copy only where the strides leave no other way.

    ``logits[:, :-1]`` and its like are read where they are.
    """
    n, t, v = logits.shape
    stride_n, stride_t, stride_v = logits.stride()
    direct = stride_v == 1 and (t == 1 or stride_t == v) and (n == 1 or (stride_n % v == 0 and stride_n >= t * v))
    return logits if direct else logits.contiguous()


def _rows_per_completion(logits: Tensor) -> int:
    n, t, v = logits.shape
    return logits.stride(0) // v if n > 1 else t


@torch.library.custom_op("orlaif_kernels::grpo_rank_loss", mutates_args=())
def _forward(
    logits: Tensor,
    token_ids: Tensor,
    mask: Tensor,
    advantages: Tensor | None,
    ranks: Tensor | None,
    old_logps: Tensor | None,
    ref_logps: Tensor | None,
    normalizer: Tensor | None,
    group_size: int,
    mapping: str,
    numbers: list[float],
    kl_estimator: str,
    loss_type: str,
    ratio: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    settings = unpack(numbers, kl_estimator, loss_type, ratio)
    logits = _rows_of(logits)
    tokens = prologue(token_ids, mask, advantages, ranks, old_logps, ref_logps, group_size, mapping, settings)
    by_token = settings.ratio == "token"
    triton_pass(
        logits,
        tokens,
        num_rows=token_ids.numel(),
        rows_per_completion=_rows_per_completion(logits),
        statistics=True,
        term=by_token,
    )
    if not by_token:
        sequence_terms(tokens, "triton")
    loss, metrics = finish(tokens, normalizer, "triton")
    return loss, metrics, tokens.state, tokens.lengths


@_forward.register_fake
def _(logits: Tensor, token_ids: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, t = token_ids.shape
    return (
        logits.new_empty((), dtype=torch.float32),
        logits.new_empty(len(METRICS), dtype=torch.float32),
        logits.new_empty((STATE_SLOTS, n * t), dtype=torch.float32),
        logits.new_empty(n, dtype=torch.int32),
    )


@torch.library.custom_op("orlaif_kernels::grpo_rank_loss_backward", mutates_args=())
def _backward(
    grad: Tensor,
    logits: Tensor,
    token_ids: Tensor,
    mask: Tensor,
    state: Tensor,
    lengths: Tensor,
    normalizer: Tensor | None,
    numbers: list[float],
    kl_estimator: str,
    loss_type: str,
    ratio: str,
) -> Tensor:
    settings = unpack(numbers, kl_estimator, loss_type, ratio)
    logits = _rows_of(logits)
    tokens = Tokens(token_ids=token_ids, mask=mask, lengths=lengths, state=state, settings=settings)
    # The layout of the logits, so that one address serves both; a view such as logits[:, :-1] has gaps.
    dlogits = torch.empty_strided(logits.shape, logits.stride(), dtype=logits.dtype, device=logits.device)
    triton_pass(
        logits,
        tokens,
        num_rows=token_ids.numel(),
        rows_per_completion=_rows_per_completion(logits),
        out=dlogits,
        normalize=True,
        normalizer=normalizer,
        grad_output=grad.contiguous(),
    )
    return dlogits


@_backward.register_fake
def _(grad: Tensor, logits: Tensor, *_: Any) -> Tensor:
    logits = _rows_of(logits)
    return torch.empty_strided(logits.shape, logits.stride(), dtype=logits.dtype, device=logits.device)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, token_ids, mask, _, _, _, _, normalizer, _, _, *settings = inputs
    ctx.save_for_backward(logits, token_ids, mask, output[2], output[3], normalizer)
    ctx.settings = settings
    ctx.set_materialize_grads(False)


def _apply_backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    dlogits = None
    if grad is not None and ctx.needs_input_grad[0]:
        dlogits = torch.ops.orlaif_kernels.grpo_rank_loss_backward(grad, *ctx.saved_tensors, *ctx.settings)
    return (dlogits, *[None] * 13)


_forward.register_autograd(_apply_backward, setup_context=_setup_context)


# ------------------------------------------------------------------------------------------------------------ in place


class _InPlace(torch.autograd.Function):
    """Loss and gradient at once; the logits come back as an output that has become the gradient."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        token_ids, mask, advantages, ranks, old_logps, ref_logps, normalizer, group_size, mapping, *packed = inputs
        settings = unpack(*packed)
        tokens = prologue(token_ids, mask, advantages, ranks, old_logps, ref_logps, group_size, mapping, settings)
        # fp16 has no room for a gradient divided by thousands of tokens, nor precision for rounding it twice: it is
        # made in the backward pass, when the gradient scaler's factor is known.
        late = logits.dtype == torch.float16
        once: dict[str, Any] = {"num_rows": token_ids.numel(), "statistics": True}
        gradient: dict[str, Any] = {
            "num_rows": token_ids.numel(),
            "out": logits,
            "normalize": True,
            "normalizer": normalizer,
        }
        if settings.ratio == "token" and not late:
            triton_pass(logits, tokens, term=True, **{**once, **gradient})
        else:
            triton_pass(logits, tokens, term=settings.ratio == "token", **once)
            if settings.ratio == "sequence":
                sequence_terms(tokens, "triton")
            if not late:
                triton_pass(logits, tokens, **gradient)
        loss, metrics = finish(tokens, normalizer, "triton")
        ctx.mark_dirty(logits)
        ctx.mark_non_differentiable(metrics)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits)
        ctx.tokens, ctx.late, ctx.gradient, ctx.spent = (tokens if late else None), late, gradient, False
        ctx.gradient.pop("out")
        return loss, metrics, logits

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: Any, grad_logits: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad_logits is not None:
            raise RuntimeError(
                "grpo_rank_loss(inplace=True) replaced these logits by its gradient, and another loss has used them "
                "since; compute that loss first, or pass inplace=False"
            )
        if ctx.spent:
            raise RuntimeError(
                "a second backward pass through grpo_rank_loss(inplace=True): the gradient has been given away"
            )
        if grad is None:
            return (None,) * (1 + 13)
        ctx.spent = True
        (logits,) = ctx.saved_tensors
        dlogits = logits.detach()
        if ctx.late:
            triton_pass(dlogits, ctx.tokens, out=dlogits, grad_output=grad.contiguous(), **ctx.gradient)
        else:
            scale_in_place(dlogits, grad)
        return (dlogits, *[None] * 13)
