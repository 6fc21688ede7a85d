"""What waits on the host: the gradients to the bit, less on the device, and copies that are waited for."""

from __future__ import annotations

import copy
import gc
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from orlaif.cli.plan.live_bytes import LiveBytes
from orlaif.demo.shapes import words
from orlaif.demo.tiny import make_tiny_model
from orlaif.policy import Policy, offloading, settings
from orlaif.policy.offloading import Offload, offload, storages
from orlaif.policy.parked import Lane
from orlaif.policy.recomputation import SEEN_BY_HOOKS, recomputation, recompute
from orlaif.types import PromptBatch
from tests.conftest import random_completions

LORA = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False}
#: Of what is on the device; beside features and logits, inputs of layers are little in a model as small as this.
LEFT = {"none": 0.6, "selective": 0.7, "layers": 0.95}
WAYS = ["layers", *(["selective"] if SEEN_BY_HOOKS else [])]


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four layers, so that there are some outside the window."""
    folder = str(tmp_path_factory.mktemp("deep"))
    make_tiny_model(folder, words(), hidden_size=32, num_layers=4)
    return folder


def trained(policy: Policy, batch: PromptBatch) -> tuple[Tensor, dict[str, Tensor], int, int]:
    """Log-probs, gradients, and bytes between the passes, on the device and on the host."""
    policy.network.zero_grad()
    completions = random_completions(policy, 5, 2, 6)
    gc.collect()
    with LiveBytes([*policy.network.parameters(), *policy.network.buffers()]) as live:
        logps = policy.completion_logps(batch, completions, implementation="torch")
        between = live.now, live.host
        logps.square().sum().backward()
    assert live.host == 0
    grads = {name: p.grad for name, p in policy.network.named_parameters() if p.grad is not None}
    return logps.detach(), grads, *between


@pytest.mark.parametrize(("lora", "ways"), [(None, ["none"]), (LORA, WAYS)], ids=["full", "lora"])
def test_gradients_are_the_same_and_the_device_has_less(
    deep: str, batch: PromptBatch, lora: Any, ways: list[str]
) -> None:
    """To the bit, however much is recomputed; what left the device is on the host, and gone behind the passes."""
    policy = Policy(deep, dtype="float32", prefix="shared", prefix_attention="split", lora=lora).load()
    policy.network.train()
    policy.prompt_positions(batch)
    for way in ways:
        found = []
        for offloaded in (False, True):
            policy.network.gradient_checkpointing_disable()
            recompute(policy.network, recomputation(way), offloaded)
            found.append(trained(policy, batch))
        kept, away = found
        assert torch.equal(away[0], kept[0])
        assert len(kept[1]) > 30
        assert away[1].keys() == kept[1].keys()
        for name, grad in away[1].items():
            assert torch.equal(grad, kept[1][name]), (way, name)
        assert kept[3] == 0
        assert kept[2] - away[2] <= away[3]
        assert away[2] < LEFT[way] * kept[2], way


# ------------------------------------------------ a device that copies when it is waited for


class Late(Lane):
    """Copies as late as a GPU may make them, when someone waits; memory that is freed is another's by then."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.queue: deque[Callable[[], None]] = deque()
        self.made = 0

    def _later(self, copy: Callable[[], None]) -> int:
        self.queue.append(copy)
        return self.made + len(self.queue)

    def away(self, stored: Tensor) -> tuple[Tensor, Any]:
        host = torch.full_like(stored, 255)
        source, target = weakref.ref(stored.untyped_storage()), weakref.ref(host.untyped_storage())

        def copy() -> None:
            if (written := target()) is not None:  # or nobody will ever read it
                read = source()
                assert read is not None, "freed before it was copied"
                written.copy_(read)

        return host, self._later(copy)

    def back(self, host: Tensor) -> tuple[Tensor, Any]:
        stored = torch.full_like(host, 255)
        target = weakref.ref(stored.untyped_storage())

        def copy() -> None:
            written = target()
            assert written is not None, "another's memory is written to"
            written.copy_(host.untyped_storage())

        return stored, self._later(copy)

    def wait(self, done: Any) -> None:
        while self.made < done:
            self.queue.popleft()()
            self.made += 1


