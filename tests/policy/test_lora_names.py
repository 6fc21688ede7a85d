"""LoRA by names: wrappers around a layer, names of nothing, slips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from transformers import AutoModelForImageTextToText

from orlaif.policy import Policy
from orlaif.tiny import tiny_model


@pytest.fixture(scope="module")
def gemma4(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its tower's layers lie in modules that clip, which PEFT refuses."""
    return tiny_model("gemma4", tmp_path_factory.mktemp("gemma4"))


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], r".*(q_proj|v_proj)"])
def test_a_wrapper_stands_for_its_layer(gemma4: str, targets: Any, tmp_path: Path) -> None:
    policy = Policy(gemma4, dtype="float32", lora={"r": 2, "target_modules": targets}).load()
    adapted = {name.split(".lora_A")[0] for name, _ in policy.network.named_parameters() if ".lora_A" in name}
    ends = {name.split("layers.")[1] for name in adapted if "vision_tower" in name}
    assert ends == {f"{n}.self_attn.{one}_proj.linear" for n in (0, 1) for one in "qv"}
    assert any("language_model" in name and name.endswith("q_proj") for name in adapted)
    assert not any(name.endswith(("o_proj", "o_proj.linear", "k_proj.linear")) for name in adapted)
    policy.network.save_pretrained(tmp_path)  # and others load it
    loaded = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(gemma4), tmp_path)
    again = {name.split(".lora_A")[0] for name, _ in loaded.named_parameters() if ".lora_A" in name}
    assert again == adapted


def test_a_frozen_tower_gets_none(gemma4: str) -> None:
    policy = Policy(gemma4, dtype="float32", lora={"r": 2, "target_modules": ["q_proj"]}, freeze_vision=True).load()
    assert not any("vision_tower" in n for n, _ in policy.network.named_parameters() if ".lora_A" in n)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"rr": 4}, r"policy\.lora has no key 'rr'"),
        ({"lora_alfa": 4}, r"policy\.lora has no key 'lora_alfa'; did you mean 'lora_alpha'\?"),
        ({"target_module": ["q_proj"]}, r"policy\.lora has no key 'target_module'; did you mean 'target_modules'\?"),
        ({"target_modules": ["q_prj"]}, r"target_modules names 'q_prj', which is no module.*; did you mean 'q_proj'\?"),
    ],
)
def test_slips_are_named(tiny_model: str, lora: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Policy(tiny_model, dtype="float32", lora=lora).load()


def test_a_name_of_nothing_is_told(tiny_model: str, caplog: pytest.LogCaptureFixture) -> None:
    Policy(tiny_model, dtype="float32", lora={"r": 2, "target_modules": ["q_proj", "v_prj"]}).load()
    assert any("'v_prj', which is no module" in message for message in caplog.messages)
