"""One pass over rows of logits, by either implementation: statistics, the token's loss, the gradient (``row_kernel``).

The PyTorch rows are the closed form of the Triton kernel, a chunk at a time and without autograd; the plain truth that
both are tested against is ``reference.py``.

Shapes: N completions, T tokens, V vocabulary, M rows in this pass.
"""

from __future__ import annotations

import contextlib
import math
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from orlaif_kernels.arguments import LossSettings

if TYPE_CHECKING:
    from orlaif_kernels.batch import Batch

#: Slots of a token's state [5, N * T], and what follows with a loss term, as in ``token_kernel``.
TOP, LOG_SUM, LOGP, ENTROPY, MEAN, GRAD, LOSS, KL, LOW, HIGH, RUNAWAY = range(11)
STATE_SLOTS, TERM_SLOTS = 5, 11


#: Whether a cluster holds rows that L2 does not (:func:`cluster_launch`), on sm_90. No GPU has timed it.
CLUSTERS = os.environ.get("ORLAIF_ROW_CLUSTERS") == "1"


def compiles_clusters() -> bool:
    """Whether this Triton compiles a row that a cluster holds: 3.6 stops at an assertion of its own, 3.9 does."""
    import triton

    return tuple(map(int, triton.__version__.split(".")[:2])) > (3, 6)


