"""The fused head, by both implementations, against float64 autograd through the full logits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from orlaif_kernels import grpo_rank_loss, linear, linear_grpo_rank_loss, linear_logps, rank_advantage, rows
from torch import Tensor

from tests.kernels.cases import MASKS, Case, make_case, truth

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IMPLEMENTATIONS = ("torch", "triton")
#: Frobenius norm of the error over that of the truth.
FROBENIUS = {torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}
SETTINGS = {"temperature": 0.8, "kl_coef": 0.1, "entropy_coef": 0.05, "delta": 1.5}


def make_head(
    n: int, t: int, h: int, v: int, dtype: torch.dtype, softcap: float | None = None, bias: bool = True, **how: Any
) -> tuple[Tensor, Tensor, Tensor | None, Case]:
    """Hidden states, head and bias, and a case over the logits they give."""
    torch.manual_seed(h)
    hidden = torch.randn(n, t, h).to(dtype)
    weight = (torch.randn(v, h) / math.sqrt(h) * 3).to(dtype)
    offset = torch.randn(v).to(dtype) if bias else None
    logits = head_logits(hidden, weight, offset, softcap)
    return hidden, weight, offset, make_case(logits=logits, **how)


def head_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    logits = hidden.double() @ weight.double().t() + (0 if bias is None else bias.double())
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def expected(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, case: Case, softcap: float | None, grad_output: float
) -> tuple[Tensor, list[Tensor]]:
    leaves = [x.double().requires_grad_() for x in (hidden, weight, bias) if x is not None]
    loss, _ = truth(head_logits(leaves[0], leaves[1], leaves[2] if bias is not None else None, softcap), case)
    return loss.detach(), list(torch.autograd.grad(loss * grad_output, leaves))


def on_device(case: Case) -> dict[str, Any]:
    return {k: x.to(DEVICE) if isinstance(x, Tensor) else x for k, x in case.arguments.items()}


def frobenius(got: Tensor, truth: Tensor) -> float:
    size = truth.norm().item()
    return (got.cpu().double() - truth).norm().item() / (size or 1.0)


def check(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, case: Case, softcap: float | None = None, **how: Any
) -> None:
    grad_output = 3.0
    loss_truth, grads_truth = expected(hidden, weight, bias, case, softcap, grad_output)
    leaves = [x.detach().clone().to(DEVICE).requires_grad_() for x in (hidden, weight, bias) if x is not None]
    loss, _ = linear_grpo_rank_loss(
        leaves[0],
        leaves[1],
        case.token_ids.to(DEVICE),
        bias=leaves[2] if bias is not None else None,
        softcap=softcap,
        **on_device(case),
        **how,
    )
    (loss * grad_output).backward()
    tolerance = FROBENIUS[hidden.dtype]
    assert abs(loss.item() - loss_truth.item()) <= tolerance * max(1.0, abs(loss_truth.item()))
    for leaf, grad in zip(leaves, grads_truth, strict=True):
        assert leaf.grad is not None
        assert leaf.grad.dtype == hidden.dtype
        assert leaf.grad.shape == leaf.shape
        assert frobenius(leaf.grad, grad) <= tolerance


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("v", [1000, 4097])
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_against_float64(implementation: str, dtype: torch.dtype, v: int, softcap: float | None) -> None:
    # Without old log-probs: a 16-bit logit's rounding would decide on which side of the clip a ratio falls.
    old = dtype == torch.float32
    *head, case = make_head(3, 5, 48, v, dtype, softcap, old=old, **SETTINGS)
    check(*head, case, softcap, implementation=implementation, chunk_size=4)


def test_float64_and_one_real_vocabulary() -> None:
    *head, case = make_head(2, 3, 32, 777, torch.float64, **SETTINGS)
    check(*head, case, implementation="torch", chunk_size=2)
    *head, case = make_head(2, 2, 16, 152064, torch.bfloat16, bias=False, mask="none", old=False, kl_coef=0.1)
    check(*head, case, implementation="triton")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_masks_ratios_and_normalisers(implementation: str, mask: str, ratio: str, loss_type: str) -> None:
    *head, case = make_head(
        3, 7, 24, 131, torch.float32, bias=False, mask=mask, ratio=ratio, loss_type=loss_type, **SETTINGS
    )
    check(*head, case, implementation=implementation, chunk_size=5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_ranks_in_place_of_advantages(implementation: str) -> None:
    hidden, weight, _, case = make_head(6, 3, 16, 90, torch.float32, bias=False, kl_coef=0.1)
    ranks = torch.tensor([[0, 1, 1], [2, -1, 0]])
    advantages, teaches = rank_advantage(ranks, group_size=3)
    case.advantages, case.mask = advantages.flatten(), case.mask & (teaches.flatten() > 0)[:, None]
    loss_truth, _ = expected(hidden, weight, None, case, None, 1.0)
    more = {**on_device(case), "advantages": None, "ranks": ranks.to(DEVICE), "group_size": 3}
    loss, _ = linear_grpo_rank_loss(
        hidden.to(DEVICE), weight.to(DEVICE), case.token_ids.to(DEVICE), implementation=implementation, **more
    )
    assert loss.item() == pytest.approx(loss_truth.item(), rel=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_ratio_of_an_unchanged_policy_is_exactly_one(implementation: str, dtype: torch.dtype) -> None:
    hidden, weight, bias, case = make_head(4, 6, 64, 513, dtype, 30.0)
    ids, mask = case.token_ids.to(DEVICE), case.mask.to(DEVICE)
    head = {"bias": None if bias is None else bias.to(DEVICE), "softcap": 30.0, "temperature": 0.7, "chunk_size": 5}
    head["implementation"] = implementation
    logps = linear_logps(hidden.to(DEVICE), weight.to(DEVICE), ids, mask=mask, **head)
    assert logps.dtype == torch.float32
    assert bool((logps[~mask] == 0).all())
    advantages = torch.ones(4, device=DEVICE)
    more = {"advantages": advantages, "mask": mask, "old_logps": logps, "ref_logps": logps, "kl_coef": 1.0}
    loss, metrics = linear_grpo_rank_loss(hidden.to(DEVICE), weight.to(DEVICE), ids, **more, **head)
    assert loss.item() == -1.0
    assert metrics["kl"].item() == 0.0


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_logps_against_float64_and_no_gradient(implementation: str) -> None:
    hidden, weight, bias, case = make_head(3, 4, 32, 300, torch.float32)
    truth = torch.log_softmax(head_logits(hidden, weight, bias, None), -1)
    truth = truth.gather(-1, case.token_ids.clamp(min=0)[..., None])[..., 0]
    assert bias is not None
    weight = weight.to(DEVICE).requires_grad_()
    ids = case.token_ids.clamp(min=0).to(DEVICE)
    logps = linear_logps(hidden.to(DEVICE), weight, ids, bias=bias.to(DEVICE), implementation=implementation)
    assert not logps.requires_grad
    torch.testing.assert_close(logps.cpu().double(), truth, atol=5e-6, rtol=5e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_an_excluding_bias(implementation: str) -> None:
    """A bias of -inf takes a token out of the vocabulary, as the framework does with placeholder tokens."""
    hidden, weight, _, case = make_head(3, 4, 16, 60, torch.float32, bias=False, old=False, **SETTINGS)
    bias = torch.zeros(60).index_fill(0, torch.tensor([3, 17, 59]), -math.inf)
    case.token_ids = torch.where(torch.isin(case.token_ids, torch.tensor([3, 17, 59])), 5, case.token_ids)
    leaves = [hidden.clone().to(DEVICE).requires_grad_(), weight.clone().to(DEVICE).requires_grad_()]
    for softcap in (None, 20.0):
        full = [x.detach().double().cpu().requires_grad_() for x in leaves]
        logits = head_logits(full[0], full[1], None, softcap) + bias.double()
        truth_loss, _ = truth(logits, case)
        grads = torch.autograd.grad(truth_loss, full)
        loss, _ = linear_grpo_rank_loss(
            *leaves,
            case.token_ids.to(DEVICE),
            bias=bias.to(DEVICE),
            softcap=softcap,
            implementation=implementation,
            **on_device(case),
        )
        found = torch.autograd.grad(loss, leaves)
        for grad, true in zip(found, grads, strict=True):
            assert frobenius(grad, true) <= 5e-6


def test_masked_tokens_are_not_computed_with_and_a_frozen_head_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, _, case = make_head(4, 10, 16, 200, torch.float32, bias=False, mask="ragged")
    computed: list[int] = []
    heads: list[int] = []
    original = rows.torch_statistics
    monkeypatch.setattr(rows, "torch_statistics", lambda x, *a: (computed.append(len(x)), original(x, *a))[1])
    gemm = linear._gemm
    monkeypatch.setattr(linear, "_gemm", lambda x, *a, **k: (heads.extend([1] * (x.shape[1] == 16)), gemm(x, *a, **k)))
    arguments = {**case.arguments, "implementation": "torch", "chunk_size": 8}
    linear_grpo_rank_loss(hidden.requires_grad_(), weight, case.token_ids, **arguments)[0].backward()
    assert sum(computed) == int(case.mask.sum())
    assert max(computed) <= 8
    assert heads == []
    assert weight.grad is None
    computed.clear()
    with torch.no_grad():  # a loss alone: one GEMM, no gradients
        loss, _ = linear_grpo_rank_loss(hidden, weight.requires_grad_(), case.token_ids, **arguments)
    assert heads == []
    assert not loss.requires_grad


@pytest.mark.parametrize("v", [8, 9, 1001, 20001])
def test_narrowing_in_place_equals_a_cast(v: int) -> None:
    """The float32 halves become one 16-bit matrix in the memory of the first."""
    whole = torch.randn(v, 5)
    for dtype in (torch.bfloat16, torch.float16):
        half = (v + 1) // 2
        first, second = whole[:half].clone(), whole[half:].clone()
        narrowed = linear.narrow(first, second, torch.tensor(0.3), dtype)
        assert torch.equal(narrowed, (whole * 0.3).to(dtype))
        assert narrowed.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_second_backward_raises(dtype: torch.dtype) -> None:
    hidden, weight, _, case = make_head(2, 3, 8, 40, dtype, bias=False)
    loss, _ = linear_grpo_rank_loss(
        hidden.to(DEVICE).requires_grad_(),
        weight.to(DEVICE).requires_grad_(),
        case.token_ids.to(DEVICE),
        **on_device(case),
    )
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_same_as_through_the_logits() -> None:
    hidden, weight, bias, case = make_head(3, 4, 32, 256, torch.float32, old=True, ref=True, **SETTINGS)
    one, metrics = linear_grpo_rank_loss(hidden, weight, case.token_ids, bias=bias, **case.arguments)
    two, expected_metrics = grpo_rank_loss(
        torch.nn.functional.linear(hidden, weight, bias), case.token_ids, **case.arguments
    )
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    assert metrics.keys() == expected_metrics.keys()
    for name in metrics:
        torch.testing.assert_close(metrics[name], expected_metrics[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(20, 7)}, r"must be \[V, 8\]"),
        ({"bias": torch.zeros(3)}, r"must be \[20\]"),
        ({"weight": torch.zeros(20, 8, dtype=torch.bfloat16)}, "weight is torch.bfloat16 but hidden is torch.float32"),
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"softcap": -1.0}, "softcap is -1.0"),
        ({"hidden": torch.zeros(3, 8)}, r"must be \[N, T, H\]"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "hidden": torch.zeros(2, 3, 8),
        "weight": torch.zeros(20, 8),
        "token_ids": torch.zeros(2, 3, dtype=torch.long),
        "mask": torch.ones(2, 3, dtype=torch.bool),
    } | change
    with pytest.raises(ValueError, match=message):
        linear_logps(**arguments)
    with pytest.raises(ValueError, match=message):
        linear_grpo_rank_loss(advantages=torch.ones(2), **arguments)
