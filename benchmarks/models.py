"""Models of published sizes with random weights, and small ones of the same make, as Hugging Face folders.

The published sizes are those of ``published.py``. The tokenizer is a tiny one, whose ids all lie in the model's
vocabulary.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from benchmarks.published import PUBLISHED, Size, delta, text
from orlaif.tiny import CHAT_TEMPLATE, tiny_tokenizer

SIZES = {
    "qwen2.5-vl-3b": PUBLISHED["Qwen/Qwen2.5-VL-3B-Instruct"],
    "qwen3-vl-2b": PUBLISHED["Qwen/Qwen3-VL-2B-Instruct"],
    "qwen3.5-2b": PUBLISHED["Qwen/Qwen3.5-2B"],
    "qwen2.5-vl-tiny": Size(
        family="qwen2_5_vl",
        text=text(256, 1024, 6, 4, 2, 8192),
        vision={"depth": 4, "hidden_size": 128, "intermediate_size": 256, "num_heads": 4, "fullatt_block_indexes": [3]},
        patch=14,
    ),
    # For rehearsals: what is looked at is that it runs.
    "qwen2.5-vl-least": Size(
        family="qwen2_5_vl",
        text=text(32, 64, 2, 2, 1, 256),
        vision={"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "fullatt_block_indexes": [1]},
        patch=14,
    ),
    "qwen3.5-least": Size(
        family="qwen3_5",
        text={**text(32, 64, 4, 2, 1, 256), "head_dim": 32, **delta(2, 2, 8)},
        vision={"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2},
        patch=16,
    ),
}


def _qwen2_5_vl(size: Size, shared: dict[str, Any], places: dict[str, Any]) -> tuple[Any, Any]:
    head = size.text["hidden_size"] // size.text["num_attention_heads"]
    sections = [head // 8, 3 * head // 16, head // 2 - head // 8 - 3 * head // 16]
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
    vision = {**size.vision, "patch_size": 14, "window_size": 112, "out_hidden_size": size.text["hidden_size"]}
    config = Qwen2_5_VLConfig(
        text_config={**size.text, **shared, "rope_parameters": rope, "tie_word_embeddings": size.tied},
        vision_config=vision,
        tie_word_embeddings=size.tied,
        **places,
    )
    return Qwen2_5_VLForConditionalGeneration, config


def _qwen3_vl(size: Size, shared: dict[str, Any], places: dict[str, Any]) -> tuple[Any, Any]:
    turned = size.text["head_dim"] // 2
    sections = [turned - 2 * (5 * turned // 16), 5 * turned // 16, 5 * turned // 16]
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": sections, "mrope_interleaved": True}
    tower = {"patch_size": 16, "out_hidden_size": size.text["hidden_size"], "num_position_embeddings": 2304}
    stacked = [n * size.vision["depth"] // 4 - 1 for n in (1, 2, 3)]
    config = Qwen3VLConfig(
        text_config={**size.text, **shared, "rope_parameters": rope, "tie_word_embeddings": size.tied},
        vision_config={"deepstack_visual_indexes": stacked, **size.vision, **tower},
        tie_word_embeddings=size.tied,
        **places,
    )
    return Qwen3VLForConditionalGeneration, config


def _qwen3_5(size: Size, shared: dict[str, Any], places: dict[str, Any]) -> tuple[Any, Any]:
    turned = size.text["head_dim"] // 8  # frequencies: of a quarter of the head, half as many as values
    sections = [turned - 2 * (turned // 3), turned // 3, turned // 3]
    if turned == 32:
        sections = [11, 11, 10]
    rope = {
        "rope_type": "default",
        "rope_theta": 1e7,
        "partial_rotary_factor": 0.25,
        "mrope_section": sections,
        "mrope_interleaved": True,
    }
    config = Qwen3_5Config(
        text_config={**size.text, **shared, "rope_parameters": rope, "tie_word_embeddings": size.tied},
        vision_config={**size.vision, "patch_size": 16, "out_hidden_size": size.text["hidden_size"]},
        tie_word_embeddings=size.tied,
        **places,
    )
    return Qwen3_5ForConditionalGeneration, config


FAMILIES: dict[str, tuple[Callable[..., tuple[Any, Any]], Any, Any]] = {
    "qwen2_5_vl": (_qwen2_5_vl, Qwen2_5_VLProcessor, Qwen2VLVideoProcessor),
    "qwen3_vl": (_qwen3_vl, Qwen3VLProcessor, Qwen3VLVideoProcessor),
    "qwen3_5": (_qwen3_5, Qwen3VLProcessor, Qwen3VLVideoProcessor),
}


def config_of(name: str) -> Any:
    """The config of a published checkpoint, its own tokens and processor aside.

    Args:
        name: on the hub, a key of ``benchmarks.published.PUBLISHED``.
    """
    size = PUBLISHED[name]
    return FAMILIES[size.family][0](size, {}, {})[1]


def build(name: str) -> tuple[Any, Any, Any]:
    """Model class, config and processor.

    Args:
        name: a key of :data:`SIZES`.
    """
    size = SIZES[name]
    make, kind, video = FAMILIES[size.family]
    tokenizer = tiny_tokenizer(["what", "is", "this"])
    patches: dict[str, Any] = {"patch_size": size.patch, "temporal_patch_size": 2, "merge_size": 2}
    edge = 2 * size.patch
    patches["size"] = {"shortest_edge": 4 * edge**2, "longest_edge": 16384 * edge**2}
    processor = kind(
        image_processor=Qwen2VLImageProcessor(**patches),
        tokenizer=tokenizer,
        video_processor=video(**patches, cap_pixels_per_frame=False),  # of whose default versions differ
        chat_template=CHAT_TEMPLATE,
    )
    ids: Any = tokenizer.convert_tokens_to_ids
    shared = {"eos_token_id": ids("<|im_end|>"), "pad_token_id": ids("<|endoftext|>"), "bos_token_id": None}
    places = {
        "image_token_id": ids("<|image_pad|>"),
        "video_token_id": ids("<|video_pad|>"),
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
    }
    model, config = make(size, shared, places)
    return model, config, processor


def write_model(folder: str, name: str, device: str) -> None:
    """A model with random weights in bfloat16, with its processor, as a Hugging Face folder.

    Args:
        folder: where to.
        name: a key of :data:`SIZES`.
        device: on which the weights are drawn.
    """
    kind, config, processor = build(name)
    processor.save_pretrained(folder)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = kind(config)
    torch.set_default_dtype(torch.float32)
    model.generation_config.eos_token_id = config.text_config.eos_token_id
    model.generation_config.pad_token_id = config.text_config.pad_token_id
    model.save_pretrained(folder)


def kept_model(name: str, device: str) -> str:
    """The folder of such a model, written once per machine and torch version: the parts of a GPU day share it."""
    root = Path(os.environ.get("ORLAIF_GPU_SCRATCH", Path(tempfile.gettempdir()) / f"orlaif-models-{os.getuid()}"))
    folder = root / f"{name}-torch{torch.__version__}-{device}"
    if not folder.is_dir():
        partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
        try:
            write_model(str(partial), name, device)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        if device == "cuda":
            torch.cuda.empty_cache()
    return str(folder)
