"""Features of a frozen vision tower: once per batch for rollout, reference and policy, and the same numbers."""

from __future__ import annotations

import pytest
import torch

from orlaif.demo.shapes import ShapesDataset
from orlaif.policy import Policy
from orlaif.rollout import SamplingParams, generate
from orlaif.types import Completions
from tests.conftest import make_policy, random_completions
from tests.families import FAMILIES, vision_tower
from tests.policy.prefix.test_layout import count
from tests.rollout.test_local import five

DECODER_LORA = {"r": 4, "target_modules": r".*(language_model|text_model).*(q_proj|v_proj)"}


def loaded(family: str, folder: str, **settings: object) -> Policy:
    FAMILIES[family](folder)
    return Policy(folder, dtype="float32", **settings).load()  # type: ignore[arg-type]


def a_step(policy: Policy, batch: object) -> tuple[Completions, torch.Tensor, torch.Tensor]:
    sampling = SamplingParams(max_new_tokens=3)
    completions = generate(policy, batch, 3, sampling, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    reference = policy.completion_logps(batch, completions, reference=True)  # type: ignore[arg-type]
    return completions, reference, policy.completion_logps(batch, completions)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", list(FAMILIES))
def test_once_per_prompt_with_lora_on_the_decoder(family: str, tmp_path: object, shapes: ShapesDataset) -> None:
    policy = loaded(family, str(tmp_path), lora=DECODER_LORA)
    batch = five(policy, shapes)
    model = policy.network.get_base_model()
    calls = {"calls": 0}
    vision_tower(model).register_forward_hook(lambda *_: calls.__setitem__("calls", calls["calls"] + 1))
    kept = a_step(policy, batch)
    assert calls["calls"] == 1
    kept[2].sum().backward()
    another = five(policy, shapes)  # the same prompts, but another batch
    again = a_step(policy, another)
    assert calls["calls"] == 2
    assert torch.equal(kept[0].ids, again[0].ids)
    # Against features computed anew each time.
    policy.features.reused = lambda family, model, batch: (
        torch.no_grad() if not torch.is_grad_enabled() else torch.enable_grad()
    )  # type: ignore[method-assign]
    fresh = a_step(policy, five(policy, shapes))
    assert calls["calls"] == 5
    for a, b in zip(kept[1:], fresh[1:], strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)


def test_once_per_prompt_with_a_frozen_tower_and_full_fine_tuning(tiny_model: str, shapes: ShapesDataset) -> None:
    policy = make_policy(tiny_model, freeze_vision=True)
    policy.load_reference()
    batch = five(policy, shapes)
    seen = count(policy)
    a_step(policy, batch)
    assert seen["calls"] == 1


def test_a_tower_that_is_trained_is_never_reused(tiny_model: str, shapes: ShapesDataset) -> None:
    policy = make_policy(tiny_model)
    policy.load_reference()
    batch = five(policy, shapes)
    seen = count(policy)
    a_step(policy, batch)[2].sum().backward()
    assert seen["calls"] == 2  # rollout and policy; the reference has a tower of its own
    assert vision_tower(policy.network).patch_embed.proj.weight.grad.abs().sum() > 0


def test_a_frozen_tower_is_all_that_makes_features(tmp_path: object, shapes: ShapesDataset) -> None:
    """LLaVA-OneVision: tower, projector and the parameter that ends a clip; the decoder behind them learns."""
    policy = loaded("llava_onevision", str(tmp_path), freeze_vision=True)
    batch = five(policy, shapes)
    policy.completion_logps(batch, random_completions(policy, 5, 2, 2)).sum().backward()
    inner = policy.network.model
    frozen = [*inner.vision_tower.parameters(), *inner.multi_modal_projector.parameters(), inner.image_newline]
    assert not any(p.requires_grad or p.grad is not None for p in frozen)
    assert all(p.grad is not None for p in inner.language_model.layers.parameters())


def test_lora_leaves_a_frozen_tower_without_adapter(tmp_path: object) -> None:
    """``all-linear`` would take tower and projector too."""
    lora = {"r": 4, "target_modules": "all-linear"}
    policy = loaded("llava_onevision", str(tmp_path), freeze_vision=True, lora=lora)
    adapted = [name for name, _ in policy.network.named_parameters() if "lora_A" in name]
    assert adapted
    assert all("language_model" in name or "lm_head" in name for name in adapted)
