"""Attention of prompts that are divided among processes (``orlaif.policy.prefix.divided``), without an L x L mask.

Queries stay where they are; keys and values of a prompt are gathered for as long as a layer attends, and once more in
its backward pass, so that no process keeps them. A prompt's run attends to all runs before it and to itself (causal),
completions to the whole prompt and to themselves (causal); the parts are merged by their log-sum-exp, as in
``orlaif.policy.prefix.split``. Gradients of keys and values are summed over processes, each of which takes its run's.
Completions' keys and values go nowhere.

Shapes: r rows of l tokens, H query heads, K key heads (H = K * n), D head size; P prompts of S tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from orlaif.policy.prefix.divided import Division
from orlaif.policy.prefix.split import Block, apart, blocks_of, flash, flash_backward, fold, together


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Of the groups of one block: tokens of the prompt, and where the runs of all processes end.

    Args:
        block: what of the rows here.
        prompts: which of the P prompts.
        bounds: of each process's run.
        start: where that of this process begins.
    """

    block: Block
    prompts: slice
    bounds: tuple[tuple[int, int], ...]
    start: int


def _runs(division: Division) -> list[Runs]:
    group, lengths, spans = division.group, division.prompts, division.whole.spans
    alike = len({(span.prompt, span.completions) for span in spans}) == 1
    blocks = blocks_of(division.rows, alike)
    numbers = [slice(0, len(spans))] if alike else [slice(i, i + 1) for i in range(len(spans))]
    return [
        Runs(
            block=block,
            prompts=at,
            bounds=tuple(group.share(lengths[at.start], i) for i in range(group.size)),
            start=group.share(lengths[at.start])[0],
        )
        for block, at in zip(blocks, numbers, strict=True)
    ]


