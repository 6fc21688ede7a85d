"""Reading a Hugging Face checkpoint's folder: is it one, and its processor."""

from __future__ import annotations

import os
from typing import Any

from transformers import AutoProcessor


def check_checkpoint(path: str) -> None:
    """Raise ValueError for a local path that cannot hold a checkpoint; a hub id passes."""
    looks_local = os.path.isabs(path) or path.startswith((".", "~")) or path.count("/") > 1
    if os.path.isdir(path):
        if not os.path.exists(os.path.join(path, "config.json")):
            raise ValueError(
                f"checkpoint path is {path!r}: the folder holds no config.json, so it is no Hugging Face checkpoint"
            )
    elif looks_local or os.path.exists(path):
        raise ValueError(
            f"checkpoint path is {path!r}: no such folder (expected a Hugging Face checkpoint or a hub id)"
        )


def load_processor(path: str) -> Any:
    """The checkpoint's own processor, set to pad prompts on the left."""
    check_checkpoint(path)
    processor = AutoProcessor.from_pretrained(path)
    processor.tokenizer.padding_side = "left"
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return processor
