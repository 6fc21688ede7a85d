"""Where the losses reach: float32 logits of 16-bit heads, sharded heads, packed rows, objectives of one's own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from orlaif_kernels import (
    grpo_rank_loss,
    linear_grpo_rank_loss,
    linear_policy_loss,
    linear_token_statistics,
    policy_loss,
)
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from tests.forked import Forked, together

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
both = pytest.mark.parametrize("implementation", ["torch", "triton"])


def head(n: int, t: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, head of 97 tokens, ids, and a mask with holes."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, t, 16, generator=generator).to(dtype)
    weight = torch.randn(97, 16, generator=generator).to(dtype)
    ids = torch.randint(97, (n, t), generator=generator)
    mask = torch.rand(n, t, generator=generator) < 0.7
    mask[:, 0] = True
    return hidden.to(DEVICE), weight.to(DEVICE), ids.to(DEVICE), mask.to(DEVICE)


# ------------------------------------------------------------------------------------------- float32 logits of 16 bits


@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_logits_are_as_exact_as_float32(implementation: str, dtype: torch.dtype) -> None:
    hidden, weight, ids, mask = head(3, 5, dtype)
    bias = torch.randn(97, device=DEVICE, dtype=dtype)
    exact = torch.log_softmax(hidden.double() @ weight.double().t() + bias.double(), -1)
    logps = exact.gather(-1, ids[..., None])[..., 0]
    entropy = -(exact.exp() * exact).sum(-1)
    told: dict[str, Any] = {"mask": mask, "bias": bias, "chunk_size": 4, "implementation": implementation}
    got = linear_token_statistics(hidden, weight, ids, fp32_logits=True, **told)
    assert got.logps.dtype == torch.float32
    assert float((got.logps - logps)[mask].abs().max()) < 1e-5
    assert float((got.entropy - entropy)[mask].abs().max()) < 1e-5
    rounded = linear_token_statistics(hidden, weight, ids, **told).logps
    assert float((rounded - logps)[mask].abs().max()) > 1e-4  # what it is there to avoid


@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_of_float32_logits_are_rounded_to_16_bits_once(implementation: str, dtype: torch.dtype) -> None:
    hidden, weight, ids, mask = head(3, 5, dtype)
    advantages = torch.tensor([1.0, -0.5, 2.0], device=DEVICE)
    told: dict[str, Any] = {"advantages": advantages, "mask": mask, "entropy_coef": 0.1, "normalizer": 1.0}
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    loss, _ = linear_grpo_rank_loss(
        hidden, weight, ids, fp32_logits=True, chunk_size=4, implementation=implementation, **told
    )
    truths = [x.detach().double().requires_grad_() for x in leaves]
    log_p = torch.log_softmax(truths[0] @ truths[1].t(), -1)
    logps, entropy = log_p.gather(-1, ids[..., None])[..., 0], -(log_p.exp() * log_p).sum(-1)
    terms = -(logps - logps.detach()).exp() * advantages[:, None] - 0.1 * entropy
    exact = terms[mask].sum()
    assert float(loss.detach()) == pytest.approx(float(exact.detach()), rel=1e-5)
    unit = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]
    for mine, true in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(exact, truths), strict=True):
        assert mine.dtype == dtype
        # The chunk's gradient and the result are rounded, each by half a unit.
        assert float((mine.double() - true).norm() / true.norm()) < unit


# -------------------------------------------------------------------------------------------------------- sharded heads


def gathers_a_sharded_head(rank: int, mesh: DeviceMesh) -> None:
    """FSDP2: a ``DTensor`` is gathered, and its gradient is the mean of the processes'."""
    advantages = torch.tensor([1.0, -0.5, 2.0])

    def loss(hidden: Tensor, weight: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        told: dict[str, Any] = {"advantages": advantages, "mask": mask, "normalizer": 1.0, "chunk_size": 4}
        return linear_grpo_rank_loss(hidden, weight, ids, **told)[0]

    weight = head(3, 5, torch.float32)[1]
    alone = []
    for seed in (0, 1):
        hidden, _, ids, mask = head(3, 5, torch.float32, seed)
        leaf = weight.clone().requires_grad_()
        alone.append(torch.autograd.grad(loss(hidden, leaf, ids, mask), leaf)[0])
    for seed, expected in ((0, alone[0]), (rank, (alone[0] + alone[1]) / 2)):  # the same tokens, and others
        hidden, _, ids, mask = head(3, 5, torch.float32, seed)
        shards = distribute_tensor(weight, mesh, [Shard(0)]).requires_grad_()
        loss(hidden.requires_grad_(), shards, ids, mask).backward()
        assert isinstance(shards.grad, DTensor)
        assert shards.grad.placements == (Shard(0),)
        assert shards.grad.to_local().shape[0] == (49, 48)[rank]
        torch.testing.assert_close(shards.grad.full_tensor(), expected, atol=1e-6, rtol=1e-5)
        assert hidden.grad is not None
        assert bool(hidden.grad[mask].any())


def splits_the_vocabulary(rank: int, mesh: DeviceMesh) -> None:
    """Statistics and losses of a head in parts of 60 and 37 rows against the whole; and of a ``DTensor``'s own rows."""
    group, mine = mesh.get_group(), (slice(0, 60), slice(60, 97))[rank]
    hidden, weight, ids, mask = head(3, 5, torch.float32)
    hidden[0, 0] *= 9.0  # a certain token
    bias = torch.randn(97, generator=torch.Generator().manual_seed(3))
    bias[60::5] = -torch.inf
    ids[0, 0] = int((hidden[0, 0] @ weight.t() + bias).argmax())
    ids = ids.where(~bias[ids].isinf(), 0)
    for implementation, dtype in (("torch", torch.float64), ("triton", torch.float32)):
        whole = [x.to(dtype, copy=True).requires_grad_() for x in (hidden, weight, bias)]
        parts = [x.to(dtype, copy=True).requires_grad_() for x in (hidden, weight[mine], bias[mine])]
        told: dict[str, Any] = {"mask": mask, "chunk_size": 4, "implementation": implementation}
        expected, found = three(*whole, ids, **told), three(*parts, ids, vocabulary_group=group, **told)
        for alone, split in zip(expected, found, strict=True):
            torch.testing.assert_close(split, alone, rtol=1e-5, atol=1e-6)
            true = torch.autograd.grad(alone, whole)
            here = (true[0], true[1][mine], true[2][mine])
            for full, one, other in zip(true, here, torch.autograd.grad(split, parts), strict=True):
                assert float((one - other).abs().max()) <= 5e-6 * float(full.abs().max())
    full, shards = weight.clone().requires_grad_(), distribute_tensor(weight, mesh, [Shard(0)]).requires_grad_()
    for one, more in ((full, {}), (shards, {"vocabulary_group": group})):
        linear_token_statistics(hidden, one, ids, mask=mask, **more).logps.sum().backward()
    assert isinstance(shards.grad, DTensor)
    torch.testing.assert_close(shards.grad.full_tensor(), full.grad, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"ids lie in \[0, 97\)"):
        linear_token_statistics(hidden, shards, ids + 97, mask=mask, vocabulary_group=group)


def three(x: Tensor, w: Tensor, b: Tensor, ids: Tensor, **told: Any) -> list[Tensor]:
    """A sum of both statistics, GRPO_rank's loss, and that of sequences."""
    old, ref = (-torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(5)) * 4 - 2).to(x.dtype)
    both = linear_token_statistics(x, w, ids, bias=b, temperature=0.9, **told)
    told |= {"advantages": torch.tensor([1.0, -0.5, 2.0]), "old_logps": old, "ref_logps": ref, "bias": b}
    return [
        (both.logps * torch.arange(15).view(3, 5)).sum() + both.entropy.square().sum(),
        linear_grpo_rank_loss(x, w, ids, kl_coef=0.1, entropy_coef=0.05, **told)[0],
        linear_policy_loss(x, w, ids, OfSequences(), **told)[0],
    ]


