"""A tiny, randomly initialised Qwen3-VL with tokenizer and processor, as a Hugging Face folder.

For the demo and the tests: the same classes, files and loading code as a real checkpoint, at a size that a CPU trains
in a minute. Nothing outside this file knows that a model is tiny. From the shell::

    python -m orlaif.demo.tiny outputs/demo/model --seed 0
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import (
    AddedToken,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from orlaif.tiny.tokens import CHAT_TEMPLATE, tiny_tokenizer

#: As Qwen3's tokenizer has them: tokens of their own, and no special ones, so that they are read as text.
TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def tiny_processor(
    words: Iterable[str], side: int = 48, patch_size: int = 12, tags: Sequence[str] = ()
) -> Qwen3VLProcessor:
    """Qwen3-VL's processor around a word-level tokenizer, for frames of about ``side`` x ``side`` pixels."""
    tokenizer = tiny_tokenizer(words, template=CHAT_TEMPLATE)
    tokenizer.add_tokens([AddedToken(tag, special=False) for tag in tags])
    size = {"shortest_edge": 2 * side * side, "longest_edge": 64 * side * side}
    patches: dict[str, Any] = {"patch_size": patch_size, "temporal_patch_size": 2, "merge_size": 2, "size": size}
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**patches),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(**patches, cap_pixels_per_frame=False),
        chat_template=CHAT_TEMPLATE,
    )


def make_tiny_model(
    folder: str,
    words: Iterable[str],
    *,
    seed: int = 0,
    hidden_size: int = 96,
    num_layers: int = 3,
    patch_size: int = 12,
    tags: Sequence[str] = (),
    initializer_range: float = 0.02,
) -> None:
    """Write model, tokenizer and processor to ``folder`` in Hugging Face format.

    Args:
        folder: created where it is missing; files of the same name are replaced.
        words: what the tokenizer must know besides digits and punctuation.
        seed: of the random weights.
        hidden_size: of decoder and vision tower, a multiple of 32.
        num_layers: decoder layers.
        patch_size: pixels of a vision patch.
        tags: texts that are a token each, such as :data:`TAGS`.
        initializer_range: standard deviation of the random weights. At 0.02, right for thousands of channels, a layer
            of this width hands on a fifth of what it gets, and attention that tells one second from another hardly
            begins to form; 0.08 is about one over the root of the default width.
    """
    processor = tiny_processor(words, patch_size=patch_size, tags=tags)
    ids = processor.tokenizer.convert_tokens_to_ids
    config = Qwen3VLConfig(
        text_config={
            "initializer_range": initializer_range,
            "vocab_size": len(processor.tokenizer),
            "hidden_size": hidden_size,
            "intermediate_size": 2 * hidden_size,
            "num_hidden_layers": num_layers,
            "num_attention_heads": hidden_size // 16,
            "num_key_value_heads": hidden_size // 32,
            "head_dim": 16,
            "max_position_embeddings": 2048,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [2, 3, 3],
                "mrope_interleaved": True,
            },
            "bos_token_id": None,
            "eos_token_id": ids("<|im_end|>"),
            "pad_token_id": ids("<|endoftext|>"),
        },
        vision_config={
            "initializer_range": initializer_range,
            "depth": 2,
            "hidden_size": hidden_size,
            "intermediate_size": 2 * hidden_size,
            "num_heads": hidden_size // 16,
            "patch_size": patch_size,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "out_hidden_size": hidden_size,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = ids("<|im_end|>")
    model.generation_config.pad_token_id = ids("<|endoftext|>")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def main() -> None:
    """Write a tiny model for the embedded data set."""
    from orlaif.demo.shapes import words

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--letters", action="store_true", help="its tokenizer knows A to H and words in quotes, as a judge's"
    )
    parser.add_argument("--tags", action="store_true", help="its tokenizer knows the tags of thoughts and answers")
    arguments = parser.parse_args()
    known = [*words(), *(f'"{word}"' for word in words()), *"ABCDEFGH"] if arguments.letters else words()
    make_tiny_model(arguments.folder, known, seed=arguments.seed, tags=TAGS if arguments.tags else ())


if __name__ == "__main__":
    main()
