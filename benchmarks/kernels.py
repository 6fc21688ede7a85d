"""The loss and the fused head beside their alternatives: error first, then time and memory, side by side in one run.

    .venv/bin/python -m benchmarks.kernels [--output benchmarks/results/kernels_<machine>.json]

On a CUDA GPU: all shapes, fills and baselines, bf16. On a CPU: small shapes of the ``torch`` implementations (chunked
fused head against eager), f32, so that the harness itself is exercised and the memory claim measured. Every
candidate's gradients are first held against float64 on a slice of the same width; one that fails gets no speed. Times
are medians with 20th and 80th percentiles over repetitions that take turns, so that a slow minute hits all candidates
alike. Peak memory is what a call adds to its inputs, gradients included. Writes JSON, and a plot beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from orlaif_kernels import grpo_rank_loss, linear_grpo_rank_loss
from torch import Tensor

from benchmarks.harness import about, forget_peak, installed, seconds, spread, status

#: (tokens, hidden, vocabulary), and the share of tokens that count.
GPU_SHAPES = [(n, h, v) for h, v in ((3584, 152064), (2048, 151936)) for n in (2048, 8192, 32768)] + [
    (8192, 4096, 128256)
]
CPU_SHAPES = [(512, 256, 32000), (1024, 256, 32003)]
FILLS = (1.0, 0.6, 0.25)
LENGTH = 256  # tokens per completion
TOLERANCE = 2e-2
KL = 0.05


@dataclass
class Problem:
    """Inputs of one shape; logits or hidden states are leaves."""

    hidden: Tensor
    weight: Tensor
    token_ids: Tensor
    mask: Tensor
    advantages: Tensor
    ref_logps: Tensor
    logits: Tensor | None = None

    @property
    def common(self) -> dict[str, Any]:
        """Arguments that both entries of the loss share."""
        return {"advantages": self.advantages, "mask": self.mask, "ref_logps": self.ref_logps, "kl_coef": KL}


def problem(
    n: int, h: int, v: int, fill: float, device: str, dtype: torch.dtype, length: int, seed: int = 0
) -> Problem:
    """Random inputs: logits of standard deviation 2, ragged masks of the given fill."""
    torch.manual_seed(seed)
    rows = max(1, n // length)
    hidden = torch.randn(rows, length, h, device=device, dtype=dtype)
    weight = (torch.randn(v, h, device=device, dtype=dtype) * (2 / math.sqrt(h))).detach()
    ids = torch.randint(v, (rows, length), device=device)
    lengths = (
        torch.full((rows,), length) if fill == 1 else (torch.rand(rows) * 0.4 + fill - 0.2).clamp(0.01, 1) * length
    )
    mask = torch.arange(length, device=device) < lengths.to(device).unsqueeze(1)
    advantages = torch.randn(rows, device=device)
    ref = -torch.rand(rows, length, device=device) * 3 - math.log(v)
    return Problem(hidden, weight, ids, mask, advantages, ref)


# ----------------------------------------------------------------------------------------------------------- candidates


@dataclass
class Candidate:
    """``call(problem) -> loss``; ``entry`` says what it starts from, ``kl`` whether it computes that term."""

    entry: str
    call: Callable[[Problem], Tensor]
    kl: bool = True
    backward: bool = True
    notes: str = ""
    options: dict[str, Any] = field(default_factory=dict)


def eager(logits: Tensor, p: Problem) -> Tensor:
    """As one writes it: log_softmax in float32, gather, the loss."""
    logps = torch.log_softmax(logits.float(), -1).gather(-1, p.token_ids.unsqueeze(-1)).squeeze(-1)
    return token_loss(logps, p)


def token_loss(logps: Tensor, p: Problem) -> Tensor:
    """The loss from log-probs, with a ratio of 1, k3 and dapo's normaliser."""
    x = p.ref_logps - logps
    ratio = (logps - logps.detach()).exp()
    objective = ratio * p.advantages.unsqueeze(-1) - KL * (torch.expm1(x) - x)
    return -(objective * p.mask).sum() / p.mask.sum()


