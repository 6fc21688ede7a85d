"""Against independent implementations: TRL's trainer and Liger's kernels, where their variants coincide with ours.

Where they do not, because of one of their bugs, a test says which, and what is right; it skips once they have fixed it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from orlaif_kernels import grpo_rank_loss, linear_grpo_rank_loss
from torch import Tensor

from tests.kernels.cases import Case, make_case, relative

pytest.importorskip("trl", reason="TRL is a test dependency: pip install -e '.[dev]'")
pytest.importorskip("liger_kernel", reason="Liger is a test dependency: pip install -e '.[dev]'")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LOSS_TYPES = ("grpo", "dapo", "dr_grpo")


def ours(case: Case) -> tuple[Tensor, Tensor]:
    """By the Triton kernels."""
    leaf = case.logits.detach().clone().to(DEVICE).requires_grad_()
    arguments = {k: x.to(DEVICE) if isinstance(x, Tensor) else x for k, x in case.arguments.items()}
    loss, _ = grpo_rank_loss(leaf, case.token_ids.to(DEVICE), implementation="triton", **arguments)
    (grad,) = torch.autograd.grad(loss, leaf)
    return loss.detach().cpu(), grad.cpu()


def clean(case: Case) -> Case:
    """Without poison in masked places, which others would let through."""
    case.token_ids = case.token_ids.clamp(min=0)
    case.old_logps = None if case.old_logps is None else case.old_logps.nan_to_num(-1.0)
    case.ref_logps = None if case.ref_logps is None else case.ref_logps.nan_to_num(-1.0)
    return case


# ---------------------------------------------------------------------------------------------------------------- TRL


def trl_loss(case: Case) -> tuple[Tensor, Tensor]:
    """``GRPOTrainer._compute_loss`` itself, with the model's part replaced by the case's logits."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    settings: dict[str, Any] = {"kl_coef": 0.0, "entropy_coef": 0.0, "loss_type": "dapo", "ratio": "token"}
    settings |= case.settings
    leaf = case.logits.detach().clone().requires_grad_()

    def logps_and_entropies(*_: Any, **__: Any) -> tuple[Tensor, Tensor, None]:
        logps = torch.log_softmax(leaf / settings.get("temperature", 1.0), -1)
        chosen = logps.gather(-1, case.token_ids[..., None])[..., 0]
        return chosen, -(logps.exp() * logps).sum(-1), None

    fake = SimpleNamespace(
        _get_per_token_logps_and_entropies=logps_and_entropies,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=settings["ratio"],
        beta=settings["kl_coef"],
        epsilon_low=settings.get("clip_low", 0.2),
        epsilon_high=settings.get("clip_high", 0.2),
        loss_type=settings["loss_type"],
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        current_gradient_accumulation_steps=1,
        max_completion_length=case.mask.shape[1],
        _entropy_bonus_enabled=settings["entropy_coef"] != 0,
        use_adaptive_entropy=False,
        entropy_coef=settings["entropy_coef"],
        _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(
            delta=settings.get("delta"),
            use_bias_correction_kl=False,
            steps_per_generation=1,
            sapo_temperature_pos=settings.get("tau_pos"),
            sapo_temperature_neg=settings.get("tau_neg"),
        ),
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x, sync_gradients=True
        ),
    )
    none = torch.zeros(case.mask.shape[0], 1, dtype=torch.long)
    inputs = {
        "prompt_ids": none,
        "prompt_mask": none,
        "completion_ids": case.token_ids,
        "completion_mask": case.mask.long(),
        "advantages": case.advantages,
        "num_items_in_batch": case.mask.sum(),
    }
    if case.old_logps is not None:
        inputs["old_per_token_logps"] = case.old_logps
    if case.ref_logps is not None:
        inputs["ref_per_token_logps"] = case.ref_logps
    loss = GRPOTrainer._compute_loss(fake, fake.model, inputs)
    (grad,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), grad


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("delta", [None, 1.05, 1.5])
@pytest.mark.parametrize("old", [False, True])
def test_trl(loss_type: str, ratio: str, delta: float | None, old: bool) -> None:
    case = clean(
        make_case(
            3,
            4,
            50,
            old=old,
            mask="ragged",
            loss_type=loss_type,
            ratio=ratio,
            delta=delta,
            kl_coef=0.1,
            clip_high=0.3,
            temperature=0.7,
        )
    )
    theirs, their_grad = trl_loss(case)
    loss, grad = ours(case)
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5, abs=1e-6)
    assert relative(grad, their_grad.double()) <= 2e-5