def _padded(x: Tensor, division: Division) -> Tensor:
    """[B, K, N, D] to [B, K, M, D], M the longest run of any process."""
    longest = -(-max(division.prompts) // division.group.size)
    return pad(x, (0, 0, 0, longest - x.shape[2]))


def _gathered(x: Tensor, division: Division, runs: list[Runs]) -> list[Tensor]:
    """Of [r, K, l, D] here, whole prompts [B, K, S, D] of each block."""
    mine = [x[one.block.rows][:, :, one.block.prompt] for one in runs]
    everyone = division.group.gather(torch.cat([_padded(run, division) for run in mine]))
    whole = []
    for one in runs:
        parts = zip(everyone, one.bounds, strict=True)
        whole.append(torch.cat([part[one.prompts, :, : stop - start] for part, (start, stop) in parts], 2))
    return whole


def _scattered(grads: list[Tensor], division: Division, runs: list[Runs]) -> list[Tensor]:
    """Of gradients [B, K, S, D] of whole prompts on each process, the sum for this process's runs."""

    def of(index: int) -> Tensor:
        both = zip(grads, runs, strict=True)
        return torch.cat([_padded(grad[:, :, slice(*one.bounds[index])], division) for grad, one in both])

    mine = division.group.scatter_sum(torch.stack([of(index) for index in range(division.group.size)]))
    return [mine[one.prompts, :, : one.block.prompt.stop - one.block.prompt.start] for one in runs]


def _merged(out: Tensor, lse: Tensor, more: Tensor, more_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over two sets of keys, from that over each; their log-sum-exps [..., N]."""
    both = torch.logaddexp(lse, more_lse)
    return out + (more - out) * torch.exp(more_lse - both).unsqueeze(-1).to(out.dtype), both


class _Divided(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, division: Division, scale: float) -> Tensor:
        runs = division.rows.memo("runs", lambda _: _runs(division))
        result = torch.zeros_like(query.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)
        lses: list[tuple[Tensor, Tensor | None]] = []
        rests: list[tuple[Any, ...]] = []
        for one, (whole_k, whole_v) in zip(runs, _prompts(key, value, division, runs), strict=True):
            block, at, behind = one.block, one.block.prompt, one.block.completions
            q, k, v, out = (x[block.rows] for x in (query, key, value, result))
            out_p, lse_p, rest_p = flash(q[:, :, at], k[:, :, at], v[:, :, at], True, scale)
            rest_b = None
            if one.start:
                out_b, lse_b, rest_b = _open(q[:, :, at], whole_k[:, :, : one.start], whole_v[:, :, : one.start], scale)
                out_p, lse_p = _merged(out_p, lse_p, out_b, lse_b)
            out[:, :, at] = out_p
            lse_c = rest_w = rest_c = None
            if behind.start < behind.stop:
                out_w, lse_w, rest_w = _open(q[:, :, behind], whole_k, whole_v, scale)
                row_q, row_k, row_v = (apart(block, x[:, :, behind]) for x in (q, k, v))
                out_c, lse_c, rest_c = flash(row_q, row_k, row_v, True, scale)
                out_c, lse_c = _merged(together(block, out_c), together(block, lse_c), out_w, lse_w)
                out[:, :, behind] = out_c
            lses.append((lse_p, lse_c))
            rests.append((rest_p, rest_b, rest_w, rest_c))
        ctx.save_for_backward(query, key, value, result)
        ctx.division, ctx.scale, ctx.lses, ctx.rests = division, scale, lses, rests
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, result = ctx.saved_tensors
        division, scale = ctx.division, ctx.scale
        runs: list[Runs] = division.rows.memo("runs", lambda _: _runs(division))
        grads = [torch.zeros_like(x) for x in (query, key, value)]
        of_prompts = []
        for one, (whole_k, whole_v), (lse_p, lse_c), (rest_p, rest_b, rest_w, rest_c) in zip(
            runs, _prompts(key, value, division, runs), ctx.lses, ctx.rests, strict=True
        ):
            block, at, behind = one.block, one.block.prompt, one.block.completions
            q, k, v, out, g_out = (x[block.rows] for x in (query, key, value, result, grad))
            g_q, g_k, g_v = (x[block.rows] for x in grads)
            g_whole_k, g_whole_v = torch.zeros_like(whole_k), torch.zeros_like(whole_v)
            g_q[:, :, at], g_k[:, :, at], g_v[:, :, at] = flash_backward(
                g_out[:, :, at], q[:, :, at], k[:, :, at], v[:, :, at], out[:, :, at], lse_p, True, scale, rest_p
            )
            if one.start:
                before = slice(0, one.start)
                g_run, q_run, out_run = (x[:, :, at] for x in (g_out, q, out))
                k_b, v_b = whole_k[:, :, before], whole_v[:, :, before]
                more, g_k_b, g_v_b = _open_backward(g_run, q_run, out_run, k_b, v_b, lse_p, scale, rest_b)
                g_q[:, :, at] += more
                g_whole_k[:, :, before], g_whole_v[:, :, before] = g_k_b, g_v_b
            if lse_c is not None:
                q, out, g_out = (x[:, :, behind] for x in (q, out, g_out))
                g_q1, g_k1, g_v1 = _open_backward(g_out, q, out, whole_k, whole_v, lse_c, scale, rest_w)
                g_whole_k += g_k1
                g_whole_v += g_v1
                row_q, row_k, row_v, row_out, row_lse = (
                    apart(block, x) for x in (q, k[:, :, behind], v[:, :, behind], out, lse_c)
                )
                row_g = apart(block, g_out, zero=True)
                g_q2, g_k2, g_v2 = flash_backward(row_g, row_q, row_k, row_v, row_out, row_lse, True, scale, rest_c)
                g_q[:, :, behind] = g_q1 + together(block, g_q2)
                g_k[:, :, behind], g_v[:, :, behind] = together(block, g_k2), together(block, g_v2)
            of_prompts.append(torch.cat([g_whole_k, g_whole_v], -1))
        for one, whole in zip(runs, _scattered(of_prompts, division, runs), strict=True):
            g_k, g_v = whole.split([key.shape[-1], value.shape[-1]], -1)
            grads[1][one.block.rows][:, :, one.block.prompt] += g_k
            grads[2][one.block.rows][:, :, one.block.prompt] += g_v
        return grads[0], grads[1], grads[2], None, None


def _prompts(key: Tensor, value: Tensor, division: Division, runs: list[Runs]) -> list[tuple[Tensor, Tensor]]:
    """Keys and values [B, K, S, D] of whole prompts, of each block."""
    sizes = [key.shape[-1], value.shape[-1]]
    return [whole.split(sizes, -1) for whole in _gathered(torch.cat([key, value], -1), division, runs)]


def _open(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor, Any]:
    """Every query sees every key: output [B, H, N, D], log-sum-exp [B, H, N]."""
    out, lse, rest = flash(fold(query, key.shape[1]), key, value, False, scale)
    return out.reshape(query.shape), lse.reshape(query.shape[:3]), rest


def _open_backward(
    grad: Tensor, query: Tensor, out: Tensor, key: Tensor, value: Tensor, lse: Tensor, scale: float, rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value of :func:`_open`, given output and log-sum-exp of the whole softmax."""
    g, q, o, log = (fold(x, key.shape[1]) for x in (grad, query, out, lse))
    g_q, g_k, g_v = flash_backward(g, q, key, value, o, log, False, scale, rest)
    return g_q.reshape(query.shape), g_k, g_v


def divided_attention(query: Tensor, key: Tensor, value: Tensor, division: Division, scale: float) -> Tensor:
    """Attention of this process's tokens; all processes of the group must call, in the same order.

    Args:
        query: [r, H, l, D].
        key: [r, K, l, D], K a divisor of H.
        value: [r, K, l, D].
        division: what lies where.
        scale: of the scores.

    Returns:
        [r, H, l, D], 0 at padding; differentiable once.
    """
    return _Divided.apply(query, key, value, division, scale)