def wide(x: Tensor) -> torch.dtype:
    """The dtype that is computed in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def on_device_of(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device; make it the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def row_launch(vocabulary: int, itemsize: int, softcap: bool = False) -> dict[str, int]:
    """Block and warps of the row kernel.

    One program fills a multiprocessor (1024 threads) where the vocabulary is large. A thread takes 32 bytes a step, and
    half as many 16-bit logits where the soft cap needs the registers: what fits without spilling
    (benchmarks/static.py).
    """
    per_thread = 16 if itemsize == 2 and not softcap else 8
    block = max(256, min(1024 * per_thread, 1 << max(0, vocabulary - 1).bit_length()))
    lanes = 64 if torch.version.hip else 32
    return {"BLOCK": block, "num_warps": max(1, block // (lanes * per_thread))}


def cluster_launch(vocabulary: int, itemsize: int, multiprocessors: int, l2_bytes: int) -> dict[str, int] | None:
    """How 16 multiprocessors hold a row in their registers, 64 bytes a thread, where L2 does not hold the rows that are
    worked on at a time; None where it does, or where they cannot. They work on one row in phases, where programs of
    one multiprocessor overlap theirs: what it costs to save a read, only a GPU can say."""
    block = 1 << max(0, vocabulary - 1).bit_length()
    warps = block * itemsize // (64 * 16 * 32)
    if vocabulary * itemsize * multiprocessors <= l2_bytes or warps > 32:
        return None
    return {"BLOCK": block, "num_warps": max(1, warps), "num_ctas": 16}


def programs(num_rows: int, row_bytes: int, threads: int, multiprocessors: int, l2_bytes: int) -> int:
    """How many programs take turns at the rows: as many per multiprocessor as threads fit, while their rows fit in
    four fifths of L2; never fewer than one per multiprocessor, whatever registers would allow."""
    by_cache = int(0.8 * l2_bytes) // (row_bytes * multiprocessors)
    return min(num_rows, multiprocessors * max(1, min(2048 // threads, by_cache)))


@dataclass(frozen=True)
class Rows:
    """The tokens whose rows of logits are read, and what is kept of each.

    Args:
        token_ids: [N, T].
        mask: bool[N, T].
        settings: of the scale, and of the loss with a ``term``.
        implementation: ``torch`` or ``triton``.
        state: f32[5, N * T] (f64 for f64 logits; 11 slots with a ``term``), written by a pass that makes statistics,
            read by one that makes gradients.
    """

    token_ids: Tensor
    mask: Tensor
    settings: LossSettings
    implementation: str
    state: Tensor

    def statistics(self, logits: Tensor, at: Tensor) -> None:
        """Of rows [M, V] of the tokens ``at`` i64[M]."""
        if self.implementation == "triton":
            self.launch(logits, index=at, statistics=True)
        else:
            ids = self.token_ids.flatten()[at].long()
            self.state[:, at] = torch_statistics(logits, ids, self.settings, self.state.dtype)

    def gradient(self, logits: Tensor, at: Tensor, c: Tensor, h: Tensor, out: Tensor) -> None:
        """Into ``out`` (it may be ``logits``), from dl/dlogp ``c`` and dl/dH ``h``, [N * T]."""
        if self.implementation == "triton":
            self.launch(logits, index=at, gradients=(c, h), out=out)
        else:
            ids = self.token_ids.flatten()[at].long()
            torch_gradient(logits, ids, self.state[:, at], c[at], h[at], self.settings, out)

    def launch(
        self,
        logits: Tensor,
        *,
        index: Tensor | None = None,
        statistics: bool = False,
        term: Batch | None = None,
        gradients: tuple[Tensor, Tensor] | None = None,
        normalizer: Tensor | None = None,
        out: Tensor | None = None,
    ) -> None:
        """A pass of the Triton kernel.

        Args:
            logits: [N, T or more, V], a token's row each, at multiples of V; or [M, V], of the tokens ``index``.
            index: i64[M].
            statistics: make them; else they are read.
            term: the tokens' constants, for a GRPO_rank loss.
            gradients: dl/dlogp and dl/dH, f32[N * T], of any other loss.
            normalizer: f32[], divides the gradient.
            out: takes the gradient; it may be ``logits``.
        """
        from orlaif_kernels import row_kernel as k
        from orlaif_kernels.token_kernel import KL_ESTIMATORS

        settings, (n, t), v = self.settings, self.token_ids.shape, logits.shape[-1]
        num_rows = n * t if index is None else index.numel()
        if num_rows == 0:
            return
        cap = settings.cap
        launch = row_launch(v, logits.element_size(), cap is not None)
        count = min(num_rows, 3)  # in the interpreter
        if logits.is_cuda:
            gpu = torch.cuda.get_device_properties(logits.device)
            threads = launch["num_warps"] * (64 if torch.version.hip else 32)
            machine = gpu.multi_processor_count, gpu.L2_cache_size or 2**25
            count = programs(num_rows, v * logits.element_size(), threads, *machine)
            held = CLUSTERS and statistics and out is not None and gpu.major == 9 and not torch.version.hip
            if held and not compiles_clusters():
                raise ValueError(
                    "ORLAIF_ROW_CLUSTERS is 1, which Triton 3.6 cannot compile; take a newer one, or unset it"
                )
            if held and (cluster := cluster_launch(v, logits.element_size(), *machine)):
                launch, count = cluster, min(num_rows, machine[0] // cluster["num_ctas"])
        factor = settings.factor * (1.0 if cap is None else 2 * cap)
        (high,) = struct.unpack("f", struct.pack("f", factor))  # the nearest float32, and the rest
        with on_device_of(logits):
            k.row_kernel[(count,)](
                logits,
                out,
                self.token_ids,
                self.mask.view(torch.uint8),
                index,
                self.state,
                *(gradients or (None, None)),
                *((None,) * 4 if term is None else (term.advantages, term.weights, term.old_logps, term.ref_logps)),
                normalizer,
                num_rows,
                t,
                n * t,
                t if index is not None or n == 1 else logits.stride(0) // v,
                math.log2(math.e) * factor,
                high,
                factor - high,
                None if cap is None else 2 * math.log2(math.e) / cap,
                *settings.bounds,
                1.0 + settings.clip_high,
                settings.most,
                settings.kl_coef,
                settings.entropy_coef,
                V=v,
                STATISTICS=statistics,
                TERM=term is not None,
                GRADIENT=out is not None,
                KL_ESTIMATOR=KL_ESTIMATORS[settings.kl_estimator],
                HELD="num_ctas" in launch,
                **launch,
            )


def finite(logits: Tensor, settings: LossSettings, wide: torch.dtype) -> Tensor:
    """Logits in ``wide``, which may be the same memory; beyond all use to a soft cap they are held."""
    z = logits.to(wide)
    return z if settings.cap is None else z.clamp(max=300 * settings.cap)


def distance(z: Tensor, top: Tensor, settings: LossSettings) -> Tensor:
    """What lies between logits and their largest in the softmax, in memory of its own: exact where it matters.

    Of soft-capped ones c (tanh a - tanh b) = 2 c (exp(2 a - 2 b) - 1) / ((1 + exp(2 a)) (1 + exp(-2 b))), where nothing
    cancels, neither where the cap is nearly reached nor between neighbours.
    """
    d = z - top
    if settings.cap is None:
        return d.mul_(settings.factor)
    rate = 2 / settings.cap
    d = d.mul_(rate).expm1_().mul_(torch.sigmoid(z * -rate))
    d.mul_(torch.sigmoid(top * rate) * (2 * settings.cap * settings.factor))
    return d.masked_fill_(z == -torch.inf, -torch.inf)


def torch_statistics(logits: Tensor, target: Tensor, settings: LossSettings, wide: torch.dtype) -> Tensor:
    """Statistics [5, M] in ``wide`` of rows [M, V] with targets i64[M]; NaN for a target outside the vocabulary."""
    z = finite(logits, settings, wide)
    if z.shape[0] == 0:
        return z.new_zeros(STATE_SLOTS, 0)
    top, best = z.max(-1, keepdim=True)
    d = distance(z, top, settings)
    within = (target >= 0) & (target < z.shape[-1])
    of_target = d.gather(-1, target.where(within, 0).unsqueeze(-1)).squeeze(-1).where(within, torch.nan)
    e = d.exp().scatter_(-1, best, 0.0)  # without the largest: 1 - p of a certain token is the sum of the others
    rest = e.sum(-1).masked_fill(top.squeeze(-1) == torch.inf, torch.nan)
    log_sum = rest.log1p()
    mean = e.mul_(d.masked_fill_(e == 0, 0.0)).sum(-1) / (1 + rest)
    return torch.stack([top.squeeze(-1), log_sum, of_target - log_sum, log_sum - mean, mean])


def torch_gradient(
    logits: Tensor, target: Tensor, state: Tensor, c: Tensor, h: Tensor, settings: LossSettings, out: Tensor
) -> None:
    """Into ``out`` (it may be ``logits``): the gradient of rows [M, V] from dl/dlogp ``c`` and dl/dH ``h``, [M]."""
    z = finite(logits, settings, state.dtype)
    top, log_sum, logp, _, mean = state.unsqueeze(-1)
    c, h = (x.to(z.dtype).unsqueeze(-1) * settings.factor for x in (c, h))
    d = distance(z, top, settings)
    p = (d - log_sum).exp_()
    d.masked_fill_(p == 0, 0.0)
    within = ((target >= 0) & (target < z.shape[-1])).unsqueeze(-1)
    target = target.unsqueeze(-1).where(within, 0)
    of_target = -c * torch.expm1(logp) - h * logp.exp() * (d.gather(-1, target) - mean)
    g = d.mul_(-h).add_(h * mean - c).mul_(p)
    g.scatter_(-1, target, of_target.where(within, g.gather(-1, target)))
    if settings.cap is not None:  # 1 - tanh^2, which would cancel where the cap is nearly reached
        x = z * (2 / settings.cap)
        g.mul_(4 * torch.sigmoid(x) * torch.sigmoid(-x))
    out.copy_(g)