@cache
def candidates(everything: bool) -> dict[str, Candidate]:
    """What takes part: ``everything`` that a GPU runs, or what is worth timing on a CPU.

    A library that is not installed is left out, and said so.
    """
    ways: dict[str, Candidate] = {"eager fp32": Candidate("logits", lambda p: eager(_logits(p), p))}
    ways["eager fp32, through the head"] = Candidate("hidden", lambda p: eager(p.hidden @ p.weight.t(), p))
    ours = "triton" if everything else "torch"
    ways[f"orlaif fused head ({ours})"] = Candidate(
        "hidden",
        lambda p: linear_grpo_rank_loss(p.hidden, p.weight, p.token_ids, implementation=ours, **p.common)[0],
    )
    if not everything:
        return ways
    ways["orlaif (triton)"] = Candidate(
        "logits", lambda p: grpo_rank_loss(_logits(p), p.token_ids, implementation="triton", **p.common)[0]
    )
    ways["orlaif (triton, in place)"] = Candidate(
        "logits",
        lambda p: grpo_rank_loss(_logits(p), p.token_ids, inplace=True, implementation="triton", **p.common)[0],
        options={"inplace": True},
    )
    # Without a GPU this is a rehearsal, which need not wait for a compiler's C++.
    backend = "inductor" if torch.cuda.is_available() else "aot_eager"
    compiled = torch.compile(eager, dynamic=True, backend=backend)
    ways["torch.compile"] = Candidate("logits", lambda p: compiled(_logits(p), p))
    compiled_head = torch.compile(lambda h, w, p: eager(h @ w.t(), p), dynamic=True, backend=backend)
    ways["torch.compile, through the head"] = Candidate("hidden", lambda p: compiled_head(p.hidden, p.weight, p))
    for add in (_liger, _trl, _cce):
        try:
            ways |= add()
        except ImportError as error:
            print(f"left out: {error}")
    return ways


def _logits(p: Problem) -> Tensor:
    assert p.logits is not None
    return p.logits


def _liger() -> dict[str, Candidate]:
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss
    from liger_kernel.transformers.grpo_loss import triton_grpo_loss

    fused = LigerFusedLinearGRPOLoss(beta=KL, use_ref_model=True, loss_type="dapo")

    def logits(p: Problem, inplace: bool) -> Tensor:
        return triton_grpo_loss(
            _logits(p), None, p.ref_logps, p.token_ids, p.advantages, completion_mask=p.mask.int(), temperature=1.0,
            beta=KL, eps_low=0.2, eps_high=0.2, inplace=inplace, reduce=True,
        )[0]  # fmt: skip

    def linear(p: Problem) -> Tensor:
        return fused(p.hidden, p.weight, p.token_ids, p.mask.long(), p.advantages, ref_per_token_logps=p.ref_logps)[0]

    extra = {"extra_position": True}
    return {
        "Liger triton": Candidate("logits", lambda p: logits(p, False), options=extra),
        "Liger triton, in place": Candidate("logits", lambda p: logits(p, True), options={**extra, "inplace": True}),
        "Liger fused linear": Candidate("hidden", linear),
    }


def _trl() -> dict[str, Candidate]:
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction
    from trl.kernels.logprob_entropy import selective_log_softmax_and_entropy

    def chunked(p: Problem) -> Tensor:
        flat = p.hidden.reshape(-1, p.hidden.shape[-1])
        logps = ChunkedLogProbFunction.apply(flat, p.weight, None, p.token_ids.flatten(), 1.0, 8192, None, 1.0, ())[0]
        return token_loss(logps.view(p.token_ids.shape), p)

    def logits(p: Problem) -> Tensor:
        return token_loss(selective_log_softmax_and_entropy(_logits(p), p.token_ids)[0], p)

    return {"TRL logits kernel": Candidate("logits", logits), "TRL chunked log-probs": Candidate("hidden", chunked)}


