"""Tiny models (``orlaif.tiny``) made wider and deeper, so that what counts is tensors of size."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from orlaif.tiny.registry import Parts, built, write
from orlaif.tiny.tokens import WORDS

#: Fields of configs that say how wide something is.
_WIDTHS = re.compile(
    r"(^|_)(hidden_sizes?|intermediate_size|head_dim|embed_dim|lora_rank|ffn_dim|d_model|output_proj_dims|output_dim|"
    r"adapter_(in|out)_dim|adapter_input_size|rotary_dim|hidden_size_per_layer_input|mrope_section|conv_output_size)$"
)
#: Ends of names of lists that have an entry for each layer.
_OF_LAYERS = ("layer_types", "block_type", "rope_theta")
_MORE_WORDS = tuple(f"word{i}" for i in range(1000))


def wider(said: dict[str, Any], by: int, deeper: bool, is_text: bool = False) -> dict[str, Any]:
    """What a config says, with widths ``by`` times as large, and with ``deeper`` a decoder of twice the layers."""
    layers = said.get("num_hidden_layers") if is_text and deeper else None
    found: dict[str, Any] = {}
    for name, value in said.items():
        known = isinstance(name, str) and _WIDTHS.search(name) is not None
        if isinstance(value, dict):
            value = wider(value, by, deeper, name == "text_config")
        elif known and isinstance(value, list):
            value = [each * by for each in value]
        elif known and isinstance(value, int) and not isinstance(value, bool):
            value = value * by
        elif layers and (name == "num_hidden_layers" or _of_layers(name, value, layers)):
            value = 2 * value
        found[name] = value
    return found


def _of_layers(name: Any, value: Any, layers: int) -> bool:
    """Whether a field of a config is a list with an entry for each layer."""
    return isinstance(value, list) and len(value) == layers and str(name).endswith(_OF_LAYERS)


def wider_model(family: str, folder: str | Path, by: int = 4) -> str:
    """Write a family's tiny model ``by`` times as wide, with a vocabulary of some 1000; the folder.

    Args:
        family: a model type that :func:`orlaif.tiny.families` has.
        folder: for model, tokenizer and processor.
        by: how many times as wide.
    """
    parts = built(family, (*WORDS, *_MORE_WORDS))
    try:
        write(_resized(parts, by, deeper=True), folder)
    except (IndexError, ValueError, StrictDataclassError):  # of those that say more of each layer than its kind
        write(_resized(parts, by, deeper=False), folder)
    return str(folder)


def _resized(parts: Parts, by: int, deeper: bool) -> Parts:
    return replace(parts, config=type(parts.config).from_dict(wider(parts.config.to_dict(), by, deeper)))
