"""What a careless or hostile caller hands over: a sentence or NaN, from both implementations alike."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from orlaif_kernels import grpo_rank_loss, linear_grpo_rank_loss, linear_policy_loss, rank_advantage, token_statistics
from torch import Tensor

from tests.kernels import truth
from tests.kernels.cases import relative

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
both = pytest.mark.parametrize("implementation", ["torch", "triton"])


def call(change: dict[str, Any], implementation: str = "torch") -> Tensor:
    told = {"mask": torch.ones(2, 3).bool(), "advantages": torch.ones(2), "implementation": implementation} | change
    told = {k: x.to(DEVICE) if isinstance(x, Tensor) else x for k, x in told.items()}
    logits = told.pop("logits", torch.zeros(2, 3, 5, device=DEVICE))
    return grpo_rank_loss(logits, told.pop("token_ids", torch.zeros(2, 3, device=DEVICE).long()), **told)[0]


@both
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": "1"}, "temperature is '1'; it must be a number"),
        ({"delta": True}, "delta is True; it must be a number"),
        ({"clip_low": torch.tensor(0.1)}, r"clip_low is tensor.*; it must be a number"),
        ({"softcap": math.inf}, "softcap is inf; it must be positive and finite, or None"),
        ({"normalizer": "3"}, "normalizer is '3'; it must be a number"),
        ({"normalizer": 10**400}, "normalizer is beyond what a float holds"),
        ({"mask": [[1, 1, 1]] * 2}, "mask is a list; it must be a Tensor"),
        ({"advantages": [1.0, 2.0]}, "advantages is a list; it must be a Tensor"),
        ({"old_logps": torch.zeros(2, 3).to(torch.complex64)}, r"old_logps is torch.complex64; it must be real"),
        ({"logits": [1.0]}, "logits is a list; it must be a Tensor"),
        ({"logits": torch.zeros(2, 3, 0)}, r"logits has shape \(2, 3, 0\); it must be \[N, T, V\], V 1 or more"),
        ({"advantages": None, "ranks": torch.zeros(2).long(), "group_size": 2.0}, "group_size is 2.0; it must be a wh"),
        ({"loss_type": "dr_grpo", "max_completion_length": 2.5}, "max_completion_length is 2.5; it must be a whole"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], message: str, implementation: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(change, implementation)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float8_e4m3fn])
def test_logits_are_of_four_dtypes(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=rf"logits are {dtype}; they must be float32, bfloat16, float16 or float64"):
        call({"logits": torch.zeros(2, 3, 5).to(dtype)})


@both
def test_a_head_without_rows_and_terms_that_are_none(implementation: str) -> None:
    told: dict[str, Any] = {"mask": torch.ones(1, 2, device=DEVICE).bool(), "advantages": torch.ones(1, device=DEVICE)}
    told["implementation"] = implementation
    hidden, ids = torch.zeros(1, 2, 4, device=DEVICE), torch.zeros(1, 2, device=DEVICE).long()
    with pytest.raises(ValueError, match=r"weight has shape \(0, 4\)"):
        linear_grpo_rank_loss(hidden, torch.zeros(0, 4, device=DEVICE), ids, **told)
    head = torch.ones(3, 4, device=DEVICE)
    with pytest.raises(ValueError, match="chunk_size is '3'; it must be a whole number"):
        linear_grpo_rank_loss(hidden, head, ids, chunk_size="3", **told)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"vocabulary_group is 'x'; it must be a torch\.distributed\.ProcessGroup"):
        linear_grpo_rank_loss(hidden, head, ids, vocabulary_group="x", **told)  # type: ignore[arg-type]
    for objective in (lambda **_: None, lambda logp, **_: (logp, {}, 1)):
        with pytest.raises(ValueError, match=r"the objective's terms are .*; they must be a real Tensor"):
            linear_policy_loss(hidden, head, ids, objective, **told)


@both
def test_transforms_of_functions_are_refused(implementation: str) -> None:
    """Some would run, and give a derivative of 0."""
    logits = torch.zeros(2, 3, 5, device=DEVICE)
    with pytest.raises(RuntimeError, match=r"use torch.autograd"):
        torch.func.grad(lambda x: call({"logits": x}, implementation))(logits)
    with pytest.raises(RuntimeError, match=r"use torch.autograd"):
        torch.func.jvp(lambda x: call({"logits": x}, implementation), (logits,), (logits,))
    with pytest.raises(RuntimeError, match=r"use torch.autograd"):
        torch.func.vmap(lambda x: call({"logits": x}, implementation))(logits[None])


@both
def test_an_infinite_logit_beside_the_target_is_no_finite_loss(implementation: str) -> None:
    logits = torch.zeros(2, 3, 5)
    logits[1, 2, 4] = math.inf
    logps, entropy = token_statistics(
        logits.to(DEVICE), torch.zeros(2, 3, device=DEVICE).long(), implementation=implementation
    )
    assert logps.isnan().nonzero().tolist() == entropy.isnan().nonzero().tolist() == [[1, 2]]


@both
def test_a_sequence_logp_of_nan_has_no_place_in_a_group(implementation: str) -> None:
    ranks = torch.tensor([[0, 1], [1, 0]], device=DEVICE)
    logps = torch.tensor([[-1.0, -2.0], [math.nan, -3.0]], device=DEVICE)
    told: dict[str, Any] = {"mapping": "ndcg_penalty", "implementation": implementation}
    advantages, _ = rank_advantage(ranks, group_size=2, sequence_logps=logps, **told)
    assert advantages.isnan().tolist() == [[False, False], [True, True]]
    with pytest.raises(ValueError, match=r"sequence_logps are torch.int64; they must be floating point"):
        rank_advantage(ranks, group_size=2, sequence_logps=ranks, **told)


@both
@pytest.mark.parametrize("around", ["middle", "limit", "far below", "either limit"])
def test_neighbours_under_a_soft_cap_stay_apart(around: str, implementation: str) -> None:
    """c tanh(a) - c tanh(b), each rounded at c's size and divided by a temperature of 0.05, errs by 2e-5."""
    noise = torch.randn(1, 6, 257, generator=torch.Generator().manual_seed(1))
    places = {
        "middle": 20 + noise,
        "limit": 200 + 5 * noise,
        "far below": 20 * noise - 100,
        "either limit": 2e3 * noise,
    }
    logits, ids = places[around], torch.arange(6)[None] * 40
    leaf, exact = logits.to(DEVICE).requires_grad_(), logits.double().requires_grad_()
    given: dict[str, Any] = {"temperature": 0.05, "softcap": 30.0}
    logps, entropy = token_statistics(leaf, ids.to(DEVICE), implementation=implementation, **given)
    (grad,) = torch.autograd.grad(logps.sum() - 0.1 * entropy.sum(), leaf)
    true, true_entropy = truth.statistics(truth.scaled(exact[0], logit_scale=1.0, **given), ids[0])
    (true_grad,) = torch.autograd.grad(true.sum() - 0.1 * true_entropy.sum(), exact)
    assert relative(grad.cpu(), true_grad) < 2e-6
    assert relative(logps.detach().cpu()[0], true) < 4e-7
