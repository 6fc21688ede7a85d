"""From ``prefix: auto`` to a layout: what falls to what, and why, as the log or an error says it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from orlaif.policy import Policy
from orlaif.policy.prefix import choice, fork
from orlaif.policy.prefix.forward import duplicate_forward
from orlaif.policy.prefix.layout import GroupRows
from orlaif.policy.prefix.probe import Probe, Seen


def leaky(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows whose completions see one another, by any attention."""

    def causal(self: GroupRows) -> Tensor:
        r, length = self.shape
        return torch.ones(length, length, dtype=torch.bool).tril().expand(r, 1, length, length)

    monkeypatch.setattr(GroupRows, "mask", property(causal))
    monkeypatch.setattr(choice, "wanted_attentions", lambda *_: ("mask",))


def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches through which no gradient flows; log-probs are right all the same."""
    whole = fork.differentiable_cache

    def cache(config: Any) -> Any:
        made = whole(config)
        for layer in made.layers:
            reorder = layer.reorder_cache

            def cut(rows: Tensor, layer: Any = layer, reorder: Any = reorder) -> None:
                layer.keys, layer.values = layer.keys.detach(), layer.values.detach()
                reorder(rows)

            layer.reorder_cache = cut
        return made

    monkeypatch.setattr(fork, "differentiable_cache", cache)


def forked_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches whose rows are handed to the wrong prompt's completions."""
    whole = fork.differentiable_cache

    def cache(config: Any) -> Any:
        made = whole(config)
        reorder = made.reorder_cache
        made.reorder_cache = lambda rows: reorder(rows.flip(0))
        return made

    monkeypatch.setattr(fork, "differentiable_cache", cache)


def test_a_row_that_is_wrong_falls_to_fork(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    leaky(monkeypatch)
    with caplog.at_level("INFO", logger="orlaif"):
        policy = Policy(tiny_model, dtype="float32").load()
    assert (policy.layout, policy.reads_prompt_once) == ("fork", False)
    assert "auto chose 'fork' for model type 'qwen3_vl': log-probs equal the model's own to" in caplog.text
    assert "not 'shared': mask " in caplog.text


@pytest.mark.parametrize(("break_it", "why"), [(forgetful, "a gradient that differs"), (forked_wrong, "log-probs")])
def test_a_cache_that_is_wrong_falls_to_duplicate(
    break_it: Any, why: str, tiny_model: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    leaky(monkeypatch)
    break_it(monkeypatch)
    with caplog.at_level("INFO", logger="orlaif"):
        assert Policy(tiny_model, dtype="float32").load().layout == "duplicate"
    assert f"not 'fork': gives {why}" in caplog.text
    with pytest.raises(ValueError, match=f"policy.prefix is 'fork', but not for model type 'qwen3_vl': gives {why}"):
        Policy(tiny_model, dtype="float32", prefix="fork").load()
    with pytest.raises(ValueError, match=r"policy.prefix is 'shared', but not for model type 'qwen3_vl': mask "):
        Policy(tiny_model, dtype="float32", prefix="shared").load()


def test_where_nothing_serves_each_reason_is_said(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    leaky(monkeypatch)
    forked_wrong(monkeypatch)
    monkeypatch.setattr(choice, "duplicate_forward", lambda *args: 3 * duplicate_forward(*args))
    reasons = "cannot be trained on batches: duplicate gives log-probs .*; not 'shared': mask .*; not 'fork': gives "
    with pytest.raises(ValueError, match=reasons):
        Policy(tiny_model, dtype="float32").load()


@pytest.mark.parametrize(
    ("leak", "traced", "passes"), [(5e-7, 1e-3, True), (2e-6, 0.0, True), (2e-6, 1e-9, False), (0.3, 0.0, False)]
)
def test_a_leak_and_rounding(leak: float, traced: float, passes: bool) -> None:
    """What moves a little and has no gradient is rounding, as of experts that work on more tokens at once."""
    seen = Seen(difference=0.0, leak=leak, traced=traced, gradient=0.0, logits=torch.zeros(1))
    assert (seen.fault(tolerance=0.25, gradient_tolerance=0.3) is None) == passes


@pytest.mark.parametrize(("batch", "layout"), [(3e-3, "fork"), (0.0, "duplicate")])
def test_a_layout_is_measured_by_the_batch_that_it_spares(
    batch: float, layout: str, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log-probs of ``fork`` are off by 3e-3, which is more than rounding in float32, unless batches alone are."""

    def noisy(forward: Any, scale: float) -> Any:
        def made(*args: Any) -> Tensor:
            outputs = forward(*args)
            return outputs + scale * torch.arange(outputs.shape[-1]).remainder(2)

        return made

    leaky(monkeypatch)
    monkeypatch.setattr(choice, "fork_forward", noisy(fork.fork_forward, 6e-3))
    monkeypatch.setattr(choice, "duplicate_forward", noisy(duplicate_forward, 2 * batch))
    assert Policy(tiny_model, dtype="float32").load().layout == layout


def test_a_model_is_asked_once(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Policy, reference and LoRA need one check between them."""
    made: list[str] = []
    ask = Probe.__init__

    def counted(self: Probe, *args: Any) -> None:
        made.append("probe")
        ask(self, *args)

    monkeypatch.setattr(Probe, "__init__", counted)
    policy = Policy(tiny_model, dtype="float32").load()
    policy.load_reference()
    policy.load()
    assert made == ["probe"]
    assert all(p.requires_grad for p in policy.network.parameters())  # the check held them fixed for a while
