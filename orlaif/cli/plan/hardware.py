"""What a machine can do: published peaks of GPUs, or what this CPU does when it is tried.

Peaks are NVIDIA's data sheets', dense (without sparsity): A100 80GB SXM, H100 SXM, H200 SXM and B200 SXM (of an HGX
board), L4, L40S and A10; GeForce RTX 4090 of its architecture's white paper (bf16 with sums in float32). Links are one
way: half of NVLink's rate, or PCIe 4.0 x16; to the host PCIe x16, 5.0 where 64 GB/s.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from orlaif.arguments import UsageError

#: Share of the peak that training passes reach. Published runs of this size on PyTorch reach 0.3 to 0.5.
OF_PEAK = 0.4
#: Of what large products reach on a CPU when they are tried; found with a 3B model (docs/benchmarks).
OF_CPU = 0.8
#: Share of the memory's and the link's rate.
OF_BANDWIDTH = 0.7
#: Seconds until Python and PyTorch have launched one operation; none where steps are recorded (CUDA graphs).
LAUNCH_S = 10e-6


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One device.

    Args:
        name: in words.
        half: FLOP/s in bfloat16 or float16.
        single: FLOP/s in float32.
        memory: bytes/s.
        link: bytes/s to another device.
        host: bytes/s to the host's memory, or back; without end where it is the same memory.
        of_peak: share of the FLOP/s that passes reach.
        of_bandwidth: share of the bytes/s that decoding reaches.
    """

    name: str
    half: float
    single: float
    memory: float
    link: float
    host: float = math.inf
    of_peak: float = OF_PEAK
    of_bandwidth: float = OF_BANDWIDTH

    def rate(self, dtype: torch.dtype) -> float:
        """FLOP/s of passes in a dtype."""
        return self.of_peak * (self.half if dtype.itemsize == 2 else self.single)

    @property
    def said(self) -> str:
        """Rates and what is assumed of them."""
        return (
            f"{self.name}: {self.half / 1e12:,.3g} TFLOP/s in bf16, {self.memory / 1e9:,.4g} GB/s; assumed: passes "
            f"reach {self.of_peak:.0%} and decoding {self.of_bandwidth:.0%} of that, "
            f"{1e6 * LAUNCH_S:.0f} us an operation"
        )


def _gpu(name: str, half: float, single: float, memory: float, link: float, host: float = 32) -> Hardware:
    rates = {"memory": memory * 1e9, "link": link * 1e9, "host": host * 1e9}
    return Hardware(name=name, half=half * 1e12, single=single * 1e12, **rates)


GPUS = {
    "a10": _gpu("A10", 125, 31.2, 600, 32),
    "a100": _gpu("A100 80GB SXM", 312, 19.5, 2039, 300),
    "b200": _gpu("B200 SXM", 2250, 80, 8000, 900, 64),
    "h100": _gpu("H100 SXM", 989.4, 67, 3350, 450, 64),
    "h200": _gpu("H200 SXM", 989.4, 67, 4800, 450, 64),
    "l4": _gpu("L4", 121, 30.3, 300, 32),
    "l40s": _gpu("L40S", 362, 91.6, 864, 32),
    "rtx4090": _gpu("RTX 4090", 165.2, 82.6, 1008, 32),
}


def hardware(name: str) -> Hardware:
    """A GPU of the table, or ``cpu``: this machine, tried for a second.

    Raises:
        UsageError: a name that the table has not.
    """
    if name == "cpu":
        return this_cpu()
    if name not in GPUS:
        raise UsageError(f"--gpu is {name!r}; it must be one of {', '.join(GPUS)}, or cpu for this machine's")
    return GPUS[name]


def this_cpu() -> Hardware:
    """This machine's, from products of matrices: large ones, and ones of a few rows that only read their weights."""
    half, single = (_product(1024, torch.bfloat16), _product(1024, torch.float32))
    threads = torch.get_num_threads()
    return Hardware(
        name=f"this CPU with {threads} thread{'s' if threads > 1 else ''}, tried",
        half=half,
        single=single,
        memory=_product(4, torch.bfloat16, 4096) * 2 / (2 * 4),  # a weight of two bytes for two FLOPs of each row
        link=1e9,
        of_peak=OF_CPU,
        of_bandwidth=1.0,
    )


def _product(rows: int, dtype: torch.dtype, size: int = 1024) -> float:
    """FLOP/s of a product [rows, size] x [size, size], median of several; weights are others each time."""
    weights = [torch.randn(size, size, dtype=dtype) for _ in range(4)]
    states = torch.randn(rows, size, dtype=dtype)
    seconds = [_timed(lambda w=weight: states @ w.T) for _ in range(5) for weight in weights]  # type: ignore[misc]
    return 2.0 * rows * size * size / statistics.median(seconds)


def _timed(call: Callable[[], object]) -> float:
    begun = time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()
    call()
    return (time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()) - begun
