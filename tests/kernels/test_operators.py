"""The operators as PyTorch sees them: schema, fake tensors, autograd, torch.compile, autocast, choice of
implementation."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from orlaif_kernels import grpo_rank_loss, linear_grpo_rank_loss, linear_logps, rank_advantage
from orlaif_kernels.arguments import LossSettings, choose
from orlaif_kernels.batch import prepare
from orlaif_kernels.linear import Head

from tests.conftest import REPO
from tests.kernels.cases import make_case

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SETTINGS = LossSettings(kl_coef=0.1, entropy_coef=0.05, temperature=0.9)
OPS = torch.ops.orlaif_kernels


@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_opcheck_of_the_statistics(implementation: str) -> None:
    case = make_case(4, 3, 40)
    logits = case.logits.to(DEVICE).requires_grad_()
    ids, mask = case.token_ids.to(DEVICE), case.mask.to(DEVICE)
    given = (logits, None, None, ids, mask, SETTINGS.pack(), implementation, [True, False, False])
    torch.library.opcheck(OPS.token_statistics.default, given)
    state = OPS.token_statistics(*given).detach()
    backward = (torch.ones_like(state), state, logits.detach(), *given[1:])
    torch.library.opcheck(OPS.token_statistics_backward.default, backward)


def test_opcheck_of_rank_advantage() -> None:
    ranks = torch.tensor([0, 1, 1, 0, -1, 2], device=DEVICE)
    for mapping in ("dcg", "zscore"):
        scores = torch.randn(6, device=DEVICE) if mapping == "zscore" else None
        torch.library.opcheck(OPS.rank_advantage.default, (ranks, scores, None, 3, mapping))


@pytest.mark.parametrize(
    ("implementation", "dtype"),
    [("torch", torch.float64), ("torch", torch.bfloat16), ("triton", torch.float32), ("triton", torch.bfloat16)],
)
def test_opcheck_of_the_fused_head(implementation: str, dtype: torch.dtype) -> None:
    case = make_case(3, 4, 33)
    hidden = torch.randn(3, 4, 8, dtype=dtype, device=DEVICE, requires_grad=True)
    weight = torch.randn(33, 8, dtype=dtype, device=DEVICE, requires_grad=True)
    bias = torch.randn(33, dtype=dtype, device=DEVICE, requires_grad=True)
    ids, mask, advantages = case.token_ids.to(DEVICE), case.mask.to(DEVICE), case.advantages.to(DEVICE)
    head = Head.of(hidden, weight, implementation, bias, chunk_size=5)
    settings = LossSettings(entropy_coef=0.1)
    statistics = (*head.tensors, ids, mask, settings.pack(), head.how, head.wanted)
    tests = ["test_schema", "test_autograd_registration", "test_faketensor"]
    torch.library.opcheck(OPS.token_statistics.default, statistics, test_utils=tests)
    state = OPS.token_statistics(*statistics).detach()
    backward = (torch.ones_like(state), state, *(x.detach() for x in statistics[:5]), *statistics[5:])
    torch.library.opcheck(OPS.token_statistics_backward.default, backward, test_utils=tests)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    batch = prepare(ids, mask, settings, wide, {"advantages": advantages})
    if dtype == torch.float64:  # else the gradients are given away by the first of the backward passes that this makes
        tests.append("test_aot_dispatch_dynamic")
    loss = (*head.tensors, batch.tensors, settings.pack(), head.how, head.wanted)
    torch.library.opcheck(OPS.linear_grpo_rank_loss.default, loss, test_utils=tests)


@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_gradcheck_of_the_torch_path(ratio: str) -> None:
    case = make_case(2, 3, 7, dtype=torch.float64, kl_coef=0.1, entropy_coef=0.1, delta=1.5, ratio=ratio)
    assert torch.autograd.gradcheck(
        lambda x: grpo_rank_loss(x, case.token_ids, implementation="torch", **case.arguments)[0],
        (case.logits.requires_grad_(),),
    )


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_gradcheck_of_the_fused_head(softcap: float | None, ratio: str) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(7, dtype=torch.float64, requires_grad=True)
    logits = (hidden @ weight.t() + bias).detach()
    case = make_case(logits=logits, kl_coef=0.1, entropy_coef=0.1, delta=1.5, ratio=ratio)
    assert torch.autograd.gradcheck(
        lambda h, w, b: linear_grpo_rank_loss(
            h, w, case.token_ids, bias=b, softcap=softcap, chunk_size=2, implementation="torch", **case.arguments
        )[0],
        (hidden, weight, bias),
    )


class Model(torch.nn.Module):
    """A body and a head, with the loss inside, as torch.compile of a training step sees them."""

    def __init__(self, kind: str, implementation: str, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.implementation = kind, implementation
        self.body = torch.nn.Linear(8, 16, dtype=dtype)
        self.head = torch.nn.Linear(16, 50, bias=False, dtype=dtype)

    def forward(self, x: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.body(x))
        more: dict[str, Any] = {"mask": mask, "group_size": 2, "implementation": self.implementation}
        if self.kind == "logits":
            return grpo_rank_loss(self.head(hidden), ids, ranks=ranks, entropy_coef=0.1, inplace=True, **more)[0]
        return linear_grpo_rank_loss(hidden, self.head.weight, ids, ranks=ranks, entropy_coef=0.1, **more)[0]


def run_model(model: Model, backend: str | None, autocast: bool = False) -> list[torch.Tensor]:
    torch.manual_seed(1)
    model.to(DEVICE)
    x = torch.randn(4, 3, 8, device=DEVICE, dtype=model.body.weight.dtype)
    ids = torch.randint(50, (4, 3), device=DEVICE)
    mask = torch.arange(3, device=DEVICE) < torch.tensor([3, 2, 1, 3], device=DEVICE)[:, None]
    ranks = torch.tensor([[0, 1], [1, 0]], device=DEVICE)
    call = torch.compile(model, fullgraph=True, backend=backend) if backend else model
    model.zero_grad()
    with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
        loss = call(x, ids, mask, ranks)
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["logits", "linear"])
@pytest.mark.parametrize("implementation", ["torch", "triton"])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_torch_compile_of_the_surrounding_model(
    backend: str, kind: str, implementation: str, dtype: torch.dtype
) -> None:
    """One graph, forward and backward; what a backend makes of the rest of it takes inductor half a minute."""
    torch._dynamo.reset()
    model = Model(kind, implementation, dtype)
    for eager, compiled in zip(run_model(model, None), run_model(model, backend), strict=True):
        tolerance = 1e-5 if dtype == torch.float32 else 3e-2
        torch.testing.assert_close(compiled, eager, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", ["logits", "linear"])
@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_autocast(kind: str, implementation: str) -> None:
    """Parameters and their gradients stay float32; the numbers are those of bf16 logits."""
    model = Model(kind, implementation, torch.float32)
    exact, cast = run_model(model, None), run_model(model, None, autocast=True)
    for one, two in zip(exact, cast, strict=True):
        assert two.dtype == torch.float32
        assert not torch.equal(one, two)
        assert (one - two).norm() <= 0.03 * one.norm()


def test_choice_of_implementation(monkeypatch: pytest.MonkeyPatch) -> None:
    here = torch.zeros(1, device=DEVICE)
    assert choose("auto", torch.zeros(1)) == "torch"
    assert choose("auto", here) == ("triton" if DEVICE == "cuda" else "torch")
    assert choose("torch", here) == "torch"
    assert choose("triton", here) == "triton"
    with pytest.raises(RuntimeError, match="float64"):
        choose("triton", here.double())
    with pytest.raises(ValueError, match="'cuda'"):
        choose("cuda", here)


def test_triton_says_where_it_cannot_run() -> None:
    """On a CPU without the interpreter; in a process of its own, for that is decided at import."""
    code = (
        "import torch, orlaif_kernels as k\n"
        "for call in (lambda: k.rank_advantage(torch.tensor([0, 1]), group_size=2, implementation='triton'),\n"
        "             lambda: k.linear_logps(torch.zeros(1, 1, 2), torch.zeros(3, 2), torch.zeros(1, 1).long(),\n"
        "                                    implementation='triton')):\n"
        "    try: call()\n"
        "    except RuntimeError as error: assert 'needs a GPU' in str(error), error\n"
        "    else: raise SystemExit('did not raise')\n"
        "assert k.rank_advantage(torch.tensor([0, 1]), group_size=2)[0][0] > 0\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {
        "PYTHONPATH": str(REPO / "kernels")
    }
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_results_on_the_cpu_are_those_of_the_reference() -> None:
    """`auto` on a CPU: float32 in, float32 out, whatever the logits' dtype."""
    case = make_case(2, 3, 20, dtype=torch.bfloat16)
    loss, metrics = grpo_rank_loss(case.logits, case.token_ids, **case.arguments)
    assert loss.dtype == torch.float32
    assert all(not value.requires_grad and value.ndim == 0 for value in metrics.values())
    logps = linear_logps(torch.randn(2, 3, 4), torch.randn(20, 4), case.token_ids, mask=case.mask)
    assert logps.dtype == torch.float32
    assert rank_advantage(torch.tensor([0, 1]), group_size=2)[0].dtype == torch.float32


@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_integer_types(implementation: str) -> None:
    """int32 ids and an integer mask are as good as int64 and bool."""
    case = make_case(3, 4, 30, kl_coef=0.1)
    settings = {"implementation": implementation, **case.arguments}
    expected, _ = grpo_rank_loss(case.logits, case.token_ids, **settings)
    settings["mask"] = case.mask.long()
    found, _ = grpo_rank_loss(case.logits, case.token_ids.int(), **settings)
    assert torch.equal(found, expected)
    hidden, weight = torch.randn(3, 4, 8), torch.randn(30, 8)
    expected, _ = linear_grpo_rank_loss(hidden, weight, case.token_ids, **settings)
    found, _ = linear_grpo_rank_loss(hidden, weight, case.token_ids.int(), **settings)
    assert torch.equal(found, expected)
