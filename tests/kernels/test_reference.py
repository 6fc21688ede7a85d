"""The plain-PyTorch loss against numbers worked out by hand, and against a naive loop in float64."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from orlaif_kernels import grpo_rank_loss
from orlaif_kernels.objective import loss_weights

from tests.conftest import REPO


def naive(
    logits,
    ids,
    advantages,
    mask,
    old,
    ref,
    *,
    temperature,
    low,
    high,
    kl_coef,
    estimator,
    entropy_coef,
    loss_type,
    length,
):
    """The definition, token by token, as a mathematician would write it; returns the loss alone."""
    rows, count = [], 0
    for n in range(logits.shape[0]):
        terms = []
        for t in range(logits.shape[1]):
            if not mask[n, t]:
                continue
            logp_all = torch.log_softmax(logits[n, t] / temperature, -1)
            logp = logp_all[ids[n, t]]
            w = torch.exp(logp - (logp.detach() if old is None else old[n, t]))
            term = torch.min(w * advantages[n], w.clamp(1 - low, 1 + high) * advantages[n])
            if kl_coef:
                x = ref[n, t] - logp
                term = term - kl_coef * {"k1": -x, "k2": x**2 / 2, "k3": torch.exp(x) - x - 1}[estimator]
            term = term - entropy_coef * (logp_all.exp() * logp_all).sum()
            terms.append(term)
        if terms:
            count += len(terms)
            rows.append(torch.stack(terms))
    if loss_type == "grpo":
        return -torch.stack([row.mean() for row in rows]).mean()
    total = torch.cat(rows).sum()
    return -total / (count if loss_type == "dapo" else len(rows) * length)


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("with_old", [False, True])
def test_loss_and_gradient_equal_the_definition(loss_type: str, estimator: str, with_old: bool) -> None:
    torch.manual_seed(0)
    n, t, v = 6, 5, 11
    logits = torch.randn(n, t, v, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(v, (n, t))
    mask = torch.arange(t) < torch.tensor([5, 3, 1, 0, 4, 2])[:, None]
    advantages = torch.randn(n, dtype=torch.float64)
    advantages[4] = 0.0
    old = torch.randn(n, t, dtype=torch.float64) * 2 - 2 if with_old else None
    ref = torch.randn(n, t, dtype=torch.float64) - 2
    settings = {"temperature": 0.7, "kl_coef": 0.3, "entropy_coef": 0.05, "loss_type": loss_type}
    expected = naive(
        logits, ids, advantages, mask, old, ref, low=0.2, high=0.3, estimator=estimator, length=t, **settings
    )
    (expected_grad,) = torch.autograd.grad(expected, logits)
    bad = torch.where(mask, ids, -100)  # masked places may hold anything
    loss, metrics = grpo_rank_loss(
        logits,
        bad,
        advantages=advantages,
        mask=mask,
        old_logps=None if old is None else old.masked_fill(~mask, math.nan),
        ref_logps=ref.masked_fill(~mask, math.nan),
        clip_low=0.2,
        clip_high=0.3,
        kl_estimator=estimator,
        max_completion_length=t,
        **settings,
    )
    (grad,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(loss, expected, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(grad, expected_grad, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(metrics["loss"], expected.detach(), atol=1e-12, rtol=1e-12)


def one_token(ratio: float, advantage: float, **settings: float) -> tuple[float, float, dict]:
    """Loss, d loss / d logp and metrics of a single token with the given ratio."""
    logits = torch.zeros(1, 1, 2, dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[math.log(0.5) - math.log(ratio)]], dtype=torch.float64)
    loss, metrics = grpo_rank_loss(
        logits,
        torch.tensor([[0]]),
        advantages=torch.tensor([advantage]),
        mask=torch.tensor([[True]]),
        old_logps=old,
        **settings,
    )
    loss.backward()
    return float(loss.detach()), float(logits.grad[0, 0, 0] / 0.5), metrics  # d logp / d logit = 1 - p = 0.5


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 2.0, -2.2, -2.2),  # inside
        (1.5, 2.0, -2.4, 0.0),  # clipped above: 1.2 * 2
        (0.5, 2.0, -1.0, -1.0),  # below, but the minimum is the unclipped one
        (0.5, -2.0, 1.6, 0.0),  # clipped below: 0.8 * -2
        (1.5, -2.0, 3.0, 3.0),
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_clipping_by_hand(ratio: float, advantage: float, loss: float, gradient: float) -> None:
    got_loss, got_gradient, metrics = one_token(ratio, advantage)
    assert got_loss == pytest.approx(loss, abs=1e-7)
    assert got_gradient == pytest.approx(gradient, abs=1e-7)
    assert float(metrics["clip_ratio/high_mean"]) == (ratio == 1.5 and advantage > 0)
    assert float(metrics["clip_ratio/low_mean"]) == (ratio == 0.5 and advantage < 0)
    assert metrics["clip_ratio/region_mean"] == metrics["clip_ratio/low_mean"] + metrics["clip_ratio/high_mean"]


@pytest.mark.parametrize("advantage", [1.0, 0.0])
def test_an_overflowing_ratio_gives_no_nan(advantage: float) -> None:
    loss, gradient, _ = one_token(math.exp(300), advantage)
    assert loss == pytest.approx(-1.2 * advantage)
    assert gradient == 0.0


def test_excluded_entries_of_the_vocabulary() -> None:
    """Logits of -inf take no probability, add no entropy, and get no gradient, NaN least of all."""
    logits = torch.tensor([[[0.0, -math.inf, 0.0]]], dtype=torch.float64, requires_grad=True)
    loss, metrics = grpo_rank_loss(
        logits, torch.tensor([[2]]), advantages=torch.tensor([1.0]), mask=torch.tensor([[True]]), entropy_coef=1.0
    )
    loss.backward()
    assert float(metrics["entropy"]) == pytest.approx(math.log(2))
    assert logits.grad[0, 0].tolist() == pytest.approx([0.5, 0.0, -0.5])


def test_k3_and_entropy_by_hand() -> None:
    """Policy 1/2, reference 1/4 at the token: k3 = 1/2 - 1 + ln 2; entropy ln 2."""
    logits = torch.zeros(1, 1, 2, requires_grad=True)
    loss, metrics = grpo_rank_loss(
        logits,
        torch.tensor([[0]]),
        advantages=torch.zeros(1),
        mask=torch.tensor([[True]]),
        ref_logps=torch.tensor([[math.log(0.25)]]),
        kl_coef=2.0,
    )
    assert float(metrics["kl"]) == pytest.approx(math.log(2) - 0.5)
    assert float(loss.detach()) == pytest.approx(2 * (math.log(2) - 0.5))
    assert float(metrics["entropy"]) == pytest.approx(math.log(2))


def test_all_masked_is_a_zero_that_still_has_a_gradient() -> None:
    logits = torch.randn(2, 3, 5, requires_grad=True)
    mask = torch.zeros(2, 3, dtype=torch.bool)
    loss, _ = grpo_rank_loss(logits, torch.full((2, 3), -100), advantages=torch.ones(2), mask=mask)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert bool((logits.grad == 0).all())


def test_normalisers_add_up_over_batches() -> None:
    torch.manual_seed(0)
    logits, ids = torch.randn(4, 3, 7), torch.randint(7, (4, 3))
    mask = torch.arange(3) < torch.tensor([3, 1, 2, 0])[:, None]
    advantages = torch.randn(4)
    for loss_type in ("grpo", "dapo", "dr_grpo"):
        whole, _ = grpo_rank_loss(
            logits, ids, advantages=advantages, mask=mask, loss_type=loss_type, max_completion_length=3
        )
        total = torch.zeros(())
        count = torch.zeros(())
        for part in (slice(0, 1), slice(1, 4)):
            settings = {"advantages": advantages[part], "mask": mask[part], "loss_type": loss_type}
            total += grpo_rank_loss(logits[part], ids[part], normalizer=1.0, **settings)[0]
            count += loss_weights(mask[part], loss_type, 3)[1]
        torch.testing.assert_close(total / count, whole)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kl_coef": 0.1}, "ref_logps is missing"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"loss_type": "ppo"}, "'ppo'"),
        ({"clip_high": -0.1}, "clip_high is -0.1"),
        ({"delta": 0.0}, "delta is 0.0"),
        ({"ratio": "group"}, "'group'"),
        ({"implementation": "cuda"}, "'cuda'"),
        ({"advantages": None}, "exactly one of advantages and ranks"),
        ({"ranks": torch.zeros(1, dtype=torch.long)}, "exactly one of advantages and ranks"),
        ({"advantages": torch.ones(2)}, r"advantages have shape \(2,\)"),
        ({"mask": torch.ones(1, 2, dtype=torch.bool)}, r"mask has shape \(1, 2\)"),
        ({"ref_logps": torch.zeros(2)}, r"ref_logps has shape \(2,\)"),
        ({"advantages": None, "ranks": torch.zeros(1, dtype=torch.long)}, "ranks need group_size"),
        (
            {"advantages": None, "ranks": torch.zeros(1, dtype=torch.long), "group_size": 1, "mapping": "zscore"},
            "needs scores",
        ),
        (
            {"advantages": None, "ranks": torch.zeros(1, dtype=torch.long), "group_size": 1, "mapping": "ndcg_penalty"},
            "needs old_logps",
        ),
        ({"kl_coef": 0.1, "ref_logps": torch.zeros(1, 1), "kl_estimator": "k4"}, "'k4'"),
    ],
)
def test_mistakes_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grpo_rank_loss(
            torch.zeros(1, 1, 2),
            torch.zeros(1, 1, dtype=torch.long),
            **{"advantages": torch.ones(1), "mask": torch.ones(1, 1, dtype=torch.bool), **settings},
        )


def test_the_kernels_package_stands_alone() -> None:
    heavy = "{'orlaif', 'lightning', 'transformers'}"
    code = f"import sys, orlaif_kernels; assert not {heavy} & {{m.split('.')[0] for m in sys.modules}}"
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(REPO / "kernels"), "PATH": "/usr/bin:/bin"}
    )
