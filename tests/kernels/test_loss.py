"""``grpo_rank_loss`` by its Triton kernels (in the interpreter without a GPU), against float64 autograd."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from orlaif_kernels import grpo_rank_loss, rank_advantage
from torch import Tensor

from tests.kernels.cases import MASKS, TOLERANCE, Case, make_case, relative

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def poisoned_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every uninitialised float buffer is full of NaN: what a kernel forgets to write shows."""
    for name in ("empty", "empty_like", "empty_strided"):
        original = getattr(torch, name)

        def poisoned(*args: Any, _original: Any = original, **kwargs: Any) -> Tensor:
            out = _original(*args, **kwargs)
            return out.fill_(math.nan) if out.dtype.is_floating_point and out.device.type != "meta" else out

        monkeypatch.setattr(torch, name, poisoned)


def run(
    case: Case, *, grad_output: float = 1.0, inplace: bool = False, implementation: str = "triton", **more: Any
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Loss, gradient and metrics, all on the CPU."""
    leaf = case.logits.detach().clone().to(DEVICE).requires_grad_()
    arguments = {k: x.to(DEVICE) if isinstance(x, Tensor) else x for k, x in {**case.arguments, **more}.items()}
    loss, metrics = grpo_rank_loss(
        leaf * 1, case.token_ids.to(DEVICE), inplace=inplace, implementation=implementation, **arguments
    )
    (loss * grad_output).backward()
    assert leaf.grad is not None
    return loss.detach().cpu(), leaf.grad.cpu(), {k: x.cpu() for k, x in metrics.items()}


def check(case: Case, **how: Any) -> None:
    grad_output = how.get("grad_output", 1.0)
    expected_loss, expected_grad, expected_metrics = case.truth(grad_output)
    loss, grad, metrics = run(case, **how)
    assert grad.dtype == case.logits.dtype
    assert loss.dtype == torch.float32
    # The loss is a sum of terms of either sign; what it may err by is set by their size.
    assert abs(loss.item() - expected_loss.item()) <= 5e-6 * max(1.0, abs(expected_loss.item()))
    assert relative(grad, expected_grad) <= TOLERANCE[case.logits.dtype]
    assert metrics.keys() == expected_metrics.keys()
    for name, value in expected_metrics.items():
        assert metrics[name].item() == pytest.approx(float(value), rel=2e-5, abs=2e-5), name


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("v", [1000, 4096, 4097, 32003])
def test_against_float64(v: int, dtype: torch.dtype, inplace: bool) -> None:
    case = make_case(
        2, 3, v, dtype=dtype, temperature=0.8, kl_coef=0.1, entropy_coef=0.05, delta=1.5, clip_high=0.3, seed=v
    )
    check(case, inplace=inplace, grad_output=3.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_real_vocabulary(dtype: torch.dtype) -> None:
    check(make_case(1, 3, 152064, dtype=dtype, mask="none", kl_coef=0.1, entropy_coef=0.01), inplace=True)


@pytest.mark.parametrize("t", [1, 3])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_masks_lengths_normalisers_and_ratios(t: int, mask: str, loss_type: str, ratio: str) -> None:
    case = make_case(3, t, 257, mask=mask, kl_coef=0.1, entropy_coef=0.05, loss_type=loss_type, ratio=ratio, seed=t)
    check(case, inplace=False)
    check(case, inplace=True, grad_output=0.5)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("delta", [None, 1.1, 1.5, 0.9])
def test_estimators_and_delta_on_both_sides_of_the_clip(estimator: str, old: bool, delta: float | None) -> None:
    check(make_case(4, 4, 129, mask="none", old=old, kl_estimator=estimator, kl_coef=0.2, delta=delta))


@pytest.mark.parametrize("settings", [{}, {"kl_coef": 0.0, "entropy_coef": 0.0}, {"clip_low": 0.0, "clip_high": 0.0}])
def test_coefficients_of_zero(settings: dict[str, float]) -> None:
    """With equal ratios and a clip of width 0 the gradient must still flow, as it does through torch.clamp."""
    check(make_case(3, 4, 64, old=False, ref=False, **settings))
    check(make_case(3, 4, 64, old=False, ref=True, **settings))


@pytest.mark.parametrize("where", ["first block", "middle", "all but the target"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("v", [40000, 4097])
def test_excluded_entries(where: str, dtype: torch.dtype, v: int) -> None:
    torch.manual_seed(0)
    logits = (torch.randn(2, 2, v) * 3).to(dtype)
    case = make_case(logits=logits, mask="none", old=False, ref=False, entropy_coef=0.1)
    target = case.token_ids
    excluded = {"first block": slice(0, 20000), "middle": slice(v // 3, 2 * v // 3), "all but the target": slice(0, v)}
    kept = logits.gather(-1, target[..., None])
    case.logits = logits.index_fill(-1, torch.arange(v)[excluded[where]], -math.inf).scatter(
        -1, target[..., None], kept
    )
    for inplace in (False, True):
        check(case, inplace=inplace)


@pytest.mark.parametrize("implementation", ["torch", "triton"])
@pytest.mark.parametrize(
    ("log_ratio", "advantage", "delta", "loss", "slope"),
    [
        (300.0, 1.0, None, -1.2, 0.0),
        (300.0, 0.0, None, 0.0, 0.0),
        (300.0, -1.0, 3.0, 3.0, 0.0),
        (-300.0, 1.0, None, 0.0, 0.0),
        (-300.0, -1.0, None, 0.8, 0.0),
        (-300.0, 0.0, 3.0, 0.0, 0.0),
    ],
)
def test_ratios_beyond_float32(
    implementation: str, log_ratio: float, advantage: float, delta: float | None, loss: float, slope: float
) -> None:
    case = make_case(1, 1, 50, mask="none", ref=False, delta=delta)
    assert case.old_logps is not None
    logp = torch.log_softmax(case.logits.double(), -1).gather(-1, case.token_ids[..., None])[..., 0]
    case.old_logps = (logp - log_ratio).float()
    case.advantages = torch.tensor([advantage])
    for inplace in (False, True):
        got, grad, _ = run(case, inplace=inplace, implementation=implementation)
        assert got.item() == pytest.approx(loss, abs=1e-6)
        assert grad.abs().max().item() == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize("bad", ["logits", "old_logps"])
def test_nan_is_not_hidden(bad: str) -> None:
    case = make_case(2, 2, 300, mask="none")
    tensor = getattr(case, bad)
    tensor[0, 0] = math.nan
    loss, grad, _ = run(case)
    assert loss.isnan()
    assert grad[0, 0].isnan().all()
    assert not grad[1].isnan().any()


@pytest.mark.parametrize("mapping", ["dcg", "borda", "ndcg_penalty"])
@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_ranks_in_place_of_advantages(mapping: str, implementation: str) -> None:
    case = make_case(6, 3, 120, mask="ragged", kl_coef=0.1)
    ranks = torch.tensor([[0, 1, 1], [2, -1, 0]])
    assert case.old_logps is not None
    logps = case.old_logps.masked_fill(~case.mask, 0).sum(-1).view(2, 3)
    advantages, teaches = rank_advantage(
        ranks, group_size=3, mapping=mapping, sequence_logps=logps, implementation="torch"
    )
    whole, case.mask = case.mask, case.mask & (teaches.flatten() > 0)[:, None]
    case.advantages = advantages.flatten()
    expected_loss, expected_grad, _ = case.truth()
    for shape in (ranks, ranks.flatten().int()):
        more = {"advantages": None, "ranks": shape, "group_size": 3, "mapping": mapping, "mask": whole}
        loss, grad, _ = run(case, implementation=implementation, **more)
        assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-5)
        assert relative(grad, expected_grad) <= 5e-6


@pytest.mark.parametrize("normalizer", [7.0, torch.tensor(7.0), torch.tensor(7, dtype=torch.int64)])
def test_a_given_normaliser(normalizer: Any) -> None:
    case = make_case(2, 3, 200, normalizer=7.0)
    expected_loss, expected_grad, _ = case.truth()
    case.settings = {}
    for inplace in (False, True):
        loss, grad, metrics = run(case, inplace=inplace, normalizer=normalizer)
        assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-5)
        assert metrics["loss"].item() == loss.item()
        assert relative(grad, expected_grad) <= 5e-6


def test_fp16_survives_a_large_normaliser_with_a_gradient_scaler() -> None:
    """A gradient over 1e6 tokens is below fp16's smallest number; times the scaler's factor it is not."""
    case = make_case(2, 3, 500, dtype=torch.float16, normalizer=1e6)
    _, expected_grad, _ = case.truth(grad_output=65536.0)
    for inplace in (False, True):
        _, grad, _ = run(case, inplace=inplace, grad_output=65536.0)
        assert relative(grad, expected_grad) <= 5e-4


@pytest.mark.parametrize("inplace", [False, True])
def test_repeats_bitwise(inplace: bool) -> None:
    case = make_case(3, 5, 4097, kl_coef=0.1, entropy_coef=0.1)
    first, second = run(case, inplace=inplace), run(case, inplace=inplace)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert first[2] == second[2]


@pytest.mark.parametrize("v", [96, 97])
def test_a_slice_of_the_models_logits_is_read_where_it_is(v: int) -> None:
    whole = torch.randn(3, 5, v)
    case = make_case(logits=whole[:, :-1], mask="ragged", kl_coef=0.1, entropy_coef=0.1)
    _, expected_grad, _ = case.truth()
    leaf = whole.clone().to(DEVICE).requires_grad_()
    arguments = {k: x.to(DEVICE) if isinstance(x, Tensor) else x for k, x in case.arguments.items()}
    loss, _ = grpo_rank_loss(
        leaf[:, :-1], case.token_ids.to(DEVICE), implementation="triton", inplace=True, **arguments
    )
    loss.backward()
    assert leaf.grad is not None
    assert relative(leaf.grad[:, :-1].cpu(), expected_grad) <= 5e-6
    assert bool((leaf.grad[:, -1] == 0).all())


def test_a_transposed_tensor_is_read_right() -> None:
    case = make_case(3, 4, 60)
    _, expected_grad, _ = case.truth()
    case.logits = case.logits.transpose(0, 2).contiguous().transpose(0, 2)
    assert relative(run(case)[1], expected_grad) <= 5e-6


class TestInPlace:
    """The gradient takes the place of the logits, and whoever would see that is told."""

    def loss(self, case: Case, logits: Tensor) -> Tensor:
        arguments = {k: x.to(DEVICE) if isinstance(x, Tensor) else x for k, x in case.arguments.items()}
        return grpo_rank_loss(logits, case.token_ids.to(DEVICE), inplace=True, implementation="triton", **arguments)[0]

    @pytest.mark.parametrize("how", [{}, {"ratio": "sequence"}, {"dtype": torch.float16}])
    def test_no_second_buffer(self, how: dict[str, Any]) -> None:
        case = make_case(2, 3, 100, loss_type="grpo", **how)
        leaf = case.logits.detach().clone().to(DEVICE).requires_grad_()
        logits = leaf * 1
        memory, made = logits.data_ptr(), logits.grad_fn
        assert made is not None
        loss = self.loss(case, logits)
        seen: list[Tensor] = []
        made.register_prehook(lambda grads: seen.extend(grads))
        loss.backward()
        assert seen[0].data_ptr() == memory

    @pytest.mark.parametrize(
        ("ratio", "message"), [("token", "second backward"), ("sequence", "modified by an inplace operation")]
    )
    def test_second_backward_raises(self, ratio: str, message: str) -> None:
        case = make_case(2, 3, 100, ratio=ratio, loss_type="grpo")
        loss = self.loss(case, case.logits.detach().clone().to(DEVICE).requires_grad_() * 1)
        loss.backward(retain_graph=True)
        with pytest.raises(RuntimeError, match=message):
            loss.backward()

    def test_a_loss_computed_before_raises(self) -> None:
        case = make_case(2, 3, 100)
        logits = case.logits.detach().clone().to(DEVICE).requires_grad_() * 1
        other = logits.square().sum()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            (self.loss(case, logits) + other).backward()

    def test_a_loss_computed_after_raises(self) -> None:
        case = make_case(2, 3, 100)
        logits = case.logits.detach().clone().to(DEVICE).requires_grad_() * 1
        loss = self.loss(case, logits)
        with pytest.raises(RuntimeError, match="another loss has used them"):
            (loss + logits.sum()).backward()

    def test_a_leaf_is_refused(self) -> None:
        case = make_case(2, 3, 100)
        with pytest.raises(ValueError, match="leaf"):
            self.loss(case, case.logits.detach().clone().to(DEVICE).requires_grad_())

    def test_without_a_gradient_nothing_is_written(self) -> None:
        case = make_case(2, 3, 100)
        logits = case.logits.clone().to(DEVICE)
        loss = self.loss(case, logits)
        assert not loss.requires_grad
        with torch.no_grad():
            self.loss(case, logits)
        assert torch.equal(logits.cpu(), case.logits)

    def test_out_of_place_any_number_of_backward_passes(self) -> None:
        case = make_case(2, 3, 100)
        leaf = case.logits.detach().clone().to(DEVICE).requires_grad_()
        arguments = {k: x.to(DEVICE) if isinstance(x, Tensor) else x for k, x in case.arguments.items()}
        loss, _ = grpo_rank_loss(leaf, case.token_ids.to(DEVICE), implementation="triton", **arguments)
        (once,) = torch.autograd.grad(loss, leaf, retain_graph=True)
        (twice,) = torch.autograd.grad(loss, leaf)
        assert torch.equal(once, twice)
        assert torch.equal(leaf.detach().cpu(), case.logits)


@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_the_slope_of_a_soft_cap_that_is_nearly_reached(implementation: str) -> None:
    """1 - tanh^2 is 2e-7 there, and float32 knows it only to a tenth of that."""
    logits = torch.randn(2, 3, 31, generator=torch.Generator().manual_seed(0)) * 3 - 250
    case = make_case(logits=logits, softcap=30.0)
    assert 0 < float(case.truth()[1].abs().max()) < 1e-5
    check(case, implementation=implementation)


def test_an_empty_batch_is_a_zero_with_a_gradient() -> None:
    leaf = torch.zeros(0, 3, 10, device=DEVICE, requires_grad=True)
    empty = torch.zeros(0, 3, device=DEVICE)
    loss, _ = grpo_rank_loss(leaf, empty.long(), advantages=empty[:, 0], mask=empty.bool(), implementation="triton")
    loss.backward()
    assert loss.item() == 0.0
