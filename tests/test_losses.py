"""The losses that recipes name: by hand, against TRL, through logits and through the fused head, in recipes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from orlaif_kernels import rank_advantage
from torch import Tensor

from orlaif.cli.recipe import read_recipe
from orlaif.losses import CISPO, GSPO, SAPO, DrGRPO, GRPORankLoss, Loss
from tests.conftest import REPO
from tests.kernels.cases import Case, make_case, relative

#: Each loss with what TRL calls the same; the clips are wide enough for a gradient on both sides of them.
AS_TRL: dict[str, tuple[Loss, dict[str, Any]]] = {
    "DrGRPO": (DrGRPO(kl_coef=0.1), {"loss_type": "dr_grpo"}),
    "GSPO": (GSPO(clip_low=0.2, clip_high=0.3, kl_coef=0.1), {"ratio": "sequence", "clip_high": 0.3}),
    "GSPO-token": (
        GSPO(clip_low=0.2, clip_high=0.3, kl_coef=0.1, ratio="token"),
        {"ratio": "sequence", "clip_high": 0.3},
    ),
    "CISPO": (CISPO(clip_high=1.0, kl_coef=0.1), {"loss_type": "cispo", "clip_high": 2.0}),
    "SAPO": (SAPO(tau_neg=1.5, kl_coef=0.1), {"loss_type": "sapo", "tau_pos": 1.0, "tau_neg": 1.5}),
}


@dataclass(frozen=True, kw_only=True)
class Nothing(Loss):
    """Terms of zero: what is left is KL and entropy."""

    def __call__(self, logp: Tensor, **_: Any) -> Tensor:  # type: ignore[override]
        return logp * 0.0


def terms_and_gradient(
    loss: Loss, logp: list[float], old: list[float], advantage: list[float]
) -> tuple[Tensor, Tensor]:
    """One completion's terms, and the gradient of their sum, of a loss without KL and entropy."""
    leaf = torch.tensor([logp], dtype=torch.float64, requires_grad=True)
    values = {"old": torch.tensor([old]).double(), "advantage": torch.tensor([advantage]).double()}
    made = loss(
        logp=leaf, reference=None, entropy=torch.zeros(1, len(logp)), mask=torch.ones(1, len(logp)) > 0, **values
    )
    terms = made[0] if isinstance(made, tuple) else made
    return terms.detach()[0], torch.autograd.grad(terms.sum(), leaf)[0][0]


def from_head(seed: int = 0, **settings: Any) -> tuple[Tensor, Tensor, Case]:
    """Hidden states [4, 6, 16], a head [50, 16], and a case of their logits without poison."""
    torch.manual_seed(seed)
    hidden, weight = torch.randn(4, 6, 16), torch.randn(50, 16)
    case = make_case(logits=hidden @ weight.t(), **settings)
    case.token_ids = case.token_ids.clamp(min=0)
    case.old_logps = None if case.old_logps is None else case.old_logps.nan_to_num(-1.0)
    assert case.ref_logps is not None
    case.ref_logps = case.ref_logps.nan_to_num(-1.0)
    return hidden, weight, case


def ours(loss: Loss, hidden: Tensor, weight: Tensor, case: Case, **more: Any) -> tuple[Tensor, Tensor]:
    """Loss and gradient by the hidden states."""
    leaf = hidden.clone().requires_grad_()
    names = ("mask", "advantages", "old_logps", "ref_logps")
    tokens = {name: getattr(case, name) for name in names} | {"max_completion_length": case.mask.shape[1]} | more
    if loss.fused_head:
        value, _ = loss.of_hidden(leaf, weight, case.token_ids, chunk_size=7, **tokens)
    else:
        value, _ = loss.of_logits(leaf @ weight.t(), case.token_ids, **tokens)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


