"""Tiny models: small, the same for a seed, whole folders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor

from orlaif.tiny import families, tiny_model
from tests.zoo import folder_of


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def test_there_are_the_families_that_people_fine_tune() -> None:
    assert len(families()) >= 36
    wanted = "qwen3_5 qwen3_vl qwen2_5_vl qwen3_omni_moe internvl gemma4 minicpmv4_6 glm46v molmo2"
    assert set(wanted.split()) <= set(families())


def test_a_family_that_is_not_there() -> None:
    with pytest.raises(ValueError, match="no tiny model of model type 'qwen9'; there are cohere_compass, "):
        tiny_model("qwen9", "nowhere")


@pytest.mark.parametrize("name", ["internvl", "gemma4", "qwen3_vl_moe"])
def test_weights_are_a_seeds_and_wide(name: str, tmp_path: Path) -> None:
    first, again, other = weights(folder_of(name)), tmp_path / "again", tmp_path / "other"
    same, differ = weights(tiny_model(name, again)), weights(tiny_model(name, other, seed=1))
    assert all(torch.equal(same[key], value) for key, value in first.items())
    assert not all(torch.equal(differ[key], value) for key, value in first.items())
    assert sum(value.numel() for value in first.values()) < 300_000
    assert all(value.dtype == torch.float32 for value in first.values())
    matrices = [value for key, value in first.items() if value.ndim == 2 and key.endswith("_proj.weight")]
    assert min(float(value.std()) for value in matrices) > 0.09


def test_a_tokenizer_knows_the_words_that_it_is_given(tmp_path: Path) -> None:
    """And ends what is written with the token that the model's generation config names."""
    processor = AutoProcessor.from_pretrained(tiny_model("llava_onevision", tmp_path, words=["aubergine", "red"]))
    tokenizer = processor.tokenizer
    assert tokenizer.decode(tokenizer("red aubergine")["input_ids"]) == "red aubergine"
    assert tokenizer.unk_token_id not in tokenizer("aubergine 12 ?")["input_ids"]
    assert f'"eos_token_id": {tokenizer.eos_token_id}' in (tmp_path / "generation_config.json").read_text()
