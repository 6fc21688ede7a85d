from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from orlaif.policy import Policy
from orlaif.types import PromptBatch
from tests.conftest import make_policy, random_completions

LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


def test_nothing_is_loaded_before_it_is_needed(tiny_model: str) -> None:
    policy = Policy(tiny_model)
    assert policy.model is None
    assert list(policy.parameters()) == []
    assert policy.load() is policy
    first = policy.model
    assert policy.load().model is first
    assert next(policy.parameters()).dtype == torch.bfloat16


def test_the_reference_is_frozen_where_the_policy_was(policy: Policy, batch: PromptBatch) -> None:
    policy.load_reference()
    completions = random_completions(policy, 5, 2, 3)
    before = policy.completion_logps(batch, completions, reference=True)
    torch.testing.assert_close(before, policy.completion_logps(batch, completions).detach(), atol=0, rtol=0)
    with torch.no_grad():
        policy.network.lm_head.weight.mul_(1.5)
    after = policy.completion_logps(batch, completions, reference=True)
    assert not after.requires_grad
    assert torch.equal(before, after)
    assert not torch.allclose(before, policy.completion_logps(batch, completions).detach())
    policy.refresh_reference()
    again = policy.completion_logps(batch, completions, reference=True)
    torch.testing.assert_close(again, policy.completion_logps(batch, completions).detach(), atol=0, rtol=0)


def test_with_lora_the_reference_is_the_base_model(tiny_model: str, batch: PromptBatch) -> None:
    policy = Policy(tiny_model, lora=LORA, dtype="float32").load()
    plain = Policy(tiny_model, dtype="float32").load()
    trainable = [name for name, p in policy.network.named_parameters() if p.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)
    completions = random_completions(plain, 5, 2, 3)
    expected = plain.completion_logps(batch, completions).detach()
    policy.load_reference()
    assert policy.reference.model is None  # no copy
    with torch.no_grad():
        for name, p in policy.network.named_parameters():
            if "lora_B" in name:
                p.normal_()
    torch.testing.assert_close(policy.completion_logps(batch, completions, reference=True), expected, atol=0, rtol=0)
    moved = policy.completion_logps(batch, completions)
    assert not torch.allclose(moved.detach(), expected, atol=1e-3)
    moved.sum().backward()
    with pytest.raises(ValueError, match="there is no reference to refresh"):
        policy.refresh_reference()


def test_an_adapter_is_exported_as_one(tiny_model: str, tmp_path: Path, batch: PromptBatch) -> None:
    policy = Policy(tiny_model, lora=LORA, dtype="float32").load()
    with torch.no_grad():
        for name, p in policy.network.named_parameters():
            if "lora_B" in name:
                p.normal_()
    policy.export(str(tmp_path))
    script = """
import sys
from peft import PeftModel
from transformers import AutoModelForImageTextToText
base = AutoModelForImageTextToText.from_pretrained(sys.argv[1])
model = PeftModel.from_pretrained(base, sys.argv[2])
assert sum(p.abs().sum().item() for n, p in model.named_parameters() if "lora_B" in n) > 0
"""
    subprocess.run([sys.executable, "-c", script, tiny_model, str(tmp_path)], check=True)


def test_freezing_the_vision_tower_and_checkpointing(tiny_model: str, batch: PromptBatch) -> None:
    plain = make_policy(tiny_model)
    policy = make_policy(tiny_model, freeze_vision=True, gradient_checkpointing=True)
    policy.network.train()
    completions = random_completions(plain, 5, 2, 3)
    for p in (plain, policy):
        p.completion_logps(batch, completions).sum().backward()
    grads = dict(plain.network.named_parameters())
    for name, p in policy.network.named_parameters():
        if "visual" in name:
            assert p.grad is None
        elif p.grad is not None:
            torch.testing.assert_close(p.grad, grads[name].grad, atol=1e-5, rtol=1e-4)


def test_auto_says_which_prefix_it_chose(tiny_model: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        assert Policy(tiny_model, attn_implementation="sdpa").load().layout == "shared"
    assert "auto chose 'shared' for model type 'qwen3_vl'" in caplog.text


def test_placeholders_have_no_probability(policy: Policy, batch: PromptBatch) -> None:
    logits = policy.completion_logits(batch, random_completions(policy, 5, 2, 2))
    assert len(policy.placeholder_ids) == 2
    assert bool((logits[..., policy.placeholder_ids] == -torch.inf).all())
    assert bool(logits.softmax(-1).sum(-1).sub(1).abs().max() < 1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: Policy(path, dtype="fp32"), "policy.dtype is 'fp32'; it must be one of"),
        (lambda path: Policy(path, prefix="none"), "policy.prefix is 'none'"),  # type: ignore[arg-type]
        (
            lambda path: Policy(path, prefix="shared", attn_implementation="flash_attention_2"),
            "needs 'sdpa' or 'eager'",
        ),
        (lambda path: Policy("./no/such/folder").load(), "no such folder"),
        (lambda path: Policy(str(Path(path).parent)).load(), "no config.json"),
    ],
)
def test_mistakes_are_named(make, message: str, tiny_model: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(tiny_model)


def test_the_reference_must_be_loaded_first(policy: Policy, batch: PromptBatch) -> None:
    with pytest.raises(ValueError, match="load_reference"):
        policy.completion_logps(batch, random_completions(policy, 5, 2, 2), reference=True)