def _cce() -> dict[str, Candidate]:
    from cut_cross_entropy import linear_cross_entropy

    def call(p: Problem) -> Tensor:
        ids = p.token_ids.masked_fill(~p.mask, -100)
        nll = linear_cross_entropy(p.hidden, p.weight, ids, reduction="none")
        return (nll * p.advantages.unsqueeze(-1)).sum() / p.mask.sum()

    return {"cut-cross-entropy": Candidate("hidden", call, kl=False, notes="weighted cross-entropy: no KL, no metrics")}


# ------------------------------------------------------------------------------------------------------------ measuring


def with_leaves(p: Problem, candidate: Candidate, frozen: bool = False) -> tuple[Problem, list[Tensor]]:
    """The problem with fresh leaves for one call, and those leaves."""
    if candidate.entry == "logits":
        extra = 1 if candidate.options.get("extra_position") else 0
        base = _logits(p) if p.logits is not None else p.hidden @ p.weight.t()
        if extra:
            base = torch.cat([base, base[:, :1]], 1)
        leaf = base.detach().requires_grad_()
        # In place on something computed, as a model's logits are; the gradient is read at its place.
        inside = _Same.apply(leaf) if candidate.options.get("inplace") else leaf
        return Problem(p.hidden, p.weight, p.token_ids, p.mask, p.advantages, p.ref_logps, inside), [leaf]
    hidden, weight = p.hidden.detach().requires_grad_(), p.weight.detach().requires_grad_(not frozen)
    leaves = [hidden] if frozen else [hidden, weight]
    return Problem(hidden, weight, p.token_ids, p.mask, p.advantages, p.ref_logps), leaves


class _Same(torch.autograd.Function):
    """Identity that shares memory and is no view to autograd: a stand-in for the model above the logits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def error(candidate: Candidate, h: int, v: int, device: str, dtype: torch.dtype) -> float:
    """Largest Frobenius error of a gradient against float64, on 64 tokens of the same width."""
    p = problem(64, h, v, 0.6, device, dtype, 16, seed=1)
    if candidate.entry == "logits":
        p.logits = p.hidden @ p.weight.t()
    mine, leaves = with_leaves(p, candidate)
    if candidate.entry == "logits":
        true_leaves = [_logits(p).double().requires_grad_()]
        logits = true_leaves[0]
    else:
        true_leaves = [x.double().requires_grad_() for x in (p.hidden, p.weight)]
        logits = true_leaves[0] @ true_leaves[1].t()
    exact: dict[str, Any] = {"advantages": p.advantages.double(), "mask": p.mask, "ref_logps": p.ref_logps.double()}
    loss, _ = grpo_rank_loss(logits, p.token_ids, kl_coef=KL if candidate.kl else 0.0, implementation="torch", **exact)
    truth = torch.autograd.grad(loss, true_leaves)
    candidate.call(mine).backward()
    errors = []
    for leaf, true in zip(leaves, truth, strict=True):
        assert leaf.grad is not None
        grad = leaf.grad[:, : true.shape[1]] if leaf.grad.ndim == 3 else leaf.grad
        errors.append(((grad.double() - true).norm() / true.norm()).item())
    return max(errors)


def step(candidate: Candidate, p: Problem, backward: bool, frozen: bool = False) -> Callable[[], Any]:
    """One repetition on fresh leaves, made before the clock starts."""
    mine, _ = with_leaves(p, candidate, frozen)

    def run() -> None:
        loss = candidate.call(mine)
        if backward:
            loss.backward()

    return run


def peak_cuda(candidate: Candidate, p: Problem, frozen: bool = False) -> int:
    """Bytes above the inputs; gradients are inputs' equals and counted apart by the reader."""
    run = step(candidate, p, True, frozen)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _cpu_peak(name: str, shape: tuple[int, int, int], fill: float, queue: Any) -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    candidate = candidates(False)[name]
    step(candidate, problem(64, 16, 64, 1.0, "cpu", torch.float32, 64), True)()  # what a first call loads
    p = problem(*shape, fill, "cpu", torch.float32, 64)
    if candidate.entry == "logits":
        p.logits = p.hidden @ p.weight.t()
    run = step(candidate, p, True)
    before = forget_peak()
    run()
    queue.put(status("VmHWM") - before)