def _in_two(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        mesh = torch.distributed.init_device_mesh("cpu", (2,))
        gathers_a_sharded_head(rank, mesh)
        splits_the_vocabulary(rank, mesh)
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()
    # A thread of gloo's may still be letting go of a tensor, for which it needs the interpreter: while that shuts down,
    # such a thread is ended by force and takes the process with it ("terminate called without an active exception").
    os._exit(0)


@pytest.mark.skipif(DEVICE == "cuda", reason="processes of gloo, on CPUs")
def test_heads_of_two_processes(tmp_path: Path) -> None:
    """:func:`gathers_a_sharded_head`, :func:`splits_the_vocabulary`."""
    together(*(Forked(_in_two, rank, str(tmp_path / "store")) for rank in range(2)))


# ---------------------------------------------------------------------------------------------- objectives of one's own


def bent(logp: Tensor, old: Tensor, reference: Tensor, entropy: Tensor, advantage: Tensor, mask: Tensor) -> Any:
    ratio = (logp - old).exp()
    terms = -torch.tanh(ratio * advantage) + 0.1 * (logp - reference).square() - 0.02 * entropy
    return terms, {"ratio": ratio}


class OfSequences:
    """One ratio for a completion, and each token's entropy."""

    level = "sequence"

    def __call__(
        self, logp: Tensor, old: Tensor, reference: Tensor, entropy: Tensor, advantage: Tensor, mask: Tensor
    ) -> Tensor:
        ratio = (logp - old).where(mask, 0.0).sum(-1, keepdim=True).div(mask.sum(-1, keepdim=True)).exp()
        return -ratio * advantage - 0.02 * entropy


@both
@pytest.mark.parametrize("objective", [bent, OfSequences()], ids=["token", "sequence"])
@pytest.mark.parametrize("way", ["logits", "inplace", "head"])
def test_an_objective_of_ones_own_against_autograd(objective: Any, way: str, implementation: str) -> None:
    hidden, weight, ids, mask = head(3, 5, torch.float32)
    generator = torch.Generator().manual_seed(5)
    old, reference = (-torch.rand(3, 5, generator=generator).to(DEVICE) * 4 - 2 for _ in range(2))
    advantages = torch.tensor([1.0, -0.5, 2.0], device=DEVICE)

    truths = [x.double().requires_grad_() for x in (hidden, weight)]
    log_p = torch.log_softmax(truths[0] @ truths[1].t() / 0.9, -1)
    logps, entropy = log_p.gather(-1, ids[..., None])[..., 0], -(log_p.exp() * log_p).sum(-1)
    made = objective(logps, old.double(), reference.double(), entropy, advantages.double()[:, None].expand(3, 5), mask)
    terms, metrics = made if isinstance(made, tuple) else (made, {})
    exact = 3 * terms[mask].sum() / mask.sum()

    told: dict[str, Any] = {
        "mask": mask,
        "advantages": advantages,
        "old_logps": old.masked_fill(~mask, torch.nan),
        "ref_logps": reference.masked_fill(~mask, torch.nan),
        "temperature": 0.9,
        "implementation": implementation,
    }
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    if way == "head":
        loss, noted = linear_policy_loss(*leaves, ids, objective, chunk_size=4, **told)
    else:
        loss, noted = policy_loss(hidden @ weight.t(), ids, objective, inplace=way == "inplace", **told)
    assert float(3 * loss.detach()) == pytest.approx(float(exact.detach()), rel=1e-5)
    assert noted.keys() == {"loss", "entropy", *metrics}
    assert float(noted["entropy"]) == pytest.approx(float(entropy[mask].mean()), rel=1e-5)
    for name, value in metrics.items():
        assert float(noted[name]) == pytest.approx(float(value[mask].mean()), rel=1e-5)
    for mine, true in zip(torch.autograd.grad(3 * loss, leaves), torch.autograd.grad(exact, truths), strict=True):
        assert float((mine.double() - true).abs().max() / true.abs().max()) < 5e-6


# ---------------------------------------------------------------------------------------------------------- packed rows


@both
@pytest.mark.parametrize("through_head", [False, True])
@pytest.mark.parametrize(("loss_type", "ratio"), [("grpo", "token"), ("grpo", "sequence"), ("dapo", "token")])
def test_packed_bfloat16_is_what_padding_gives(
    loss_type: str, ratio: str, through_head: bool, implementation: str
) -> None:
    hidden, weight, ids, _ = head(3, 5, torch.bfloat16)
    lengths = torch.tensor([5, 1, 3], device=DEVICE)
    mask = torch.arange(5, device=DEVICE) < lengths[:, None]
    old = (-torch.rand(3, 5, generator=torch.Generator().manual_seed(5)) * 4 - 2).to(DEVICE)
    told: dict[str, Any] = {
        "ranks": torch.tensor([[1, 0, 2]], device=DEVICE),
        "group_size": 3,
        "loss_type": loss_type,
        "ratio": ratio,
        "implementation": implementation,
    }

    def run(hidden: Tensor, ids: Tensor, mask: Tensor, old: Tensor, **more: Any) -> tuple[Tensor, ...]:
        leaf, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        call = {"mask": mask, "old_logps": old, **told, **more}
        if through_head:
            loss, _ = linear_grpo_rank_loss(leaf, w, ids, chunk_size=4, **call)
        else:
            loss, _ = grpo_rank_loss(leaf @ w.t(), ids, **call)
        return loss, *torch.autograd.grad(loss, (leaf, w))

    padded = run(hidden, ids, mask, old)
    ends = torch.tensor([0, 5, 6, 9], device=DEVICE, dtype=torch.int32)
    packed = run(
        hidden[mask][None], ids[mask][None], torch.ones(1, 9, dtype=torch.bool, device=DEVICE), old[mask][None],
        cu_seqlens=ends,
    )  # fmt: skip
    torch.testing.assert_close(packed[0], padded[0], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(packed[1][0], padded[1][mask], atol=0, rtol=2**-7)
    torch.testing.assert_close(packed[2], padded[2], atol=2**-9, rtol=2**-7)
