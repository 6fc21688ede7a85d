"""A Hugging Face checkpoint's folder: whether it is one, its processor, and that processor's files."""

from __future__ import annotations

import fnmatch
import os
import shutil
from typing import Any

from huggingface_hub import snapshot_download
from transformers import AutoProcessor

#: What tokenizers, image and video processors and chat templates are saved as.
PROCESSOR_FILES = (
    "*processor_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
)


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


def copy_processor(path: str, folder: str) -> None:
    """Copy the checkpoint's processor files to ``folder``, byte for byte."""
    source = path if os.path.isdir(path) else snapshot_download(path, allow_patterns=list(PROCESSOR_FILES))
    os.makedirs(folder, exist_ok=True)
    for name in os.listdir(source):
        if any(fnmatch.fnmatch(name, pattern) for pattern in PROCESSOR_FILES):
            shutil.copy(os.path.join(source, name), folder)
