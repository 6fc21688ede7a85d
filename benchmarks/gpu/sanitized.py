"""Every kernel once, small, for compute-sanitizer to watch: ``compute-sanitizer python -m benchmarks.gpu.sanitized``.

Shapes leave a ragged last block and a masked tail, which is where a wrong bound would show.
"""

from __future__ import annotations

from typing import Any

import torch
from orlaif_kernels import grpo_rank_loss, linear_grpo_rank_loss, linear_logps, linear_token_statistics, rank_advantage


def once(device: str) -> None:
    """Forward and backward of each entry."""
    torch.manual_seed(0)
    n, t, h, v = 8, 5, 64, 4097
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    hidden = torch.randn(n, t, h, device=device, dtype=dtype, requires_grad=True)
    weight = (torch.randn(v, h, device=device, dtype=dtype) / 8).requires_grad_()
    ids = torch.randint(v, (n, t), device=device)
    mask = torch.arange(t, device=device) < torch.randint(1, t + 1, (n, 1), device=device)
    ranks = torch.randint(4, (2, 4), device=device)
    common: dict[str, Any] = {"mask": mask, "ref_logps": -torch.rand(n, t, device=device), "kl_coef": 0.1}
    advantages, _ = rank_advantage(ranks, group_size=4, implementation="triton")
    common["advantages"] = advantages.flatten()
    for inplace in (False, True):
        logits = hidden @ weight.t()
        grpo_rank_loss(logits, ids, inplace=inplace, implementation="triton", **common)[0].backward()
    linear_grpo_rank_loss(hidden, weight, ids, implementation="triton", **common)[0].backward()
    linear_logps(hidden, weight, ids, mask=mask, implementation="triton")
    statistics = linear_token_statistics(hidden, weight, ids, implementation="triton")
    (statistics.logps.sum() + statistics.entropy.sum()).backward()
    assert hidden.grad is not None
    assert bool(hidden.grad.isfinite().all())


if __name__ == "__main__":
    once("cuda" if torch.cuda.is_available() else "cpu")
    print("every kernel ran")
