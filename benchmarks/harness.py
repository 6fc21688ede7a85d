"""What the benchmarks share: clocks, spreads, peak memory, and what to write down about the machine."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]


def seconds(call: Callable[[], Any], cuda: bool) -> float:
    """Wall time of one call, by CUDA events on a GPU."""
    if not cuda:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


def spread(times: list[float]) -> dict[str, float]:
    """Median and 20th and 80th percentiles, milliseconds."""
    ordered = sorted(1e3 * t for t in times)
    return {
        "median_ms": statistics.median(ordered),
        "p20_ms": ordered[int(0.2 * (len(ordered) - 1))],
        "p80_ms": ordered[math.ceil(0.8 * (len(ordered) - 1))],
    }


def status(name: str) -> int:
    """A size of this process in bytes, from ``/proc/self/status``."""
    with open("/proc/self/status", encoding="ascii") as file:
        (line,) = (line for line in file if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def forget_peak() -> int:
    """Give freed memory back, forget the peak so far, and return the resident bytes of this moment."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")  # getrusage would give the peak since the process began
    return status("VmRSS")


def timed_with_peak(call: Callable[[], Any], cuda: bool) -> tuple[float, int]:
    """Seconds of one call, and the bytes by which it raises the peak."""
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        taken = seconds(call, cuda)
        return taken, torch.cuda.max_memory_allocated() - before
    before = forget_peak()
    taken = seconds(call, cuda)
    return taken, status("VmHWM") - before


def installed(*packages: str) -> dict[str, str]:
    """Versions of all that took part."""
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def commit() -> str:
    """Of the checkout: by ``ORLAIF_COMMIT``, git, or a file ``.commit`` written where there is git; else unknown.

    Git's ends with ``+changes`` where a tracked file differs from it.
    """
    if given := os.environ.get("ORLAIF_COMMIT"):
        return given
    found = _git("rev-parse", "--short", "HEAD")
    if found and _git("status", "--porcelain", "--untracked-files=no"):
        found += "+changes"
    noted = ROOT / ".commit"
    return found or (noted.read_text(encoding="utf-8").strip() if noted.is_file() else "unknown")


def _git(*words: str) -> str:
    """What git says of this checkout; empty where there is no git, or no checkout."""
    try:
        return subprocess.run(["git", *words], capture_output=True, text=True, cwd=ROOT).stdout.strip()
    except FileNotFoundError:
        return ""


def about(cuda: bool) -> dict[str, Any]:
    """Machine and commit."""
    cores = f"{platform.machine()}, {os.cpu_count()} cores, no GPU: nothing here speaks for one"
    return {"machine": torch.cuda.get_device_name() if cuda else cores, "commit": commit()}
