"""Any inputs, any options, both implementations, every way in, against a float64 truth that shares no code."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from orlaif_kernels import grpo_rank_loss, linear_grpo_rank_loss
from torch import Tensor

from tests.kernels import truth

hypothesis = pytest.importorskip("hypothesis", reason="Hypothesis is a test dependency: pip install -e '.[dev]'")
given, settings, st = hypothesis.given, hypothesis.settings, hypothesis.strategies
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WAYS = ("logits", "in place", "one more position", "head", "head, float32 logits")


@st.composite
def problems(draw: Any) -> dict[str, Any]:
    """Everything that a loss can be told; numbers from a seed, so that what fails is small and repeats."""
    maybe = st.booleans()
    seed = draw(st.integers(0, 2**31))
    n, t, v = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.sampled_from([2, 5, 8, 31, 257, 1030]))
    torch.manual_seed(seed)
    logits = torch.randn(n, t, v, dtype=torch.float64) * draw(st.sampled_from([0.1, 3.0, 10.0]))
    logits += draw(st.sampled_from([0.0, 100.0, -1000.0]))
    ids = torch.randint(v, (n, t))
    if draw(maybe):  # one token nearly certain, the one that was drawn or another
        logits.scatter_add_(
            -1, (ids + draw(st.integers(0, 1))).remainder(v)[..., None], torch.tensor(12.0).double().expand(n, t, 1)
        )
    if v > 2 and draw(maybe):
        out = torch.rand(n, t, v) < 0.3
        logits = logits.masked_fill(out.scatter(-1, ids[..., None], False), -math.inf)
    mask = torch.rand(n, t) < draw(st.sampled_from([0.0, 0.6, 1.0]))
    packed = draw(maybe)
    told: dict[str, Any] = {
        "temperature": draw(st.sampled_from([1.0, 0.7, 1.9])),
        "softcap": draw(st.sampled_from([None, None, 30.0])),
        "logit_scale": draw(st.sampled_from([1.0, 0.25])),
        "clip_low": draw(st.sampled_from([0.2, 0.01])),
        "clip_high": draw(st.sampled_from([0.2, 0.4])),
        "delta": draw(st.sampled_from([None, 0.9, 1.1, 3.0])),
        "kl_coef": draw(st.sampled_from([0.0, 0.1])),
        "kl_estimator": draw(st.sampled_from(["k1", "k2", "k3"])),
        "kl_in": draw(st.sampled_from(["loss", "advantage"])),
        "entropy_coef": draw(st.sampled_from([0.0, 0.05, -0.2])),
        "loss_type": draw(st.sampled_from(["grpo", "dapo", "dr_grpo"])),
        "ratio": draw(st.sampled_from(["token", "sequence"])),
        "max_log_ratio": draw(st.sampled_from([20.0, 1.5, None])),
        "max_completion_length": draw(st.integers(1, 9)),
        "normalizer": draw(st.sampled_from([None, 0.5, 12.0])),
    }
    logits = logits.float().double()
    scaled = truth.scaled(logits, told["temperature"], told["softcap"], told["logit_scale"])
    logps = truth.statistics(scaled, ids)[0]
    # Away from the edges of clips and bounds, where a rounding decides on which side a ratio falls.
    shifts = torch.tensor([0.0, 0.05, -0.05, 0.3, 0.7, -0.7, 1.3, -1.9, 2.6] + [25.0, -25.0] * draw(maybe))
    old = (logps - shifts[torch.randint(len(shifts), (n, t))]).float() if draw(maybe) else None
    ref = (logps + torch.randn(n, t).clamp(-1.2, 1.2)).float() if told["kl_coef"] or draw(maybe) else None
    completions = n
    if packed:
        logits, ids, mask = (x.reshape(1, n * t, *x.shape[2:]) for x in (logits, ids, mask))
        old, ref = (None if x is None else x.reshape(1, -1) for x in (old, ref))
        ends = sorted(draw(st.lists(st.integers(0, n * t), max_size=3)))
        told["cu_seqlens"] = torch.tensor([0, *ends, n * t])
        completions = len(ends) + 1
    told["advantages"] = torch.randn(completions if draw(maybe) else ids.shape).mul(1.5)
    told["advantages"][torch.rand(told["advantages"].shape) < 0.15] = 0.0
    if draw(maybe):
        told["token_weights"] = torch.rand(ids.shape) * 2
    return {"logits": logits, "ids": ids, "mask": mask, "old_logps": old, "ref_logps": ref, **told}


def poisoned(x: Tensor | None, mask: Tensor) -> Tensor | None:
    return x if x is None or x.shape != mask.shape else x.masked_fill(~mask, math.nan)


def check(problem: dict[str, Any], way: str, implementation: str) -> None:
    told = dict(problem)
    logits, ids, mask = told.pop("logits"), told.pop("ids"), told.pop("mask")
    if way.startswith("head"):  # which makes no -inf, and what it makes instead a soft cap takes back
        logits = logits.masked_fill(logits == -math.inf, -1e30)
    exact = logits.clone().requires_grad_()
    loss, metrics = truth.loss(exact, ids, mask=mask, **told)
    (grad,) = torch.autograd.grad(loss * 3, exact, allow_unused=True)
    grad = torch.zeros_like(logits) if grad is None else grad
    told = {k: poisoned(x, mask) if isinstance(x, Tensor) else x for k, x in told.items()}
    told = {k: x.to(DEVICE) if isinstance(x, Tensor) else x for k, x in told.items()}
    told |= {"mask": mask.to(DEVICE), "implementation": implementation}
    ids = ids.masked_fill(~mask, -100).to(DEVICE)
    leaf = logits.float().masked_fill(~mask[..., None], math.nan).to(DEVICE)
    if way.startswith("head"):  # hidden states of which the head, an identity, makes just these logits
        leaf = leaf.requires_grad_()
        weight = torch.eye(logits.shape[-1], device=DEVICE)
        got, told_back = linear_grpo_rank_loss(leaf, weight, ids, chunk_size=3, fp32_logits="32" in way, **told)
    else:
        more = torch.full_like(leaf[:, :1], math.nan)
        leaf = (torch.cat([leaf, more], 1) if way == "one more position" else leaf).requires_grad_()
        got, told_back = grpo_rank_loss(leaf * 1, ids, inplace=way != "logits", **told)
    (got * 3).backward()
    assert leaf.grad is not None
    found = leaf.grad[:, : mask.shape[1]].cpu().double()
    if way == "one more position":
        assert bool((leaf.grad[:, -1] == 0).all())
    assert bool((found[~mask] == 0).all())
    size = float(grad.abs().max()) or 1.0
    error = float((found - grad).abs().max())
    assert error <= 5e-6 * size, f"gradient off by {error / size}"
    assert abs(float(got) - float(loss)) <= 1e-5 * max(1.0, abs(float(loss)))
    assert told_back.keys() == metrics.keys()
    for name, value in metrics.items():
        assert float(told_back[name]) == pytest.approx(float(value), rel=1e-4, abs=2e-5), name


def fuzz(count: int, implementation: str) -> None:
    checks = list(hypothesis.HealthCheck)

    @settings(max_examples=count, deadline=None, derandomize=True, suppress_health_check=checks, database=None)
    @given(problem=problems(), way=st.sampled_from(WAYS))
    def run(problem: dict[str, Any], way: str) -> None:
        check(problem, way, implementation)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run()


@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_a_hundred_problems(implementation: str) -> None:
    fuzz(100, implementation)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_a_thousand_problems(implementation: str) -> None:
    fuzz(1000, implementation)