class Layer(nn.Module):
    """Saves parts of one storage, and one twice that is changed in place between, the first time for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.out = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.wide(x).chunk(3, -1)
        gate = a * b
        self.unused = (gate * gate).sum()
        gate.sigmoid_()
        return x + self.out(gate * c).mul_(0.5) * gate


def outputs_of(layers: list[Layer], x: Tensor, away: Offload | None, recomputed: bool) -> tuple[Tensor, list[Tensor]]:
    """Outputs, and the outputs of each layer before them."""
    states = []
    for layer in layers:
        states.append(x)
        with nullcontext() if away is None else away.of_layer(x, storages(layer)):
            x = checkpoint(layer, x, use_reentrant=False) if recomputed else layer(x)
    return x, states


@pytest.mark.parametrize("lane", [Lane, Late])
@pytest.mark.parametrize("recomputed", [False, True], ids=["all", "inputs"])
def test_copies_are_waited_for(monkeypatch: pytest.MonkeyPatch, recomputed: bool, lane: type[Lane]) -> None:
    """Passes one after the other, one of which is given up half way back, and one that goes back twice."""
    monkeypatch.setattr(offloading, "Lane", lane)
    torch.manual_seed(0)
    layers = [Layer() for _ in range(6)]
    weights = [p for layer in layers for p in layer.parameters()]
    inputs = torch.randn(3, 4, 16, 32, requires_grad=True).unbind()
    away = Offload()
    for x in inputs:
        expected = torch.autograd.grad(outputs_of(layers, x, None, recomputed)[0].sum(), weights)
        given_up, states = outputs_of(layers, x, away, recomputed)
        torch.autograd.grad(given_up.sum(), states[-2])
        del given_up, states
        out = outputs_of(layers, x, away, recomputed)[0].sum()
        for again in (True, False):
            got = torch.autograd.grad(out, weights, retain_graph=again)
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


class Slow(Lane):
    """Its stream is late: whatever does not wait for a copy finds other bytes."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        assert self.stream is not None

    def _delayed(self, copy: Callable[[Tensor], Any], stored: Tensor) -> Any:
        with torch.cuda.stream(self.stream):
            torch.cuda._sleep(5_000_000)  # cycles, some milliseconds
        return copy(stored)

    def away(self, stored: Tensor) -> tuple[Tensor, Any]:
        return self._delayed(super().away, stored)  # type: ignore[no-any-return]

    def back(self, host: Tensor) -> tuple[Tensor, Any]:
        return self._delayed(super().back, host)  # type: ignore[no-any-return]


@pytest.mark.gpu
@pytest.mark.parametrize("lane", [Lane, Slow])
@pytest.mark.parametrize("recomputed", [False, True], ids=["all", "inputs"])
def test_copies_beside_the_passes(monkeypatch: pytest.MonkeyPatch, recomputed: bool, lane: type[Lane]) -> None:
    """On a GPU: the gradients to the bit, ten times, and about as much memory as two layers save."""
    monkeypatch.setattr(offloading, "Lane", lane)
    torch.manual_seed(0)
    layers = [Layer().cuda() for _ in range(12)]
    weights = [p for layer in layers for p in layer.parameters()]
    x = torch.randn(1 << 15, 32, device="cuda", requires_grad=True)
    away, between = Offload(), {}
    expected = torch.autograd.grad(outputs_of(layers, x, None, recomputed)[0].sum(), weights)
    for way in [None, *[away] * 10]:
        before = torch.cuda.memory_allocated()
        out = outputs_of(layers, x, way, recomputed)[0].sum()
        torch.cuda.synchronize()
        between[way is None] = torch.cuda.memory_allocated() - before
        got = torch.autograd.grad(out, weights)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert between[False] < 0.5 * between[True]


def test_what_stays_on_the_device() -> None:
    """Weights and their views, small tensors, and those of other devices; a storage is copied once."""
    away, layer, other = Offload(), nn.Linear(32, 32), nn.Linear(32, 32)
    x = torch.randn(16, 32)
    with LiveBytes([x, *layer.parameters(), *other.parameters()]) as live:
        with away.of_layer(x, storages(layer)):
            out = layer(x) * torch.ones(16, 1, requires_grad=True)
        assert live.host == 2 * 2048  # inputs and products, each 16 x 32
        with away.of_layer(x, storages(layer)):
            square = other(x) * layer(x)
        assert live.host == 2048 * (2 + 2)
    assert out.shape == square.shape


def test_selective_where_hooks_do_not_see_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "SEEN_BY_HOOKS", False)
    with pytest.raises(ValueError, match=r"policy\.activation_offloading is true and .* is 'selective', of which PyTo"):
        Policy("nowhere", gradient_checkpointing="selective", activation_offloading=True)


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="activation_offloading is true, and Linear has no layers by transformers'"):
        recompute(nn.Linear(2, 2), False, offloaded=True)


class Asking(GradientCheckpointingLayer):
    """Runs a copy of itself in between, as a thread that samples may."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)
        self.copied: list[Any] = [None]

    def forward(self, x: Tensor) -> Tensor:
        if (copied := self.copied[0]) is not None:
            with torch.no_grad():
                copied(x)
        return self.linear(x).sigmoid()  # type: ignore[no-any-return]


def test_a_copy_that_samples_ends_nothing() -> None:
    """What is saved behind its pass is parked all the same, and nothing when the layer has run or failed."""
    layer = Asking()
    offload(layer, recomputed=False)
    layer.copied[0] = copy.deepcopy(layer)
    x = torch.randn(16, 32)
    with LiveBytes([x, *layer.parameters()]) as live:
        out = layer(x)
        assert live.away == 2 * 2048
        square = out * out
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            layer(x.T)
        again = square * square
        assert live.away == 2 * 2048
    assert again.shape == out.shape
