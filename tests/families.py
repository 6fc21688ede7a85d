"""Tiny models of further families, for tests that must hold on each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from orlaif.demo.shapes import words
from orlaif.demo.tiny import CHAT_TEMPLATE, make_tiny_model, tiny_tokenizer
from orlaif.policy import Policy
from orlaif.policy.families import family_of
from orlaif.policy.positions import behind_the_largest


def make_qwen2_5_vl(folder: str) -> None:
    """A Qwen2.5-VL of 2 layers and 32 hidden units, window attention in its vision tower."""
    size = {"shortest_edge": 2 * 48 * 48, "longest_edge": 64 * 48 * 48}
    patches = {"patch_size": 12, "temporal_patch_size": 2, "merge_size": 2, "size": size}
    tokenizer = tiny_tokenizer(words())
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**patches),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**patches),
        chat_template=CHAT_TEMPLATE,
    )
    ids = tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
            "eos_token_id": ids("<|im_end|>"),
            "pad_token_id": ids("<|endoftext|>"),
            "bos_token_id": None,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 12,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "out_hidden_size": 32,
            "window_size": 24,
            "fullatt_block_indexes": [1],
        },
        **qwen_tokens(processor),
    )
    save(folder, processor, Qwen2_5_VLForConditionalGeneration, config)


def qwen_tokens(processor: ProcessorMixin) -> dict[str, object]:
    """What the config of a Qwen model says of the tokenizer, and tied embeddings."""
    ids = processor.tokenizer.convert_tokens_to_ids
    names = {"image_token_id": "image_pad", "video_token_id": "video_pad"}
    names |= {f"{name}_token_id": name for name in ("vision_start", "vision_end")}
    return {**{field: ids(f"<|{name}|>") for field, name in names.items()}, "tie_word_embeddings": True}


def save(folder: str, processor: ProcessorMixin, kind: type[PreTrainedModel], config: object) -> None:
    """A model of random weights, and its processor."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config)  # type: ignore[arg-type]
    ids = processor.tokenizer.convert_tokens_to_ids
    model.generation_config.eos_token_id = ids("<|im_end|>")
    model.generation_config.pad_token_id = ids("<|endoftext|>")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def decoder(tokenizer: object) -> dict[str, object]:
    """Sizes of a decoder of 2 layers and 32 hidden units."""
    ids = tokenizer.convert_tokens_to_ids  # type: ignore[attr-defined]
    return {
        "vocab_size": len(tokenizer),  # type: ignore[arg-type]
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "eos_token_id": ids("<|im_end|>"),
        "pad_token_id": ids("<|endoftext|>"),
        "bos_token_id": None,
    }


SIGLIP = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 48,
    "patch_size": 12,
}


def make_llava_onevision(folder: str) -> None:
    """A LLaVA-OneVision: Qwen2 of 2 layers, SigLIP of 2, four tokens a frame."""
    tokenizer = tiny_tokenizer(words())
    size = {"height": 48, "width": 48}
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=[[48, 48]]),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
        image_token="<|image_pad|>",
        video_token="<|video_pad|>",
    )
    ids = tokenizer.convert_tokens_to_ids
    config = LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **decoder(tokenizer)},
        vision_config={"model_type": "siglip_vision_model", **SIGLIP, "vision_use_head": False},
        image_token_index=ids("<|image_pad|>"),
        video_token_index=ids("<|video_pad|>"),
        vision_feature_layer=-1,
        image_grid_pinpoints=[[48, 48]],
        tie_word_embeddings=True,
    )
    save(folder, processor, LlavaOnevisionForConditionalGeneration, config)


def make_smolvlm(folder: str) -> None:
    """A SmolVLM: Llama of 2 layers, SigLIP of 2, four tokens a frame."""
    tokenizer = tiny_tokenizer(words())
    extra = ["<image>", "<video>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
    tokenizer.add_tokens(extra, special_tokens=True)
    tokenizer.image_token, tokenizer.video_token = "<image>", "<video>"
    sizes = {"size": {"longest_edge": 48}, "max_image_size": {"longest_edge": 48}}
    processor = SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=SmolVLMVideoProcessor(**sizes, num_frames=8, fps=1),
        image_seq_len=4,
        chat_template=CHAT_TEMPLATE,
    )
    ids = tokenizer.convert_tokens_to_ids
    config = SmolVLMConfig(
        text_config={"model_type": "llama", **decoder(tokenizer)},
        vision_config={**SIGLIP},
        image_token_id=ids("<image>"),
        scale_factor=2,
        pad_token_id=ids("<|endoftext|>"),
        tie_word_embeddings=True,
    )
    save(folder, processor, SmolVLMForConditionalGeneration, config)


def make_qwen3_vl(folder: str) -> None:
    """A Qwen3-VL of 2 layers and 32 hidden units, with DeepStack and interleaved m-RoPE."""
    make_tiny_model(folder, words(), hidden_size=32, num_layers=2)


def vision_tower(network: Any) -> torch.nn.Module:
    """The first of the modules that turn a video into features."""
    return family_of(network.config).tower(network)[0]


@contextmanager
def original_numbering(policy: Policy) -> Iterator[None]:
    """Within, Qwen2.5-VL's own forward numbers text behind a video as its original implementation does."""
    if policy.config.model_type != "qwen2_5_vl":
        yield
        return
    inner = policy.network.model
    ask = inner.get_rope_index

    def asked(input_ids: Tensor, *, mm_token_type_ids: Tensor, attention_mask: Tensor, **kwargs: object) -> object:
        positions, _ = ask(input_ids, mm_token_type_ids=mm_token_type_ids, attention_mask=attention_mask, **kwargs)
        positions = behind_the_largest(positions, mm_token_type_ids.bool(), attention_mask.bool())
        return positions, positions.amax((0, 2))[:, None] + 1 - attention_mask.sum(-1, keepdim=True)

    inner.get_rope_index = asked
    try:
        yield
    finally:
        del inner.get_rope_index


FAMILIES = {
    "qwen3_vl": make_qwen3_vl,
    "qwen2_5_vl": make_qwen2_5_vl,
    "llava_onevision": make_llava_onevision,
    "smolvlm": make_smolvlm,
}