def peak_cpu(name: str, shape: tuple[int, int, int], fill: float) -> int:
    """Bytes by which a call raises the peak of a fresh process."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_cpu_peak, args=(name, shape, fill, queue))
    process.start()
    bytes_ = queue.get()
    process.join()
    return bytes_


def ceilings(p: Problem, cuda: bool, repeats: int) -> dict[str, dict[str, float]]:
    """The three bare GEMMs, and a copy of the logits, measured in this run."""
    flat = p.hidden.reshape(-1, p.hidden.shape[-1])
    logits = flat @ p.weight.t()
    other = torch.empty_like(logits)
    dx, dw = torch.empty_like(flat), torch.empty_like(p.weight)

    def gemms() -> None:
        torch.mm(flat, p.weight.t(), out=logits)
        torch.mm(logits, p.weight, out=dx)
        torch.mm(logits.t(), flat, out=dw)

    times = {}
    for name, call in (("three bare GEMMs", gemms), ("copy of the logits", lambda: other.copy_(logits))):
        call()
        times[name] = spread([seconds(call, cuda) for _ in range(repeats)])
    return times


def measure(
    shape: tuple[int, int, int], fill: float, device: str, repeats: int, everything: bool | None = None
) -> dict[str, Any]:
    """All candidates on one shape, taking turns; ``everything``: see :func:`candidates`, by default on a GPU."""
    cuda = device == "cuda"
    everything = cuda if everything is None else everything
    dtype = torch.bfloat16 if cuda else torch.float32
    n, h, v = shape
    length = LENGTH if cuda else 64
    p = problem(n, h, v, fill, device, dtype, length)
    logits = p.hidden @ p.weight.t()
    tokens = p.token_ids.numel()
    entry: dict[str, Any] = {"tokens": n, "hidden": h, "vocabulary": v, "fill": fill, "counted": int(p.mask.sum())}
    entry["ceilings"] = ceilings(p, cuda, repeats)
    copy_ms = entry["ceilings"]["copy of the logits"]["median_ms"]
    gemm_ms = entry["ceilings"]["three bare GEMMs"]["median_ms"]
    least = 2 * logits.numel() * logits.element_size()
    rows: dict[str, dict[str, Any]] = {}
    able = {}
    for name, candidate in candidates(everything).items():
        rows[name] = {"entry": candidate.entry, "notes": candidate.notes}
        try:
            rows[name]["error"] = error(candidate, h, v, device, dtype)
        except Exception as reason:
            rows[name]["failed"] = f"{type(reason).__name__}: {reason}"[:300]
            continue
        if not rows[name]["error"] <= TOLERANCE:  # NaN is no pass
            rows[name]["failed"] = f"error {rows[name]['error']:.2g} against float64 is more than {TOLERANCE}: no speed"
            continue
        able[name] = candidate
    for kind, backward in (("forward", False), ("forward+backward", True)):
        times: dict[str, list[float]] = {name: [] for name in able}
        for repeat in range(repeats + 2):
            for name, candidate in list(able.items()):
                p.logits = logits.clone() if candidate.options.get("inplace") else logits
                if candidate.entry != "logits":
                    p.logits = None
                try:
                    taken = seconds(step(candidate, p, backward), cuda)
                except torch.cuda.OutOfMemoryError:
                    rows[name]["failed"] = f"out of memory, {kind}"
                    del able[name], times[name]
                    torch.cuda.empty_cache()
                    continue
                if repeat >= 2:
                    times[name].append(taken)
        for name, taken_all in times.items():
            rows[name][kind] = spread(taken_all)
    for name, candidate in able.items():
        full = rows[name]["forward+backward"]["median_ms"]
        if candidate.entry == "logits":
            rows[name]["gb_per_s_of_least_bytes"] = least / full / 1e6
            rows[name]["share_of_copy"] = copy_ms / full
        else:
            rows[name]["times_the_bare_gemms"] = full / gemm_ms
        p.logits = logits.clone() if candidate.options.get("inplace") else logits
        if cuda:
            rows[name]["peak_bytes"] = peak_cuda(candidate, p)
            if candidate.entry == "hidden":
                rows[name]["peak_bytes_frozen_head"] = peak_cuda(candidate, p, frozen=True)
            longer = problem(n, h, v, fill, device, dtype, length + 1)
            longer.logits = longer.hidden @ longer.weight.t() if candidate.entry == "logits" else None
            rows[name]["first_call_at_a_new_length_ms"] = 1e3 * seconds(step(candidate, longer, True), cuda)
        else:
            rows[name]["peak_bytes"] = peak_cpu(name, shape, fill) if not everything else 0
    p.logits = None
    return {**entry, "logits_bytes": tokens * v * logits.element_size(), "results": rows}


# -------------------------------------------------------------------------------------------------------------- report


def plot(report: dict[str, Any], path: str) -> None:
    """Forward and backward time and peak memory of every candidate, one panel per shape and fill."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    entries = report["entries"]
    figure, axes = pyplot.subplots(len(entries), 2, figsize=(13, 0.6 + 2.6 * len(entries)), squeeze=False)
    for (left, right), entry in zip(axes, entries, strict=True):
        named = {k: r for k, r in entry["results"].items() if "forward+backward" in r}
        labels = list(named)
        middle = [r["forward+backward"]["median_ms"] for r in named.values()]
        low = [m - r["forward+backward"]["p20_ms"] for m, r in zip(middle, named.values(), strict=True)]
        high = [r["forward+backward"]["p80_ms"] - m for m, r in zip(middle, named.values(), strict=True)]
        colours = ["#c44e52" if "orlaif" in k else "#4c72b0" for k in labels]
        left.barh(labels, middle, xerr=[low, high], color=colours)
        left.set_xlabel("forward + backward, ms (median, 20-80 %)")
        left.set_title(f"N={entry['tokens']} H={entry['hidden']} V={entry['vocabulary']} fill={entry['fill']}")
        right.barh(labels, [r["peak_bytes"] / 1e9 for r in named.values()], color=colours)
        right.set_xlabel("peak above the inputs, GB")
        right.set_yticklabels([])
    figure.suptitle(report["machine"])
    figure.tight_layout(rect=(0, 0, 1, 0.985))
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, print a table as it comes, write JSON and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="outputs/kernels.json")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--shapes", help="only these, as N,H,V separated by spaces")
    parser.add_argument("--fills", type=float, nargs="+", default=list(FILLS))
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shapes = GPU_SHAPES if device == "cuda" else CPU_SHAPES
    if arguments.shapes:
        n_h_v = [tuple(map(int, shape.split(","))) for shape in arguments.shapes.split()]
        shapes = [(n, h, v) for n, h, v in n_h_v]
    report: dict[str, Any] = {
        **about(device == "cuda"),
        "dtype": "bfloat16" if device == "cuda" else "float32",
        "versions": installed("torch", "triton", "trl", "liger-kernel", "cut-cross-entropy"),
        "entries": [],
    }
    os.makedirs(os.path.dirname(arguments.output) or ".", exist_ok=True)
    for shape in shapes:
        for fill in arguments.fills:
            entry = measure(shape, fill, device, arguments.repeats)
            report["entries"].append(entry)
            print(f"\nN={shape[0]} H={shape[1]} V={shape[2]} fill={fill} ({entry['counted']} tokens count)")
            for name, row in entry["results"].items():
                if "failed" in row:
                    print(f"  {name:<34} {row['failed']}")
                    continue
                full = row["forward+backward"]
                print(
                    f"  {name:<34} {full['median_ms']:9.2f} ms [{full['p20_ms']:.2f}, {full['p80_ms']:.2f}]  "
                    f"peak {row['peak_bytes'] / 1e9:6.3f} GB  error {row['error']:.1e}"
                )
            with open(arguments.output, "w", encoding="utf-8") as file:
                json.dump(report, file, indent=1)
    plot(report, os.path.splitext(arguments.output)[0] + ".png")


if __name__ == "__main__":
    main()
