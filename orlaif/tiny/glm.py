"""GLM's families: a tower like Qwen2-VL's with positions added, each pair of frames between marks with its time."""

from __future__ import annotations

from typing import Any

from orlaif.tiny.registry import Parts, family, hf
from orlaif.tiny.sizes import QWEN_TOWER, decoder, rope, token_ids
from orlaif.tiny.tokens import chat_template, tiny_tokenizer

NAMED = {
    "image_start_token": "<|begin_of_image|>",
    "image_end_token": "<|end_of_image|>",
    "video_start_token": "<|begin_of_video|>",
    "video_end_token": "<|end_of_video|>",
    "image_token": "<|image|>",
    "video_token": "<|video|>",
}
TEMPLATE = chat_template("<|begin_of_video|><|video|><|end_of_video|>", "<|begin_of_image|><|image|><|end_of_image|>")
PATCHES: dict[str, Any] = {
    "patch_size": 12,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "size": {"shortest_edge": 2 * 48 * 48, "longest_edge": 64 * 48 * 48},
}
GLM_TOWER = {**QWEN_TOWER, "image_size": 48}
EXPERTS: dict[str, Any] = {
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}


def glm_processor(words: tuple[str, ...], kind: Any, image: Any, video: Any, **patches: Any) -> Any:
    """A GLM's processor of a class, around an image and a video processor of theirs."""
    return kind(
        image_processor=image(**{**PATCHES, **patches}),
        video_processor=video(**{**PATCHES, **patches}),
        tokenizer=tiny_tokenizer(words, NAMED, template=TEMPLATE),
        chat_template=TEMPLATE,
    )


def glm_config(kind: Any, processor: Any, text: dict[str, Any], **vision: Any) -> Any:
    """A GLM's config with head and embedding apart."""
    ids = token_ids(processor.tokenizer, NAMED)
    return kind(text_config=text, vision_config={**GLM_TOWER, **vision}, tie_word_embeddings=False, **ids)


def places() -> dict[str, Any]:
    """Multimodal rotary positions on half of each head."""
    return rope(1, 1, 2, partial_rotary_factor=1.0)


@family("glm4v")
def glm4v(words: tuple[str, ...]) -> Parts:
    """GLM-4.1V."""
    processor = glm_processor(words, hf.Glm4vProcessor, hf.Glm4vImageProcessor, hf.Glm4vVideoProcessor)
    text = decoder(processor.tokenizer, rope_parameters=places())
    return Parts(processor=processor, config=glm_config(hf.Glm4vConfig, processor, text))


@family("glm4v_moe")
def glm4v_moe(words: tuple[str, ...]) -> Parts:
    """GLM-4.5V: experts in all layers but the first."""
    processor = glm_processor(words, hf.Glm4vProcessor, hf.Glm4vImageProcessor, hf.Glm4vVideoProcessor)
    text = decoder(processor.tokenizer, rope_parameters=places()) | EXPERTS
    return Parts(processor=processor, config=glm_config(hf.Glm4vMoeConfig, processor, text))


@family("glm46v")
def glm46v(words: tuple[str, ...]) -> Parts:
    """GLM-4.6V."""
    processor = glm_processor(words, hf.Glm46VProcessor, hf.Glm46VImageProcessor, hf.Glm46VVideoProcessor)
    text = {"model_type": "glm4v_text", **decoder(processor.tokenizer, rope_parameters=places())}
    return Parts(processor=processor, config=glm_config(hf.Glm46VConfig, processor, text))


@family("glmga")
def glmga(words: tuple[str, ...]) -> Parts:
    """GLM-GA: GLM-4.6V's model with a video processor of its own."""
    processor = glm_processor(words, hf.Glm46VProcessor, hf.GlmgaImageProcessor, hf.GlmgaVideoProcessor)
    text = {"model_type": "glm4v_text", **decoder(processor.tokenizer, rope_parameters=places())}
    return Parts(processor=processor, config=glm_config(hf.GlmgaConfig, processor, text))


@family("glm5_next")
def glm5_next(words: tuple[str, ...]) -> Parts:
    """GLM-5 Next: linear attention beside a sparse index over compressed keys, several residual streams, experts."""
    processor = glm_processor(words, hf.Glm5NextProcessor, hf.Glm5NextImageProcessor, hf.Glm5NextVideoProcessor)
    text = decoder(processor.tokenizer, head_dim=None, num_key_value_heads=4, rope_parameters=rope()) | EXPERTS
    del text["first_k_dense_replace"]
    text |= {"kv_lora_rank": 8, "q_lora_rank": 16, "v_head_dim": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 0}
    text |= {"mlp_layer_types": ["dense", "sparse"], "layer_types": ["linear_attention", "full_attention"]}
    text |= {"index_topk": 2048, "index_head_dim": 8, "index_n_heads": 2, "indexer_types": ["full", "full"]}
    text |= {"index_kpool": 4, "linear_head_dim": 8, "linear_num_heads": 4, "hc_mult": 2}
    config = glm_config(hf.Glm5NextConfig, processor, text, projection_intermediate_size=64)
    return Parts(processor=processor, config=config)
