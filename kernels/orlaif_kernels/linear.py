"""The same loss from hidden states and the LM head, without the ``[N * T, V]`` logits ever existing at once.

Tokens that count are gathered and taken a chunk at a time. A chunk's logits are a GEMM into a buffer that every chunk
reuses; the row pass turns them into the gradient where they stand; two more GEMMs carry that to the hidden states and
the head while it is hot. So the forward pass makes the gradients too, and the backward pass only scales them.

**Accumulation.** The head's gradient is summed over chunks in float32, whatever its dtype, and divided by the
normaliser once, at the end: dividing before would push fp16 into its subnormals, and rounding after each chunk would
bias bf16. For a 16-bit head of V x H the float32 sum is kept in two halves A and B of 2 V H bytes each. At the end A
is narrowed where it stands, B into A's freed second half, and A's memory, now exactly V x H 16-bit numbers, is the
gradient: no moment needs both the float32 sum and a separate result.

**Ratios.** Log-probs of the reference, or of the policy that sampled, come from :func:`linear_logps` by the same GEMMs
in the same chunks and the same row pass, so that with the same mask the ratio of an unchanged policy is exactly 1.

Shapes: N completions, T tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from orlaif_kernels.arguments import (
    KLEstimator,
    LossSettings,
    LossType,
    Mapping,
    RatioLevel,
    check_tokens,
    choose,
)
from orlaif_kernels.loss import (
    advantages_from_ranks,
    as_normalizer,
    check_advantages,
    check_reference,
    named_metrics,
    pack,
    prologue,
    unpack,
)
from orlaif_kernels.reference import loss_weights
from orlaif_kernels.rows import LOGP, METRICS, STATE_SLOTS, Tokens, finish, sequence_terms, torch_pass, triton_pass

#: Tokens per chunk on a GPU; on a CPU a chunk's logits are held to about this many numbers.
CHUNK_TOKENS = 2048
CHUNK_NUMBERS_CPU = 2**22


def linear_grpo_rank_loss(
    hidden: Tensor,
    weight: Tensor,
    token_ids: Tensor,
    *,
    bias: Tensor | None = None,
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
    softcap: float | None = None,
    chunk_size: int | None = None,
    implementation: str = "auto",
) -> tuple[Tensor, dict[str, Tensor]]:
    """:func:`orlaif_kernels.grpo_rank_loss` of ``hidden @ weight.T + bias``.

    Args:
        hidden: [N, T, H], the model's last hidden states at the positions that predict the completion tokens.
        weight: [V, H], the LM head, same dtype as ``hidden`` (under autocast both are cast). A head that requires no
            gradient costs neither the GEMM nor the memory of one.
        token_ids: i64[N, T] (or i32).
        bias: [V] or None.
        softcap: final-logit soft-capping c, ``c tanh(logit / c)``, of the families that have it.
        chunk_size: tokens per chunk; by default 2048 on a GPU, less on a CPU. With ``ratio="sequence"`` the logits are
            computed twice, for the ratio needs a completion's every token first.
        mask: see :func:`orlaif_kernels.grpo_rank_loss` for this and for all others. How many tokens count is read
            by the host (one synchronisation), but not while a CUDA graph is captured: masked tokens are then
            computed with, too.

    Returns:
        The loss, a 0-dim tensor with gradient, and metrics, as :func:`orlaif_kernels.grpo_rank_loss` does. The
        gradients are made in the forward pass and given away by the backward pass: a second one raises.

    Raises:
        ValueError: a setting out of range, shapes or dtypes that do not fit, both or neither of ``advantages`` and
            ``ranks``.
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
        softcap=softcap,
    )
    check_tokens(hidden.shape, token_ids, mask, "hidden", old_logps=old_logps, ref_logps=ref_logps)
    check_reference(settings, ref_logps)
    check_advantages(advantages, ranks, group_size, mapping, token_ids.shape[0])
    mask = mask.bool()
    hidden, weight, bias = _same_dtype(hidden, weight, bias)
    chosen = choose(implementation, hidden)
    if ranks is not None and (mapping == "ndcg_penalty" or chosen == "torch"):
        advantages, ranks = advantages_from_ranks(ranks, group_size, mapping, old_logps, mask, chosen), None
    learning = torch.is_grad_enabled()
    loss, metrics, *_ = torch.ops.orlaif_kernels.linear_grpo_rank_loss(
        hidden,
        weight,
        bias,
        token_ids.contiguous(),
        mask.contiguous(),
        None if advantages is None else advantages.detach().contiguous(),
        None if ranks is None else ranks.flatten().contiguous(),
        None if old_logps is None else old_logps.detach().contiguous(),
        None if ref_logps is None else ref_logps.detach().contiguous(),
        as_normalizer(normalizer, hidden.device),
        group_size or 1,
        mapping,
        *pack(settings),
        _chunk(chunk_size, hidden, weight),
        chosen,
        [learning and x is not None and x.requires_grad for x in (hidden, weight, bias)],
    )
    return loss, named_metrics(loss, metrics, ref_logps)


