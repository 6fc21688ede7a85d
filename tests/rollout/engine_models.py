"""Tiny models that vLLM's kernels for CPUs can run: heads of 32, and one normalisation for images and videos."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoProcessor

from orlaif.tiny import tiny_model
from orlaif.tiny.registry import Parts, random_model


def engine_model(model_type: str, folder: str | Path) -> str:
    """Write a tiny checkpoint of a family; returns the folder.

    vLLM normalises videos on the device, by the numbers of the image processor.
    """
    tiny_model(model_type, folder)
    path = Path(folder, "processor_config.json")
    about = json.loads(path.read_text())
    for name in ("image_mean", "image_std"):
        about["video_processor"][name] = about["image_processor"][name] = [0.5, 0.5, 0.5]
    path.write_text(json.dumps(about))
    config = AutoConfig.from_pretrained(folder)
    text = config.text_config
    text.head_dim = 32
    if model_type != "qwen3_vl":  # whose heads are hidden_size / num_attention_heads
        text.hidden_size = 32 * text.num_attention_heads
    if model_type == "qwen2_5_vl":
        config.vision_config.out_hidden_size = text.hidden_size
    if "mrope_section" in (rope := getattr(text, "rope_parameters", None) or {}):
        rope["mrope_section"] = [4, 6, 6]
    random_model(Parts(processor=AutoProcessor.from_pretrained(folder), config=config), seed=0).save_pretrained(folder)
    if model_type == "llava_onevision":
        _name_as_published(next(Path(folder).glob("*.safetensors")))
    return str(folder)


def _name_as_published(file: Path) -> None:
    """The names of LLaVA-OneVision's published checkpoints, which vLLM reads; transformers writes others."""
    weights = {}
    for name, value in load_file(file).items():
        name = name.removeprefix("model.")
        for part, inner in (("vision_tower.", "vision_model."), ("language_model.", "model.")):
            if name.startswith(part) and not name.startswith((part + inner, "language_model.lm_head")):
                name = name.replace(part, part + inner, 1)
        weights["language_model." + name if name.startswith("lm_head") else name] = value
    save_file(weights, file, {"format": "pt"})
