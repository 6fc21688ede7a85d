"""What only hardware shows: addresses beyond 2^31, CUDA graphs, compilations, memory. Skipped without a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from orlaif_kernels import grpo_rank_loss, linear_grpo_rank_loss, linear_logps
from torch import Tensor

from tests.kernels.cases import make_case, relative

pytestmark = pytest.mark.gpu


def cuda(arguments: dict[str, Any]) -> dict[str, Any]:
    return {k: x.cuda() if isinstance(x, Tensor) else x for k, x in arguments.items()}


def test_offsets_beyond_two_to_the_31() -> None:
    """The last rows of 15,000 x 152,064 logits lie past what 32 bits address; they are those of a small tensor."""
    n, t, v = 15, 1000, 152064
    logits = torch.zeros(n, t, v, dtype=torch.bfloat16, device="cuda")
    case = make_case(1, 3, v, dtype=torch.bfloat16, mask="none", kl_coef=0.1)
    case.advantages = torch.ones(1)
    _, expected, _ = case.truth()
    logits[-1, -3:] = case.logits[0].cuda()
    mask = torch.zeros(n, t, dtype=torch.bool, device="cuda")
    mask[-1, -3:] = True
    more = {}
    for name in ("token_ids", "old_logps", "ref_logps"):
        whole = torch.zeros(n, t, dtype=getattr(case, name).dtype, device="cuda")
        whole[-1, -3:] = getattr(case, name)[0].cuda()
        more[name] = whole
    leaf = logits.requires_grad_()
    loss, _ = grpo_rank_loss(
        leaf, mask=mask, advantages=torch.ones(n, device="cuda"), kl_coef=0.1, implementation="triton", **more
    )
    loss.backward()
    assert leaf.grad is not None
    assert relative(leaf.grad[-1, -3:].cpu(), expected[0]) <= 8e-3
    assert bool((leaf.grad[:-1] == 0).all())


def test_nothing_recompiles_for_a_new_length_coefficient_or_temperature() -> None:
    from orlaif_kernels import row_kernel

    def run(t: int, **settings: float) -> None:
        case = make_case(2, t, 4097, dtype=torch.bfloat16, **{"kl_coef": 0.1, **settings})
        leaf = case.logits.cuda().requires_grad_()
        grpo_rank_loss(leaf * 1, case.token_ids.cuda(), inplace=True, **cuda(case.arguments))[0].backward()

    def compiled() -> int:
        kernels = (row_kernel.row_kernel, row_kernel.group_kernel, row_kernel.finish_kernel)
        return sum(len(cache[0]) for kernel in kernels for cache in kernel.device_caches.values())

    run(7)
    before = compiled()
    for t, settings in ((1, {}), (16, {"kl_coef": 1.0}), (33, {"temperature": 0.5}), (48, {"entropy_coef": 0.1})):
        run(t, **settings)
    assert compiled() == before


def test_a_cuda_graph_replays_the_loss_and_its_gradient() -> None:
    case = make_case(3, 5, 4096, dtype=torch.bfloat16, kl_coef=0.1)
    other = make_case(3, 5, 4096, dtype=torch.bfloat16, kl_coef=0.1, seed=1)
    arguments = cuda(case.arguments)
    leaf = case.logits.cuda().requires_grad_()
    ids = case.token_ids.cuda()

    def step() -> tuple[Tensor, Tensor]:
        loss, _ = grpo_rank_loss(leaf, ids, implementation="triton", **arguments)
        return loss, torch.autograd.grad(loss, leaf)[0]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, grad = step()
    with torch.no_grad():
        leaf.copy_(other.logits)
    graph.replay()
    expected_loss, expected_grad = step()
    assert torch.equal(loss, expected_loss)
    assert torch.equal(grad, expected_grad)


@pytest.mark.parametrize("frozen", [False, True])
def test_memory_of_the_fused_head(frozen: bool) -> None:
    """At N=8192, H=3584, V=152064: at most 1.8 GB above inputs and outputs, 0.7 GB with a frozen head."""
    n, t, h, v = 32, 256, 3584, 152064
    hidden = torch.randn(n, t, h, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    weight = (torch.randn(v, h, dtype=torch.bfloat16, device="cuda") / 60).requires_grad_(not frozen)
    ids = torch.randint(v, (n, t), device="cuda")
    mask = torch.ones(n, t, dtype=torch.bool, device="cuda")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    linear_grpo_rank_loss(hidden, weight, ids, advantages=torch.randn(n, device="cuda"), mask=mask)[0].backward()
    outputs = hidden.numel() * 2 + (0 if frozen else weight.numel() * 2)
    above = torch.cuda.max_memory_allocated() - before - outputs
    assert above <= (0.7e9 if frozen else 1.8e9), f"{above / 1e9:.2f} GB"


def test_the_ratio_of_an_unchanged_policy_is_one_through_cublas() -> None:
    hidden = torch.randn(8, 300, 512, dtype=torch.bfloat16, device="cuda")
    weight = torch.randn(32003, 512, dtype=torch.bfloat16, device="cuda") / 20
    ids = torch.randint(32003, (8, 300), device="cuda")
    mask = torch.rand(8, 300, device="cuda") < 0.7
    old = linear_logps(hidden, weight, ids, mask=mask)
    loss, _ = linear_grpo_rank_loss(
        hidden,
        weight,
        ids,
        advantages=torch.ones(8, device="cuda"),
        mask=mask,
        old_logps=old,
        clip_low=0.0,
        clip_high=0.0,
    )
    assert loss.item() == -1.0
