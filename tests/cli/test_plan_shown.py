"""What a model on the meta device does with a small clip, and what the plan takes from that."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from orlaif.cli.plan.attention import makes_scores
from orlaif.cli.plan.command import _of_precision
from orlaif.cli.plan.numbers import WholeNumbers
from orlaif.cli.plan.passes import Passes
from orlaif.cli.plan.recipe_sizes import patch_values, video_tokens
from orlaif.data.sampling import UniformSampling
from orlaif.policy import Policy
from tests.cli.test_plan_families import without_weights


def test_whole_numbers_have_values_and_nothing_else_has() -> None:
    with WholeNumbers():
        ids = torch.tensor([3, 1, 2]).to("meta")
        lengths = torch.arange(3, device="meta").cumsum(0)
        table = nn.Embedding(4, 5, device="meta")(ids)
        chosen = torch.empty(3, 5, device="meta")[ids > 1]
    assert ids.tolist() == [3, 1, 2]
    assert lengths.tolist() == [0, 1, 3]
    assert (table.device.type, tuple(table.shape)) == ("meta", (3, 5))
    assert tuple(chosen.shape) == (2, 5)


def test_what_a_video_does_not_reach_is_not_trained(tmp_path: Path) -> None:
    """A tower for pictures beside that for videos, with an adapter in neither its layers nor their last one's."""
    lora = {"r": 4, "target_modules": "all-linear"}
    model = Passes(Policy(without_weights("video_llava", tmp_path), lora=lora)).base
    named = {name: p.requires_grad for name, p in model.named_parameters()}
    assert not any("lora_" in name for name in named if "image_tower" in name)
    assert any(trained for name, trained in named.items() if "video_tower" in name)
    full = Passes(Policy(str(tmp_path))).model
    trained = {name: p.requires_grad for name, p in full.named_parameters()}
    assert not any(on for name, on in trained.items() if "image_tower" in name)
    assert trained["model.video_tower.encoder.layers.0.self_attn.q_proj.weight"]
    assert trained["lm_head.weight"]


def test_layers_are_given_what_the_tower_gave_them(tmp_path: Path) -> None:
    """Two frames of 280 places: sine and cosine of 16 numbers each, a mask, and two coordinates."""
    tower = Passes(Policy(without_weights("gemma4", tmp_path), dtype="float32")).tower
    assert tower.handed(560) == (2 * 2 * 280 * 16 * 4, 2 * 280 * 280 + 2 * 280 * 2 * 8)
    assert tower.layers(560, train=False)[0].peak > 2 * 280 * 280 * 4  # the mask, in numbers


@pytest.mark.parametrize(("family", "further"), [("video_llava", (2, 2)), ("qwen3_vl", (0, 0))])
def test_hidden_states_of_all_layers(family: str, further: tuple[int, int], tmp_path: Path) -> None:
    """Some towers collect them, and hand them out with the features."""
    assert Passes(Policy(without_weights(family, tmp_path))).tower.further == further


def test_a_patch_is_what_is_embedded(tmp_path: Path) -> None:
    """Two frames of 12 x 12 pixels in three colours; a convolution over patches within a layer is none."""
    assert patch_values(Policy(without_weights("lfm3_vl", tmp_path))) == 2 * 3 * 12 * 12


def test_masks_of_pixels_are_counted(tmp_path: Path) -> None:
    """Eight frames of 48 x 48 places in whole numbers of 8 bytes, and, after transformers 5.17, one for each token."""
    pytest.importorskip("num2words")  # which its processor needs
    clip: Any = SimpleNamespace(sampling=UniformSampling(8), budget=None)
    tokens, _, _, beside = video_tokens(Policy(without_weights("smolvlm", tmp_path)), clip, 96, 128, 8.0)
    assert beside - 8 * 8 * 48 * 48 in (0, 8 * tokens)


def test_attention_on_a_cpu_makes_scores_for_unequal_heads(tmp_path: Path) -> None:
    assert makes_scores(24, 16, torch.float32)
    assert not makes_scores(16, 16, torch.float32)
    policy = Policy(without_weights("kimi_k25", tmp_path), dtype="bfloat16")
    on_cpu, on_gpu = (Passes(policy, device).decoder(1, 200, train=False).peak for device in ("cpu", "cuda"))
    heads = policy.config.get_text_config().num_attention_heads
    assert on_cpu - on_gpu > heads * 200 * 200 * 2


def test_mixed_precision_is_not_counted_and_told() -> None:
    assert "trainer.precision is 'bf16-mixed', under which" in _of_precision("bf16-mixed")[0]
    assert _of_precision("32-true") == _of_precision(None) == []
