"""Sizes of tiny decoders and vision towers, in the words of transformers' configs."""

from __future__ import annotations

from typing import Any

#: Pixels of a frame's side, for models that see squares of one size.
SIDE = 48
SQUARE = {"height": SIDE, "width": SIDE}
#: A vision tower of the CLIP kind; Qwen's kind calls the same otherwise.
TOWER: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
PATCH = {"image_size": SIDE, "patch_size": 12}
QWEN_TOWER: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 2,
    "patch_size": 12,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "out_hidden_size": 32,
}


def decoder(tokenizer: Any, **changes: Any) -> dict[str, Any]:
    """A decoder of 2 layers and 32 hidden units for a tokenizer; what ``changes`` set to None is left out."""
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 4096,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
    kept = {**sizes, **changes}
    return {name: value for name, value in kept.items() if value is not None or name == "bos_token_id"}


def rope(*sections: int, **changes: Any) -> dict[str, Any]:
    """Rotary positions, multimodal ones where ``sections`` say how many frequencies time, height and width get."""
    given = {"mrope_section": list(sections)} if sections else {}
    return {"rope_type": "default", "rope_theta": 10000.0, **given, **changes}


def token_ids(tokenizer: Any, named: dict[str, str]) -> dict[str, int]:
    """``*_token_id`` of a config for each ``*_token`` of a tokenizer."""
    return {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in named.items()}
