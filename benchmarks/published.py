"""Sizes of published checkpoints: those of their own config.json on the hub, which benchmarks and tests do not reach.

That the parameters come to the hub's count (of Qwen3.5: without its layer of multi-token prediction, which transformers
does not load) shows that no size is off: ``tests/benchmarks/test_day.py`` and ``tests/test_recipes.py`` see to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of a model.

    Args:
        family: how it is built, a key of ``benchmarks.models.FAMILIES``.
        text: of the decoder's config.
        vision: of the vision tower's.
        patch: side of a patch, pixels.
        tied: whether the head is the embedding.
    """

    family: str
    text: dict[str, Any]
    vision: dict[str, Any]
    patch: int
    tied: bool = True


def text(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocabulary: int) -> dict[str, Any]:
    """Sizes of a decoder with attention, by the names of its config."""
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
    }


def delta(key_heads: int, value_heads: int, size: int) -> dict[str, Any]:
    """And of its recurrent layers."""
    heads = {"linear_num_key_heads": key_heads, "linear_num_value_heads": value_heads}
    return {**heads, "linear_key_head_dim": size, "linear_value_head_dim": size}


_WINDOWS: dict[str, Any] = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
_WINDOWS |= {"fullatt_block_indexes": [7, 15, 23, 31]}
#: Of the vision towers of all models here below 5 B parameters, Qwen3-VL and Qwen3.5 alike.
_SMALL: dict[str, Any] = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16}
_LARGE: dict[str, Any] = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16}
_LARGE |= {"deepstack_visual_indexes": [8, 16, 24]}


def _qwen3(hidden: int, inner: int, layers: int, heads: int) -> dict[str, Any]:
    return {**text(hidden, inner, layers, heads, 8, 151936), "head_dim": 128}


def _qwen3_5(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, value_heads: int) -> dict[str, Any]:
    return {**text(hidden, inner, layers, heads, kv_heads, 248320), "head_dim": 256, **delta(16, value_heads, 128)}


PUBLISHED = {
    "Qwen/Qwen2.5-VL-3B-Instruct": Size(
        family="qwen2_5_vl", text=text(2048, 11008, 36, 16, 2, 151936), vision=_WINDOWS, patch=14
    ),
    "Qwen/Qwen2.5-VL-7B-Instruct": Size(
        family="qwen2_5_vl", text=text(3584, 18944, 28, 28, 4, 152064), vision=_WINDOWS, patch=14, tied=False
    ),
    "Qwen/Qwen3-VL-2B-Instruct": Size(family="qwen3_vl", text=_qwen3(2048, 6144, 28, 16), vision=_SMALL, patch=16),
    "Qwen/Qwen3-VL-4B-Instruct": Size(family="qwen3_vl", text=_qwen3(2560, 9728, 36, 32), vision=_SMALL, patch=16),
    "Qwen/Qwen3-VL-8B-Instruct": Size(
        family="qwen3_vl", text=_qwen3(4096, 12288, 36, 32), vision=_LARGE, patch=16, tied=False
    ),
    "Qwen/Qwen3.5-2B": Size(family="qwen3_5", text=_qwen3_5(2048, 6144, 24, 8, 2, 16), vision=_SMALL, patch=16),
    "Qwen/Qwen3.5-4B": Size(family="qwen3_5", text=_qwen3_5(2560, 9216, 32, 16, 4, 32), vision=_SMALL, patch=16),
}

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
