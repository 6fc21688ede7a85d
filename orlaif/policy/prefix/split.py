"""Attention of groups in rows without an L x L mask: ``split``.

The prompt attends to itself (causal); all completions of a group attend to its prompt, which is neither repeated nor
masked; each completion attends to itself (causal). The last two are merged by their log-sum-exp. Both directions run on
PyTorch's own flash attention: the backward pass of each part takes the *merged* output and log-sum-exp, which makes its
probabilities, and so its gradients, those of the whole softmax (as in ring attention; Liu et al. 2023, arXiv
2310.01889).

Shapes: B rows, H query heads, K key heads (H = K * n), N queries, M keys, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from orlaif.policy.prefix.layout import GroupRows

aten = torch.ops.aten


def flash(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor, Any]:
    """Output [B, H, N, D], log-sum-exp f32 or f64[B, H, N], and what CUDA's backward pass needs besides."""
    if query.device.type == "cpu":
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal, scale=scale)
        return out, lse, ()
    out, lse, cum_q, cum_k, max_q, max_k, seed, offset, _ = aten._scaled_dot_product_flash_attention(
        query, key, value, 0.0, causal, False, scale=scale
    )
    return out, lse, (cum_q, cum_k, max_q, max_k, seed, offset)


def flash_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    causal: bool,
    scale: float,
    rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, given output and log-sum-exp of the whole softmax."""
    if query.device.type == "cpu":
        return aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, query, key, value, out, lse, 0.0, causal, scale=scale
        )
    cum_q, cum_k, max_q, max_k, seed, offset = rest
    return aten._scaled_dot_product_flash_attention_backward(
        grad, query, key, value, out, lse, cum_q, cum_k, max_q, max_k, 0.0, causal, seed, offset, scale=scale
    )


def split_runs_on(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether PyTorch has a flash attention for ``split`` there: any CPU, CUDA in 16 bits."""
    return device.type == "cpu" or (device.type == "cuda" and dtype in (torch.float16, torch.bfloat16))


@dataclass(frozen=True, kw_only=True)
class Block:
    """Groups of the same lengths at the same place of consecutive rows; usually one group.

    Args:
        rows: of the batch.
        prompt: tokens of the prompt.
        completions: tokens of all completions.
        size: G, T of the completions padded to the longest.
        source: i64[G * T] into the completions' tokens, for completions of different lengths; padding repeats token 0.
        valid: bool[G * T].
        back: i64[tokens], the place of each token in [G * T].
    """

    rows: slice
    prompt: slice
    completions: slice
    size: tuple[int, int]
    source: Tensor | None
    valid: Tensor | None
    back: Tensor | None


def blocks_of(rows: GroupRows, alike: bool | None = None) -> list[Block]:
    """The layout as blocks: one where all groups are alike and start a row each, else one per group.

    Args:
        rows: of the batch.
        alike: whether they are; by default what ``rows`` says.
    """
    spans = rows.spans
    if alike is None:
        alike = all((s.start, s.prompt, s.completions) == (0, spans[0].prompt, spans[0].completions) for s in spans)
    blocks = []
    for span in spans[:1] if alike else spans:
        lengths = torch.tensor(span.completions)
        longest = int(lengths.max())
        source = valid = back = None
        if int(lengths.min()) != longest:
            device = rows.source.device
            valid = torch.arange(longest) < lengths[:, None]
            source = ((lengths.cumsum(0) - lengths)[:, None] + torch.arange(longest)).where(
                valid, torch.zeros(()).long()
            )
            back = valid.flatten().nonzero().squeeze(-1).to(device)
            source, valid = source.flatten().to(device), valid.flatten().to(device)
        end = span.start + span.prompt
        blocks.append(
            Block(
                rows=slice(0, len(spans)) if alike else slice(span.row, span.row + 1),
                prompt=slice(span.start, end),
                completions=slice(end, span.start + span.length),
                size=(len(lengths), longest),
                source=source,
                valid=valid,
                back=back,
            )
        )
    return blocks


def fold(x: Tensor, heads: int) -> Tensor:
    """[B, H, N, ...] to [B, K, n * N, ...]: query heads that share a key head become further queries."""
    return x.reshape(x.shape[0], heads, -1, *x.shape[3:])


def apart(block: Block, x: Tensor, zero: bool = False) -> Tensor:
    """Completions' tokens [B, H, tokens, ...] to one row per completion [B * G, H, T, ...]."""
    g, t = block.size
    if block.source is not None:
        assert block.valid is not None
        x = x.index_select(2, block.source)
        if zero:
            x = x.masked_fill(~block.valid.view(-1, *(1,) * (x.ndim - 3)), 0.0)
    b, h, _, *rest = x.shape
    return x.reshape(b, h, g, t, *rest).transpose(1, 2).reshape(b * g, h, t, *rest)


