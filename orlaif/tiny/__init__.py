"""Tiny checkpoints with random weights, one of each video family that transformers has: real classes, files and code.

At a size that a CPU runs in milliseconds, in Hugging Face format::

    from orlaif.tiny import tiny_model
    tiny_model("qwen3_vl", "outputs/tiny/qwen3_vl")

Families differ in how their config and processor are put together; one function for each says how (``qwen``, ``llava``,
...). What a config leaves out is its class's own default, shrunk by field names (``shrink``).
"""

from orlaif.tiny.registry import families, tiny_model
from orlaif.tiny.tokens import CHAT_TEMPLATE, WORDS, tiny_tokenizer

__all__ = ["CHAT_TEMPLATE", "WORDS", "families", "tiny_model", "tiny_tokenizer"]
