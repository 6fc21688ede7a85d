"""Mixtures of experts: routers as the model's own training has them, adapters on experts."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from orlaif.policy import Policy
from orlaif.policy.encoding import ProcessorEncoder
from orlaif.policy.experts import expert_parameters, linear_names, routers
from orlaif.rollout.engine_weights import whole_weights
from orlaif.tiny import tiny_model as write
from orlaif.types import Completions, PromptBatch, VideoPrompt
from tests.conftest import random_completions
from tests.families import skip_unless_its_export_is_whole
from tests.policy.test_encoding import a_clip

LORA: dict[str, Any] = {"r": 4, "target_modules": "all-linear", "target_parameters": "all-experts"}


@pytest.fixture(scope="module", params=["qwen3_vl_moe", "qwen3_omni_moe"])
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(request.param, str(tmp_path_factory.mktemp(request.param)))


def asked(policy: Policy) -> tuple[PromptBatch, Completions]:
    prompts = [VideoPrompt(id=q, video="clip", question=q) for q in ("what color is it ?", "what")]
    batch = ProcessorEncoder(policy.processor, family=policy.family)(prompts, [a_clip(4), a_clip(6)])
    return batch, random_completions(policy, 2, 2, 3)


def test_routers_and_experts_are_asked(folder: str, tiny_model: str) -> None:
    policy = Policy(folder, dtype="float32").load()
    names = [name for name, _ in routers(policy.network)]
    assert [name.rpartition("layers.")[2] for name in names] == ["0.mlp.gate", "1.mlp.gate"]
    assert expert_parameters(policy.network) == ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]
    linear = linear_names(policy.network, {id(part) for part in policy.family.tower(policy.network)})
    assert linear == ["k_proj", "o_proj", "q_proj", "v_proj"]
    plain = Policy(tiny_model, dtype="float32").load()
    assert routers(plain.network) == []
    assert expert_parameters(plain.network) == []


def test_full_fine_tuning_trains_the_routers(folder: str) -> None:
    policy = Policy(folder, dtype="float32").load()
    policy.completion_logps(*asked(policy)).sum().backward()
    for _, router in routers(policy.network):
        assert float(router.weight.grad.abs().max()) > 0


def test_an_adapter_on_experts(folder: str, tmp_path: Path) -> None:
    """Its layout is exact, routers and base stay, the reference is the base; it is exported, merged, and pushed."""
    skip_unless_its_export_is_whole(folder)
    policies = {
        prefix: Policy(folder, dtype="float32", lora=LORA, freeze_vision=True, prefix=prefix).load()
        for prefix in ("shared", "duplicate")
    }
    policy = policies["shared"]
    batch, completions = asked(policy)
    before = policy.completion_logps(batch, completions).detach()
    policy.load_reference(refreshed=True)
    trained = {name for name, p in policy.network.named_parameters() if p.requires_grad}
    assert {name.partition(".lora_")[0].split(".")[-1] for name in trained} >= {"experts", "base_layer", "q_proj"}
    assert not any(".gate." in name for name in trained)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in policy.network.named_parameters():
            if ".default" in name and p.requires_grad:
                p.add_(torch.randn_like(p) * 0.1)
                dict(policies["duplicate"].network.named_parameters())[name].copy_(p)
    grads = []
    for one in policies.values():
        logps = one.completion_logps(batch, completions)
        logps.sum().backward()
        grads.append({n: p.grad for n, p in one.network.named_parameters() if p.grad is not None})
        assert float((logps - before).detach().abs().max()) > 1e-3
        one.logps = logps.detach()
    assert float((policies["shared"].logps - policies["duplicate"].logps).abs().max()) < 1e-5
    largest = max(float(g.abs().max()) for g in grads[0].values())
    assert grads[0].keys() == grads[1].keys() == trained
    assert max(float((grads[0][n] - g).abs().max()) for n, g in grads[1].items()) < 1e-5 * largest
    kept = policy.completion_logps(batch, completions, reference=True)
    assert torch.equal(kept, before)

    pushed = dict(whole_weights(policy))
    policy.export(str(tmp_path / "adapter"))
    policy.export(str(tmp_path / "merged"), merge=True)
    for name in ("adapter", "merged"):
        again = Policy(str(tmp_path / name), dtype="float32")
        assert float((again.completion_logps(batch, completions) - policy.logps).abs().max()) < 1e-5
        merged = dict(again.network.named_parameters())
        assert max(float((merged[n] - w).abs().max()) for n, w in pushed.items() if n in merged) < 1e-6
        assert any(n.endswith("experts.down_proj") for n in pushed)


def test_no_experts(tiny_model: str) -> None:
    with pytest.raises(
        ValueError, match=r"target_parameters is 'all-experts', and model type 'qwen3_vl' has no experts"
    ):
        Policy(tiny_model, dtype="float32", lora=LORA).load()


def test_a_balancing_loss_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write("qwen3_vl_moe", str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["output_router_logits"] = True
    (tmp_path / "config.json").write_text(json.dumps(config))
    with caplog.at_level(logging.WARNING):
        policy = Policy(folder, dtype="float32", prefix="shared").load()
    assert "adds a loss that balances experts (router_aux_loss_coef 0.001); training here is without it" in caplog.text
    policy.completion_logps(*asked(policy))