@torch.no_grad()
def linear_logps(
    hidden: Tensor,
    weight: Tensor,
    token_ids: Tensor,
    *,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    chunk_size: int | None = None,
    implementation: str = "auto",
) -> Tensor:
    """Log-probs of given tokens, without gradient and without the ``[N * T, V]`` logits: for reference and old policy.

    Args:
        hidden: [N, T, H].
        weight: [V, H], same dtype as ``hidden`` (under autocast both are cast).
        token_ids: i64[N, T] (or i32); masked places may hold anything.
        bias: [V] or None.
        mask: bool[N, T]; None means all.
        temperature: divides the logits.
        softcap: final-logit soft-capping, as in :func:`linear_grpo_rank_loss`.
        chunk_size: tokens per chunk; give both functions the same.
        implementation: ``auto``, ``torch`` or ``triton``.

    Returns:
        f32[N, T] (f64 for f64 hidden states), 0 where masked.

    Raises:
        ValueError: a setting out of range, shapes or dtypes that do not fit.
        RuntimeError: ``triton`` where it cannot run.
    """
    settings = LossSettings(temperature=temperature, softcap=softcap)
    mask = torch.ones_like(token_ids, dtype=torch.bool) if mask is None else mask.bool()
    check_tokens(hidden.shape, token_ids, mask, "hidden")
    hidden, weight, bias = _same_dtype(hidden, weight, bias)
    chosen = choose(implementation, hidden)
    return torch.ops.orlaif_kernels.linear_logps(
        hidden,
        weight,
        bias,
        token_ids.contiguous(),
        mask.contiguous(),
        settings.temperature,
        settings.softcap or 0.0,
        _chunk(chunk_size, hidden, weight),
        chosen,
    )


def _same_dtype(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; it must be [V, {hidden.shape[-1]}]")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias has shape {tuple(bias.shape)}; it must be [{weight.shape[0]}]")
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != hidden.dtype:
            raise ValueError(f"{name} is {tensor.dtype} but hidden is {hidden.dtype}; cast one, or use autocast")
    return hidden, weight, bias