def together(block: Block, x: Tensor) -> Tensor:
    """One row per completion [B * G, H, T, ...] to completions' tokens [B, H, tokens, ...]: reverses :func:`apart`."""
    g, t = block.size
    x = x.reshape(-1, g, *x.shape[1:]).transpose(1, 2)
    x = x.reshape(x.shape[0], x.shape[1], g * t, *x.shape[4:])
    return x if block.back is None else x.index_select(2, block.back)


class _Split(torch.autograd.Function):
    """Attention in blocks, [R, H, L, D]; padding gets zeros."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, rows: GroupRows, scale: float) -> Tensor:
        heads = key.shape[1]
        # In the memory order of the projections, [R, L, H, D], which is how transformers reads it next.
        result = torch.zeros_like(query.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        lses: list[tuple[Tensor, Tensor | None]] = []
        rests: list[tuple[Any, Any, Any]] = []
        for block in rows.memo("blocks", blocks_of):
            q, k, v, out = (x[block.rows] for x in (query, key, value, result))
            at, behind = block.prompt, block.completions
            prompt_k, prompt_v = k[:, :, at], v[:, :, at]
            prompt_out, prompt_lse, rest_p = flash(q[:, :, at], prompt_k, prompt_v, True, scale)
            out[:, :, at] = prompt_out
            if behind.start == behind.stop:  # completions without a token
                lses.append((prompt_lse, None))
                rests.append((rest_p, None, None))
                continue
            q = q[:, :, behind]
            out_1, lse_1, rest_1 = flash(fold(q, heads), prompt_k, prompt_v, False, scale)
            out_1, lse_1 = out_1.reshape(q.shape), lse_1.reshape(q.shape[:3])
            row_q, row_k, row_v = (apart(block, x) for x in (q, k[:, :, behind], v[:, :, behind]))
            out_2, lse_2, rest_2 = flash(row_q, row_k, row_v, True, scale)
            out_2, lse_2 = together(block, out_2), together(block, lse_2)
            lse = torch.logaddexp(lse_1, lse_2)
            weight = torch.exp(lse_1 - lse).unsqueeze(-1)
            out[:, :, behind] = (out_2 + (out_1 - out_2) * weight).to(out.dtype)
            lses.append((prompt_lse, lse))
            rests.append((rest_p, rest_1, rest_2))
        ctx.save_for_backward(query, key, value, result)
        ctx.rows, ctx.scale, ctx.lses, ctx.rests = rows, scale, lses, rests
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, result = ctx.saved_tensors
        scale, heads = ctx.scale, key.shape[1]
        grads = [torch.zeros_like(x) for x in (query, key, value)]
        blocks = ctx.rows.memo("blocks", blocks_of)
        for block, (prompt_lse, lse), (rest_p, rest_1, rest_2) in zip(blocks, ctx.lses, ctx.rests, strict=True):
            q, k, v, out, g_out = (x[block.rows] for x in (query, key, value, result, grad))
            g_q, g_k, g_v = (x[block.rows] for x in grads)
            at, behind = block.prompt, block.completions
            prompt_k, prompt_v = k[:, :, at], v[:, :, at]
            g_q[:, :, at], g_pk, g_pv = flash_backward(
                g_out[:, :, at], q[:, :, at], prompt_k, prompt_v, out[:, :, at], prompt_lse, True, scale, rest_p
            )
            if lse is not None:
                q, out, g_out = (x[:, :, behind] for x in (q, out, g_out))
                g_q1, g_k1, g_v1 = flash_backward(
                    fold(g_out, heads),
                    fold(q, heads),
                    prompt_k,
                    prompt_v,
                    fold(out, heads),
                    fold(lse, heads),
                    False,
                    scale,
                    rest_1,
                )
                g_pk, g_pv = g_pk + g_k1, g_pv + g_v1
                row_q, row_k, row_v, row_out, row_lse = (
                    apart(block, x) for x in (q, k[:, :, behind], v[:, :, behind], out, lse)
                )
                g_q2, g_k2, g_v2 = flash_backward(
                    apart(block, g_out, zero=True), row_q, row_k, row_v, row_out, row_lse, True, scale, rest_2
                )
                g_q[:, :, behind] = g_q1.reshape(q.shape) + together(block, g_q2)
                g_k[:, :, behind], g_v[:, :, behind] = together(block, g_k2), together(block, g_v2)
            g_k[:, :, at], g_v[:, :, at] = g_pk, g_pv
        return grads[0], grads[1], grads[2], None, None


def split_attention(query: Tensor, key: Tensor, value: Tensor, rows: GroupRows, scale: float) -> Tensor:
    """Attention of groups in rows without an L x L mask.

    Args:
        query: [R, H, L, D].
        key: [R, K, L, D], K a divisor of H.
        value: [R, K, L, D].
        rows: the layout.
        scale: of the scores.

    Returns:
        [R, H, L, D], 0 at padding; differentiable once.
    """
    return _Split.apply(query, key, value, rows, scale)