def test_trl_entropy_bonus() -> None:
    """With ``dapo`` TRL's mean over tokens and our normaliser are the same; with others its bonus has one of its
    own."""
    case = clean(make_case(4, 6, 50, mask="ragged", entropy_coef=0.1, loss_type="dapo"))
    theirs, their_grad = trl_loss(case)
    loss, grad = ours(case)
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert relative(grad, their_grad.double()) <= 2e-5


# -------------------------------------------------------------------------------------------------------------- Liger


def liger_loss(case: Case) -> tuple[Tensor, Tensor]:
    """Liger's Triton loss from logits, which wants one position more than there are tokens."""
    from liger_kernel.transformers.grpo_loss import triton_grpo_loss

    settings = {
        "clip_low": 0.2,
        "clip_high": 0.2,
        "kl_coef": 0.0,
        "loss_type": "dapo",
        "ratio": "token",
    } | case.settings
    n, _, v = case.logits.shape
    leaf = torch.cat([case.logits, torch.zeros(n, 1, v, dtype=case.logits.dtype)], 1).to(DEVICE).requires_grad_()
    move = {k: x.to(DEVICE) if isinstance(x, Tensor) else x for k, x in case.arguments.items()}
    loss, _ = triton_grpo_loss(
        leaf,
        move["old_logps"],
        move["ref_logps"],
        case.token_ids.to(DEVICE),
        move["advantages"],
        completion_mask=move["mask"].to(torch.int32),
        temperature=settings.get("temperature", 1.0),
        beta=settings["kl_coef"],
        eps_low=settings["clip_low"],
        eps_high=settings["clip_high"],
        delta=settings.get("delta"),
        loss_type=settings["loss_type"],
        importance_sampling_level=settings["ratio"],
        inplace=False,
        reduce=True,
    )
    (grad,) = torch.autograd.grad(loss, leaf)
    return loss.detach().cpu(), grad[:, :-1].cpu()


