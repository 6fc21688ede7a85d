"""Qwen's families: patches of two frames each, tokens by resolution, multimodal rotary positions."""

from __future__ import annotations

from typing import Any

from orlaif.tiny.registry import Parts, family, hf
from orlaif.tiny.sizes import QWEN_TOWER, decoder, rope, token_ids
from orlaif.tiny.tokens import CHAT_TEMPLATE, QWEN_TOKENS, tiny_tokenizer

#: Patches, and how many pixels a picture or video has.
PATCHES: dict[str, Any] = {
    "patch_size": 12,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "size": {"shortest_edge": 2 * 48 * 48, "longest_edge": 64 * 48 * 48},
}


def qwen_processor(words: tuple[str, ...], kind: Any, video: Any, **changes: Any) -> Any:
    """The processor of a Qwen model.

    Args:
        words: of its tokenizer.
        kind: its class.
        video: class of its video processor.
        changes: to the video processor.
    """
    return kind(
        image_processor=hf.Qwen2VLImageProcessor(**PATCHES),
        video_processor=video(**PATCHES, **changes),
        tokenizer=tiny_tokenizer(words, template=CHAT_TEMPLATE),
        chat_template=CHAT_TEMPLATE,
    )


def qwen3_processor(words: tuple[str, ...]) -> Any:
    """Qwen3-VL's, which writes the time before each pair of frames."""
    return qwen_processor(words, hf.Qwen3VLProcessor, hf.Qwen3VLVideoProcessor, cap_pixels_per_frame=False)


def qwen_config(kind: Any, processor: Any, text: dict[str, Any], vision: dict[str, Any], tied: bool = False) -> Any:
    """A config; ``tied``, as small Qwen models are: a random head that is the embedding repeats what it is given."""
    ids = token_ids(processor.tokenizer, QWEN_TOKENS)
    return kind(text_config=text, vision_config={**QWEN_TOWER, **vision}, tie_word_embeddings=tied, **ids)


@family("qwen2_vl")
def qwen2_vl(words: tuple[str, ...]) -> Parts:
    """Qwen2-VL: positions in time count pairs of frames."""
    processor = qwen_processor(words, hf.Qwen2VLProcessor, hf.Qwen2VLVideoProcessor)
    text = decoder(processor.tokenizer, head_dim=None, rope_parameters=rope(2, 1, 1))
    vision = {"embed_dim": 32, "mlp_ratio": 2, "intermediate_size": None, "out_hidden_size": None}
    return Parts(processor=processor, config=qwen_config(hf.Qwen2VLConfig, processor, text, vision, tied=True))


@family("qwen2_5_vl")
def qwen2_5_vl(words: tuple[str, ...]) -> Parts:
    """Qwen2.5-VL: positions in time follow the seconds between grids; windows in the vision tower."""
    processor = qwen_processor(words, hf.Qwen2_5_VLProcessor, hf.Qwen2VLVideoProcessor)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": None}
    text = decoder(processor.tokenizer, **heads, rope_parameters=rope(2, 3, 3))
    vision = {"window_size": 24, "fullatt_block_indexes": [1], "tokens_per_second": 2}
    return Parts(processor=processor, config=qwen_config(hf.Qwen2_5_VLConfig, processor, text, vision))


#: Of Qwen3-VL's vision tower.
DEEPSTACK = {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}


@family("qwen3_vl")
def qwen3_vl(words: tuple[str, ...]) -> Parts:
    """Qwen3-VL: DeepStack, interleaved positions, times written in the prompt."""
    processor = qwen3_processor(words)
    text = decoder(processor.tokenizer, rope_parameters=rope(2, 1, 1, mrope_interleaved=True))
    return Parts(processor=processor, config=qwen_config(hf.Qwen3VLConfig, processor, text, DEEPSTACK))


@family("qwen3_vl_moe")
def qwen3_vl_moe(words: tuple[str, ...]) -> Parts:
    """Qwen3-VL with experts."""
    processor = qwen3_processor(words)
    text = decoder(processor.tokenizer, rope_parameters=rope(2, 1, 1, mrope_interleaved=True)) | EXPERTS
    return Parts(processor=processor, config=qwen_config(hf.Qwen3VLMoeConfig, processor, text, DEEPSTACK))


#: Layers of Gated DeltaNet, and what Qwen's hybrids have besides.
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}


def hybrid(processor: Any, **changes: Any) -> dict[str, Any]:
    """A decoder whose first layer is of linear attention, its second of full attention."""
    places = rope(2, 1, 1, mrope_interleaved=True, partial_rotary_factor=1.0)
    layers = {"layer_types": ["linear_attention", "full_attention"], **DELTA}
    return {**decoder(processor.tokenizer, rope_parameters=places), **layers, **changes}


@family("qwen3_5")
def qwen3_5(words: tuple[str, ...]) -> Parts:
    """Qwen3.5: Gated DeltaNet beside full attention."""
    processor = qwen3_processor(words)
    vision = {"num_position_embeddings": 64}
    return Parts(processor=processor, config=qwen_config(hf.Qwen3_5Config, processor, hybrid(processor), vision))


@family("qwen3_5_moe")
def qwen3_5_moe(words: tuple[str, ...]) -> Parts:
    """Qwen3.5 with experts."""
    processor = qwen3_processor(words)
    text = hybrid(processor, **EXPERTS, shared_expert_intermediate_size=32)
    vision = {"num_position_embeddings": 64}
    return Parts(processor=processor, config=qwen_config(hf.Qwen3_5MoeConfig, processor, text, vision))
