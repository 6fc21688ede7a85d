"""Tiny models of further families, for tests that must hold on each."""

from __future__ import annotations

import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from orlaif.data.shapes import words
from orlaif.tiny import CHAT_TEMPLATE, make_tiny_model, tiny_tokenizer


def make_qwen2_5_vl(folder: str) -> None:
    """A Qwen2.5-VL of 2 layers and 32 hidden units, window attention in its vision tower."""
    size = {"shortest_edge": 2 * 48 * 48, "longest_edge": 64 * 48 * 48}
    patches = {"patch_size": 12, "temporal_patch_size": 2, "merge_size": 2, "size": size}
    tokenizer = tiny_tokenizer(words())
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**patches),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**patches),
        chat_template=CHAT_TEMPLATE,
    )
    ids = tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
            "eos_token_id": ids("<|im_end|>"),
            "pad_token_id": ids("<|endoftext|>"),
            "bos_token_id": None,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 12,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "out_hidden_size": 32,
            "window_size": 24,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = ids("<|im_end|>")
    model.generation_config.pad_token_id = ids("<|endoftext|>")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def make_qwen3_vl(folder: str) -> None:
    """A Qwen3-VL of 2 layers and 32 hidden units, with DeepStack and interleaved m-RoPE."""
    make_tiny_model(folder, words(), hidden_size=32, num_layers=2)


FAMILIES = {"qwen3_vl": make_qwen3_vl, "qwen2_5_vl": make_qwen2_5_vl}