def _chunk(chunk_size: int | None, hidden: Tensor, weight: Tensor) -> int:
    if chunk_size is not None:
        if chunk_size < 1:
            raise ValueError(f"chunk_size is {chunk_size}; it must be 1 or more")
        return chunk_size
    return CHUNK_TOKENS if hidden.is_cuda else max(64, min(CHUNK_TOKENS, CHUNK_NUMBERS_CPU // weight.shape[0]))


# -------------------------------------------------------------------------------------------------------------- passes


class _Chunks:
    """The tokens that count, a chunk of logits at a time in one buffer."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tokens, size: int, implementation: str
    ) -> None:
        self.hidden, self.weight, self.bias = hidden.reshape(-1, hidden.shape[-1]), weight, bias
        self.tokens, self.implementation = tokens, implementation
        mask = tokens.mask.flatten()
        capturing = hidden.is_cuda and torch.cuda.is_current_stream_capturing()
        self.at = torch.arange(mask.numel(), device=mask.device) if capturing else mask.nonzero().squeeze(1)
        self.size = max(1, min(size, self.at.numel()))
        self.buffer = hidden.new_empty(self.size, weight.shape[0])

    def run(self, gradient: Any = None, **what: Any) -> None:
        """A pass over all chunks; ``gradient(at, dlogits [M, V], hidden [M, H])`` takes what each chunk's logits
        become."""
        for start in range(0, self.at.numel(), self.size):
            at = self.at[start : start + self.size]
            hidden = self.hidden[at]
            logits = self.buffer[: at.numel()]
            if self.bias is None:
                torch.mm(hidden, self.weight.t(), out=logits)
            else:
                torch.addmm(self.bias, hidden, self.weight.t(), out=logits)
            if self.implementation == "torch":
                torch_pass(logits, self.tokens, at, gradient=gradient is not None, **what)
            else:
                out = logits if gradient is not None else None
                triton_pass(logits, self.tokens, num_rows=at.numel(), index=at, out=out, **what)
            if gradient is not None:
                gradient(at, logits, hidden)


class _Gradients:
    """Where the gradients of hidden states, head and bias gather; what is not wanted stays empty."""

    def __init__(self, hidden: Tensor, weight: Tensor, wanted: list[bool], wide: torch.dtype) -> None:
        vocabulary, width = weight.shape
        self.weight = weight
        self.hidden = (
            torch.zeros_like(hidden, memory_format=torch.contiguous_format) if wanted[0] else hidden.new_empty(0)
        )
        rows = (0, 0)
        if wanted[1]:
            half = (vocabulary + 1) // 2
            rows = (half, vocabulary - half) if weight.dtype.itemsize == 2 else (vocabulary, 0)
        self.heads = [weight.new_zeros((n, width), dtype=wide) for n in rows]
        self.bias = weight.new_zeros(vocabulary if wanted[2] else 0, dtype=wide)

    @property
    def wanted(self) -> bool:
        return any(tensor.numel() for tensor in (self.hidden, self.bias, *self.heads))

    def __call__(self, at: Tensor, dlogits: Tensor, hidden: Tensor) -> None:
        if self.hidden.numel():
            self.hidden.view(-1, hidden.shape[-1]).index_copy_(0, at, dlogits @ self.weight)
        start = 0
        for head in self.heads:
            if head.numel():
                _accumulate(head, dlogits[:, start : start + head.shape[0]], hidden)
                start += head.shape[0]
        if self.bias.numel():
            self.bias += dlogits.sum(0, dtype=self.bias.dtype)


def _accumulate(total: Tensor, a: Tensor, b: Tensor) -> None:
    """``total += a.T @ b`` with total [V, H] in float32 or wider, a [M, V], b [M, H]."""
    if a.dtype == total.dtype:
        total.addmm_(a.t(), b)
    elif a.is_cuda:
        torch.addmm(total, a.t(), b, out_dtype=total.dtype, out=total)
    else:  # no such GEMM on a CPU: widen a slice of the vocabulary at a time
        b = b.to(total.dtype)
        for start in range(0, total.shape[0], 8192):
            piece = slice(start, start + 8192)
            total[piece].addmm_(a[:, piece].t().to(total.dtype), b)


def _narrow(heads: tuple[Tensor, Tensor], scale: Tensor, dtype: torch.dtype, vocabulary: int) -> Tensor:
    """The float32 halves A, B times ``scale`` as one 16-bit [V, H], in A's own memory."""
    first = heads[0]
    width = first.shape[1]
    out = first.view(dtype).view(-1)
    position = 0
    for half in heads:
        numbers = half.view(-1)
        step = 2**24
        for start in range(0, numbers.numel(), step):
            # Numbers up to start + step of A have been read by the time their bytes, the first half of them, are
            # written.
            piece = (numbers[start : start + step] * scale).to(dtype)
            out[position : position + piece.numel()] = piece
            position += piece.numel()
    return out[: vocabulary * width].view(vocabulary, width)


def _lengths_and_room(
    token_ids: Tensor,
    mask: Tensor,
    settings: LossSettings,
    wide: torch.dtype,
    advantages: Tensor | None = None,
    **logps: Any,
) -> Tokens:
    return Tokens(
        token_ids=token_ids,
        mask=mask,
        lengths=mask.sum(-1, dtype=torch.int32),
        state=torch.zeros(STATE_SLOTS, token_ids.numel(), dtype=wide, device=mask.device),
        settings=settings,
        advantages=advantages,
        **logps,
    )


def _wide(hidden: Tensor) -> torch.dtype:
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


# ----------------------------------------------------------------------------------------------------------- operators


@torch.library.custom_op("orlaif_kernels::linear_logps", mutates_args=())
def _linear_logps(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    token_ids: Tensor,
    mask: Tensor,
    temperature: float,
    softcap: float,
    chunk_size: int,
    implementation: str,
) -> Tensor:
    settings = LossSettings(temperature=temperature, softcap=softcap or None)
    tokens = _lengths_and_room(token_ids, mask, settings, _wide(hidden))
    _Chunks(hidden, weight, bias, tokens, chunk_size, implementation).run(statistics=True)
    return tokens.state[LOGP].clone().view(token_ids.shape)


@_linear_logps.register_fake
def _(hidden: Tensor, weight: Tensor, bias: Tensor | None, token_ids: Tensor, *_: Any) -> Tensor:
    return hidden.new_empty(token_ids.shape, dtype=_wide(hidden))


@torch.library.custom_op("orlaif_kernels::linear_grpo_rank_loss", mutates_args=())
def _forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
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
    chunk_size: int,
    implementation: str,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    settings = unpack(numbers, kl_estimator, loss_type, ratio)
    wide = _wide(hidden)
    if implementation == "triton" and token_ids.numel():
        tokens = prologue(
            token_ids, mask, advantages, ranks, old_logps, ref_logps, group_size, mapping, settings, empty_state=False
        )
    else:
        tokens = _lengths_and_room(
            token_ids, mask, settings, wide, advantages=advantages, old_logps=old_logps, ref_logps=ref_logps
        )
    chunks = _Chunks(hidden, weight, bias, tokens, chunk_size, implementation)
    gradients = _Gradients(hidden, weight, wanted, wide)
    take = gradients if gradients.wanted else None
    if ratio == "token":
        chunks.run(take, statistics=True, term=True)
    else:
        chunks.run(statistics=True)
        sequence_terms(tokens, implementation)
        if take is not None:
            chunks.run(take)
    own = loss_weights(mask, settings.loss_type, token_ids.shape[1], wide)[1].clamp(min=1)
    divisor = own if normalizer is None else normalizer.to(wide, copy=True)
    loss, metrics = finish(tokens, divisor, implementation)
    first, second = gradients.heads
    return loss, metrics, divisor, gradients.hidden, first, second, gradients.bias


@_forward.register_fake
def _(hidden: Tensor, weight: Tensor, *rest: Any) -> Any:
    wide = _wide(hidden)
    gradients = _Gradients(hidden, weight, rest[-1], wide)
    scalar = hidden.new_empty((), dtype=wide)
    metrics = hidden.new_empty(len(METRICS), dtype=wide)
    return scalar, metrics, torch.empty_like(scalar), gradients.hidden, *gradients.heads, gradients.bias


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[2:])
    ctx.weight_dtype, ctx.vocabulary = inputs[1].dtype, inputs[1].shape[0]
    ctx.wanted = inputs[-1]


def _apply_backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 19
    divisor, d_hidden, first, second, d_bias = ctx.saved_tensors
    scale = grad / divisor
    # A saved tensor that is written to makes autograd refuse a second backward pass. Float64 is for gradcheck, which
    # makes many; and a traced graph plans its own memory.
    give_away = type(first) is Tensor and d_hidden.dtype != torch.float64 and scale.dtype != torch.float64
    head = None
    if ctx.wanted[1]:
        if give_away and ctx.weight_dtype.itemsize == 2:
            head = _narrow((first, second), scale, ctx.weight_dtype, ctx.vocabulary)
        elif give_away:
            head = first.mul_(scale)
        else:
            head = (torch.cat([first, second]) * scale).to(ctx.weight_dtype)
    hidden = None
    if ctx.wanted[0]:
        hidden = d_hidden.mul_(scale) if give_away else d_hidden * scale
    bias = (d_bias * scale).to(ctx.weight_dtype) if ctx.wanted[2] else None
    return (hidden, head, bias, *[None] * 16)


_forward.register_autograd(_apply_backward, setup_context=_setup_context)