@pytest.mark.parametrize("old", [False, True], ids=["first update", "later"])
@pytest.mark.parametrize("fused", [False, True], ids=["logits", "fused head"])
@pytest.mark.parametrize("name", AS_TRL)
def test_agrees_with_trl(name: str, fused: bool, old: bool) -> None:
    pytest.importorskip("trl", reason="TRL is a test dependency: pip install -e '.[dev]'")
    from tests.kernels.test_agreement import trl_loss

    loss, theirs = AS_TRL[name]
    hidden, weight, case = from_head(old=old)
    value, grad = ours(replace(loss, fused_head=fused), hidden, weight, case)
    case.settings = {"loss_type": "grpo", "kl_coef": 0.1, **theirs}
    their_value, their_grad = trl_loss(case)
    assert value.item() == pytest.approx(their_value.item(), rel=1e-5, abs=1e-6)
    assert relative(grad, (their_grad.double() @ weight.double())) <= 2e-5


@pytest.mark.parametrize(
    "loss", [GRPORankLoss(), *(loss for loss, _ in AS_TRL.values())], ids=lambda x: type(x).__name__
)
def test_every_loss_takes_weights_ranks_and_advantages_of_tokens(loss: Loss) -> None:
    """Terms weighed twice are a loss of twice the size; ranks are the advantages that the mapping makes of them."""
    hidden, weight, case = from_head()
    plain, grad = ours(loss, hidden, weight, case, normalizer=2.0)
    twice = torch.full(case.mask.shape, 2.0)
    double, double_grad = ours(loss, hidden, weight, case, normalizer=2.0, token_weights=twice)
    torch.testing.assert_close((double, double_grad), (2 * plain, 2 * grad))
    each = case.advantages.unsqueeze(-1).expand(case.mask.shape)
    torch.testing.assert_close(ours(loss, hidden, weight, case, normalizer=2.0, advantages=each), (plain, grad))
    ranks = torch.tensor([[1, 0], [0, 1]])
    case.advantages = rank_advantage(ranks, group_size=2)[0].flatten()
    by_advantages = ours(loss, hidden, weight, case)
    by_ranks = ours(loss, hidden, weight, case, advantages=None, ranks=ranks, group_size=2)
    assert by_ranks[0].item() != 0
    for one, other in zip(by_ranks, by_advantages, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("fused", [False, True])
def test_kl_and_entropy_are_added_to_any_loss(fused: bool) -> None:
    """A loss of no terms is GRPO_rank where no advantage is."""
    hidden, weight, case = from_head()
    case.advantages = torch.zeros(4)
    settings: dict[str, Any] = {"kl_coef": 0.3, "kl_estimator": "k2", "entropy_coef": 0.1, "fused_head": fused}
    value, grad = ours(Nothing(**settings), hidden, weight, case)
    expected, expected_grad = ours(GRPORankLoss(**settings), hidden, weight, case)
    assert expected_grad.abs().max() > 1e-3
    torch.testing.assert_close((value, grad), (expected, expected_grad))


def test_cispo_by_hand() -> None:
    """Weights 1, 2 and, clipped, 3: not the gradient, which is the weight times A."""
    loss = CISPO(clip_high=2.0)
    old = [-1.0, -1.0 - math.log(2), -1.0 - math.log(8)]
    terms, grad = terms_and_gradient(loss, [-1.0] * 3, old, [1.0, -1.0, 1.0])
    assert terms.tolist() == pytest.approx([1.0, -2.0, 3.0])
    assert grad.tolist() == pytest.approx([-1.0, 2.0, -3.0])


def test_sapo_by_hand() -> None:
    """At w = 1 the gate is half open: a term of -2 A / tau, the gradient of the plain ratio; far away it is shut."""
    terms, grad = terms_and_gradient(SAPO(tau_neg=2.0), [0.0, 0.0, 0.0], [0.0, 0.0, -300.0], [1.0, -1.0, -1.0])
    assert terms.tolist() == pytest.approx([-2.0, 1.0, 2.0])
    assert grad.tolist() == pytest.approx([-1.0, 1.0, 0.0])


def test_gspo_by_hand() -> None:
    """Two tokens of which one has an advantage: the sequence's ratio moves both, GSPO-token moves that one."""
    of = {ratio: GSPO(ratio=ratio, clip_high=1.0) for ratio in ("sequence", "token")}
    old, ratio = [-1.0, -1.0 - 2 * math.log(1.5)], 1.5
    for kind, expected in (("sequence", [-ratio / 2, -ratio / 2]), ("token", [-ratio, 0.0])):
        terms, grad = terms_and_gradient(of[kind], [-1.0, -1.0], old, [1.0, 0.0])
        assert terms.tolist() == pytest.approx([-1.5, 0.0])
        assert grad.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("fused", [False, True])
def test_a_class_that_changes_grpo_rank_is_heard(ratio: Any, fused: bool) -> None:
    """Its terms, with all that it inherits; not the kernel's."""

    @dataclass(frozen=True, kw_only=True)
    class Half(GRPORankLoss):
        share: float = 0.5

        def __call__(self, **values: Any) -> Any:  # type: ignore[override]
            terms, metrics = super().__call__(**values)
            return self.share * terms, metrics

    hidden, weight, case = from_head()
    settings: dict[str, Any] = {"ratio": ratio, "loss_type": "grpo", "fused_head": fused}
    value, grad = ours(Half(**settings), hidden, weight, case)
    whole, whole_grad = ours(GRPORankLoss(**settings), hidden, weight, case)
    assert whole_grad.abs().max() > 1e-3
    torch.testing.assert_close((2 * value, 2 * grad), (whole, whole_grad))


def test_settings_that_cannot_be() -> None:
    typo: Any = "here"
    for make, said in (
        (lambda: SAPO(kl_coef=-1.0), "loss.kl_coef is -1.0; it must be 0 or more"),
        (lambda: SAPO(tau_pos=0.0), "loss.tau_pos is 0.0; it must be positive"),
        (lambda: CISPO(clip_high=0.0), "loss.clip_high is 0.0; it must be positive"),
        (lambda: CISPO(entropy_coef=math.inf), "loss.entropy_coef is inf; it must be finite"),
        (lambda: GSPO(ratio="token", kl_in="advantage"), "loss.kl_in is 'advantage', which GRPO_rank's own terms have"),
        (lambda: GRPORankLoss(kl_in=typo), "loss.kl_in is 'here'; it must be one of 'loss', 'advantage'"),
    ):
        with pytest.raises(ValueError, match=said):
            make()


OVERLAY = "model: {init_args: {loss: %s}}"


@pytest.mark.parametrize(
    ("overlay", "words", "expected"),
    [
        (None, [], GRPORankLoss(kl_coef=0.02)),
        (None, ["loss.kl_coef=0.0", "loss.delta=null"], GRPORankLoss()),
        ("{entropy_coef: 0.5}", [], GRPORankLoss(kl_coef=0.02, entropy_coef=0.5)),
        ("{class_path: orlaif.losses.CISPO, init_args: {fused_head: true}}", [], CISPO(kl_coef=0.02, fused_head=True)),
        ("{class_path: orlaif.losses.GSPO}", ["loss.kl_coef=0.5"], GSPO(kl_coef=0.5)),
        (None, ["loss=orlaif.losses.SAPO", "loss.tau_neg=2"], SAPO(kl_coef=0.02, tau_neg=2.0)),
    ],
)
def test_in_a_recipe(overlay: str | None, words: list[str], expected: Loss, tmp_path: Path) -> None:
    """Settings alone are GRPO_rank's, as ever; a class path names another loss."""
    given = ["--config", str(REPO / "recipes" / "demo_rlaif.yaml")]
    if overlay is not None:
        (tmp_path / "overlay.yaml").write_text(OVERLAY % overlay)
        given += ["--config", str(tmp_path / "overlay.yaml")]
    loss = read_recipe([*given, *(f"--model.init_args.{word}" for word in words)]).model.loss
    assert (type(loss), loss) == (type(expected), expected)
