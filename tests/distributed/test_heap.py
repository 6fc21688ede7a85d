"""What is freed while weights are read goes back to the system."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

#: Of a process of its own: one that has run for a while has room in its heap, and maps nothing.
SCRIPT = """
import torch
from benchmarks.harness import status
from orlaif.distributed.heap import freed_at_once

megabytes = 1 << 20
torch.ones(30 * megabytes, dtype=torch.uint8)  # freed at once; glibc then keeps blocks up to this size
with freed_at_once():
    blocks = [torch.ones(4 * megabytes, dtype=torch.uint8) for _ in range(32)]
    held = status("VmRSS")
    kept = blocks.pop()
    blocks.clear()
    print((held - status("VmRSS")) // megabytes, kept.sum(dtype=torch.int64).item() // megabytes)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_what_is_freed_beneath_what_is_kept_goes_back_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    freed, kept = map(int, done.stdout.split())
    assert freed > 100
    assert kept == 4
