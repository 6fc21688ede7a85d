"""What is freed while weights are read goes back to the system."""

from __future__ import annotations

import platform

import pytest
import torch

from benchmarks.harness import status
from orlaif.distributed.heap import freed_at_once

MEGABYTES = 1 << 20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_what_is_freed_beneath_what_is_kept_goes_back_at_once() -> None:
    torch.ones(30 * MEGABYTES, dtype=torch.uint8)  # freed at once; glibc then keeps blocks up to this size
    with freed_at_once():
        blocks = [torch.ones(4 * MEGABYTES, dtype=torch.uint8) for _ in range(32)]
        held = status("VmRSS")
        kept = blocks.pop()
        blocks.clear()
        assert held - status("VmRSS") > 100 * MEGABYTES
    assert kept.sum(dtype=torch.int64) == 4 * MEGABYTES
