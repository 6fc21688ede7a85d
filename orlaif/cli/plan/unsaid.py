"""Sizes that a checkpoint's config does not say, so that they are those of its class: of no published model."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

_OF_TEXT = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_OF_OTHERS = ("vision", "visual", "audio", "sound", "projector")


def unsaid_sizes(path: str, config: Any) -> list[str]:
    """Names of those of the text model, and ``vision_config``, that the file at ``path`` lacks and ``config`` has.

    Args:
        path: of the checkpoint.
        config: as it was read.
    """
    try:
        said, _ = PreTrainedConfig.get_config_dict(path)
    except (OSError, ValueError):  # made by hand, not read
        return []
    parts = [part for name, part in said.items() if isinstance(part, dict) and not name.startswith(_OF_OTHERS)]
    text = config.get_text_config(decoder=True)
    unsaid = [name for name in _OF_TEXT if hasattr(text, name) and not any(name in part for part in (said, *parts))]
    sees = hasattr(config, "vision_config") and "vision_config" not in said
    return [*unsaid, *(["vision_config"] if sees else [])]
