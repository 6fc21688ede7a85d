"""Configs of published checkpoints, whose sizes the hub gives; no weights.

The values are those of the checkpoints' own config.json and model cards on the hub, written down here because tests
reach no hub. That the parameters come to the hub's count (of Qwen3.5: without its layer of multi-token prediction,
which transformers does not load) shows that no size is off.
"""

from __future__ import annotations

from pathlib import Path

from transformers import Qwen2_5_VLConfig, Qwen3_5Config, Qwen3VLConfig

#: Parameters in millions, as the hub's pages count them.
MILLIONS = {
    "Qwen/Qwen2.5-VL-3B-Instruct": 3754.6,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8292.2,
    "Qwen/Qwen3-VL-2B-Instruct": 2127.5,
    "Qwen/Qwen3-VL-4B-Instruct": 4437.8,
    "Qwen/Qwen3-VL-8B-Instruct": 8767.1,
    "Qwen/Qwen3.5-2B": 2213.2,
    "Qwen/Qwen3.5-4B": 4539.3,
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


def _qwen3_vl(hidden: int, inner: int, layers: int, heads: int, tied: bool) -> object:
    text = {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "tie_word_embeddings": tied,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5e6,
            "mrope_section": [24, 20, 20],
            "mrope_interleaved": True,
        },
    }
    large = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}
    small = _SMALL_TOWER | {"deepstack_visual_indexes": [5, 11, 17]}
    vision = {
        **(small if tied else large),
        "num_heads": 16,
        "patch_size": 16,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "out_hidden_size": hidden,
        "num_position_embeddings": 2304,
    }
    return Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied)


#: Of the vision towers of all models here below 5 B parameters, Qwen3-VL and Qwen3.5 alike.
_SMALL_TOWER = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096}


def _qwen3_5(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, value_heads: int) -> object:
    text = {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 256,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": value_heads,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "vocab_size": 248320,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e7,
            "partial_rotary_factor": 0.25,
            "mrope_section": [11, 11, 10],
            "mrope_interleaved": True,
        },
    }
    vision = _SMALL_TOWER | {"num_heads": 16, "patch_size": 16, "out_hidden_size": hidden}
    return Qwen3_5Config(text_config=text, vision_config=vision, tie_word_embeddings=True)


CONFIGS = {
    "Qwen/Qwen2.5-VL-3B-Instruct": lambda: _qwen2_5_vl(2048, 11008, 36, 16, 2, 151936, True),
    "Qwen/Qwen2.5-VL-7B-Instruct": lambda: _qwen2_5_vl(3584, 18944, 28, 28, 4, 152064, False),
    "Qwen/Qwen3-VL-2B-Instruct": lambda: _qwen3_vl(2048, 6144, 28, 16, True),
    "Qwen/Qwen3-VL-4B-Instruct": lambda: _qwen3_vl(2560, 9728, 36, 32, True),
    "Qwen/Qwen3-VL-8B-Instruct": lambda: _qwen3_vl(4096, 12288, 36, 32, False),
    "Qwen/Qwen3.5-2B": lambda: _qwen3_5(2048, 6144, 24, 8, 2, 16),
    "Qwen/Qwen3.5-4B": lambda: _qwen3_5(2560, 9216, 32, 16, 4, 32),
}


def write_config(name: str, folder: Path) -> str:
    """The config of this checkpoint, in a folder of its own."""
    path = folder / name.split("/")[1]
    CONFIGS[name]().save_pretrained(path)  # type: ignore[attr-defined]
    return str(path)
