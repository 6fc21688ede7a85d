"""Configs of published checkpoints, whose sizes the hub gives; no weights."""

from __future__ import annotations

from pathlib import Path

from transformers import Qwen2_5_VLConfig, Qwen3VLConfig

#: Parameters in millions, as the hub's pages count them.
MILLIONS = {
    "Qwen/Qwen2.5-VL-3B-Instruct": 3754.6,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8292.2,
    "Qwen/Qwen3-VL-8B-Instruct": 8767.1,
}


def _qwen2_5_vl(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocab: int, tied: bool) -> object:
    text = {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "patch_size": 14,
        "out_hidden_size": hidden,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "window_size": 112,
    }
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied)


def write_config(name: str, folder: Path) -> str:
    """The config of this checkpoint, in a folder of its own."""
    if name == "Qwen/Qwen2.5-VL-3B-Instruct":
        config = _qwen2_5_vl(2048, 11008, 36, 16, 2, 151936, True)
    elif name == "Qwen/Qwen2.5-VL-7B-Instruct":
        config = _qwen2_5_vl(3584, 18944, 28, 28, 4, 152064, False)
    else:
        assert name == "Qwen/Qwen3-VL-8B-Instruct"
        text = {
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
        }
        vision = {
            "depth": 27,
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_heads": 16,
            "patch_size": 16,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "out_hidden_size": 4096,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [8, 16, 24],
        }
        config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
    path = folder / name.split("/")[1]
    config.save_pretrained(path)  # type: ignore[attr-defined]
    return str(path)