def liger_linear_loss(hidden: Tensor, weight: Tensor, case: Case) -> tuple[Tensor, Tensor, Tensor]:
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    settings = {"kl_coef": 0.0, "loss_type": "dapo", "ratio": "token"} | case.settings
    leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    function = LigerFusedLinearGRPOLoss(
        beta=settings["kl_coef"],
        compiled=False,
        use_ref_model=settings["kl_coef"] != 0,
        loss_type=settings["loss_type"],
        importance_sampling_level=settings["ratio"],
        max_completion_length=case.mask.shape[1],
        temperature=settings.get("temperature", 1.0),
    )
    loss, _ = function(
        leaves[0],
        leaves[1],
        case.token_ids,
        case.mask.long(),
        case.advantages,
        ref_per_token_logps=case.ref_logps,
        old_per_token_logps=case.old_logps,
    )
    return (loss.detach(), *torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("delta", [None, 1.5])
def test_liger_from_logits(loss_type: str, ratio: str, delta: float | None) -> None:
    case = clean(
        make_case(3, 4, 300, mask="ragged", loss_type=loss_type, ratio=ratio, delta=delta, kl_coef=0.1, temperature=0.7)
    )
    theirs, their_grad = liger_loss(case)
    loss, grad = ours(case)
    assert loss.item() == pytest.approx(theirs.item(), rel=2e-5, abs=1e-6)
    assert relative(grad, their_grad.double()) <= 2e-5


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_liger_fused_linear(loss_type: str, ratio: str) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(3, 4, 16), torch.randn(60, 16)
    case = clean(make_case(logits=hidden @ weight.t(), loss_type=loss_type, ratio=ratio, kl_coef=0.1))
    theirs, *their_grads = liger_linear_loss(hidden, weight, case)
    leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
    loss, _ = linear_grpo_rank_loss(*leaves, case.token_ids, **case.arguments)
    assert loss.item() == pytest.approx(theirs.item(), rel=2e-5, abs=1e-6)
    for grad, their_grad in zip(torch.autograd.grad(loss, leaves), their_grads, strict=True):
        assert relative(grad, their_grad.double()) <= 2e-5


def wrong(theirs: float, right: float, bug: str) -> None:
    """Skip, saying so, where a version has no longer the bug that this test is about."""
    if theirs == pytest.approx(right, rel=1e-4, abs=1e-6):
        pytest.skip(f"liger-kernel {version('liger-kernel')} is right here; it had a bug: {bug}")


def test_liger_bug_an_excluded_first_block_is_nan() -> None:
    """Its online maximum starts with -inf - -inf where the first 2048 logits are all -inf."""
    logits = torch.randn(1, 2, 5000)
    logits[..., :2048] = -math.inf
    case = make_case(logits=logits, mask="none", old=False, ref=False)
    case.advantages = torch.ones(1)
    case.token_ids = torch.full((1, 2), 3000)
    right, right_grad, _ = case.truth()
    loss, grad = ours(case)
    assert relative(grad, right_grad) <= 5e-6
    theirs, _ = liger_loss(case)
    # In the loss the NaN hides behind the clip: a ratio of NaN comes out of it as one of its edges.
    wrong(theirs.item(), right.item(), "NaN log-probs where the first block is excluded")
    assert loss.item() == pytest.approx(right.item())


def test_liger_bug_delta_below_the_clip_stops_gradients_that_should_flow() -> None:
    """A < 0, delta = 1.05 < w = 1.1 < 1.2: the clipped branch, w A, is the minimum, and its gradient is not zero."""
    case = make_case(1, 1, 50, mask="none", ref=False, delta=1.05)
    logp = torch.log_softmax(case.logits.double(), -1).gather(-1, case.token_ids[..., None])[..., 0]
    case.old_logps, case.advantages = (logp - math.log(1.1)).float(), torch.tensor([-1.0])
    _, right_grad, _ = case.truth()
    assert right_grad.abs().max().item() > 0.1
    assert relative(ours(case)[1], right_grad) <= 5e-6
    their_grad = liger_loss(case)[1]
    wrong(relative(their_grad, right_grad), 0.0, "no gradient for delta below 1 + eps_high")
    assert their_grad.abs().max().item() == 0.0


def test_liger_bug_a_clipped_ratio_that_overflows_is_nan() -> None:
    """A > 0, w = exp(300): the clip binds, the gradient is 0, and inf * 0 is not."""
    case = make_case(1, 1, 50, mask="none", ref=False)
    logp = torch.log_softmax(case.logits.double(), -1).gather(-1, case.token_ids[..., None])[..., 0]
    case.old_logps, case.advantages = (logp - 300).float(), torch.tensor([1.0])
    loss, grad = ours(case)
    assert loss.item() == pytest.approx(-1.2)
    assert grad.abs().max().item() == 0.0
    their_grad = liger_loss(case)[1]
    wrong(float(their_grad.abs().max()), 0.0, "NaN gradient for a clipped ratio that overflows")
    assert their_grad.isnan().any()


def test_liger_bug_nan_in_a_masked_place_spoils_the_fused_loss() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(2, 3, 16), torch.randn(60, 16)
    case = make_case(logits=hidden @ weight.t(), mask="ragged", kl_coef=0.1)
    right, _, _ = case.truth()
    loss, _ = linear_grpo_rank_loss(hidden, weight, case.token_ids, **case.arguments)
    assert loss.item() == pytest.approx(right.item(), rel=1e-5)
    case.token_ids = case.token_ids.clamp(min=0)
    theirs, *_ = liger_linear_loss(hidden, weight, case)
    wrong(theirs.item(), right.item(), "NaN where a masked place holds one")
    assert math.isnan(theirs.item())
