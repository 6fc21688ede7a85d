"""Families built on Qwen's towers and processors: others' decoders behind them, or other numbers of frames a patch."""

from __future__ import annotations

from typing import Any

from orlaif.tiny.qwen import DEEPSTACK, PATCHES, qwen3_processor, qwen_config, qwen_processor
from orlaif.tiny.registry import Parts, family, hf
from orlaif.tiny.sizes import QWEN_TOWER, TOWER, decoder, rope, token_ids
from orlaif.tiny.tokens import QWEN_TOKENS, tiny_tokenizer


@family("cosmos3_omni")
def cosmos3_omni(words: tuple[str, ...]) -> Parts:
    """Cosmos 3 Omni's reasoner: a Qwen3-VL."""
    processor = qwen3_processor(words)
    text = decoder(processor.tokenizer, rope_parameters=rope(2, 1, 1, mrope_interleaved=True))
    return Parts(processor=processor, config=qwen_config(hf.Cosmos3OmniConfig, processor, text, DEEPSTACK))


@family("video_llama_3")
def video_llama_3(words: tuple[str, ...]) -> Parts:
    """VideoLLaMA 3: Qwen2 and SigLIP, a patch for each frame; tokens of frames that hardly change are left out."""
    patches = {**PATCHES, "temporal_patch_size": 1}
    tokenizer = tiny_tokenizer(words)
    processor = hf.VideoLlama3Processor(
        image_processor=hf.VideoLlama3ImageProcessor(**patches),
        video_processor=hf.VideoLlama3VideoProcessor(**patches),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
    )
    config = hf.VideoLlama3Config(
        text_config={"model_type": "qwen2", **decoder(tokenizer, head_dim=None)},
        vision_config={**TOWER, "patch_size": 12},
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
        tie_word_embeddings=False,
    )
    return Parts(processor=processor, config=config)


@family("hyperclovax_vision_v2")
def hyperclovax_vision_v2(words: tuple[str, ...]) -> Parts:
    """HyperCLOVA X: Qwen2.5-VL's tower before a decoder that scales embeddings, residuals and logits."""
    processor = qwen_processor(words, hf.HyperCLOVAXVisionV2Processor, hf.Qwen2VLVideoProcessor)
    scales = {"embedding_multiplier": 2.0, "residual_multiplier": 0.7, "logits_scaling": 2.0}
    text = {"model_type": "hyperclovax", **decoder(processor.tokenizer), **scales, "attention_multiplier": 0.3}
    config = hf.HyperCLOVAXVisionV2Config(
        text_config=text,
        vision_config={**QWEN_TOWER, "window_size": 24, "fullatt_block_indexes": [1]},
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
        tie_word_embeddings=False,
    )
    return Parts(processor=processor, config=config)


@family("exaone4_5")
def exaone4_5(words: tuple[str, ...]) -> Parts:
    """EXAONE 4.5: a tower like Qwen2.5-VL's, windows in every second layer of the decoder."""
    processor = qwen_processor(words, hf.Exaone4_5_Processor, hf.Qwen2VLVideoProcessor)
    windows: dict[str, Any] = {"sliding_window": 16, "sliding_window_pattern": 2}
    windows["layer_types"] = ["sliding_attention", "full_attention"]
    config = hf.Exaone4_5_Config(
        text_config={"model_type": "exaone4", **decoder(processor.tokenizer), **windows},
        vision_config={**QWEN_TOWER, "num_key_value_heads": 1, "window_size": 24, "fullatt_block_indexes": [1]},
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
        tie_word_embeddings=False,
    )
    return Parts(processor=processor, config=config)


@family("cohere_compass")
def cohere_compass(words: tuple[str, ...]) -> Parts:
    """Cohere Compass: Qwen3-VL's tower, Cohere's parallel layers, one with a window and one without positions."""
    named = {name: token.upper() for name, token in QWEN_TOKENS.items()}
    tokenizer = tiny_tokenizer(words, named)
    processor = hf.CohereCompassProcessor(
        image_processor=hf.CohereCompassImageProcessor(**PATCHES),
        video_processor=hf.CohereCompassVideoProcessor(**PATCHES, cap_pixels_per_frame=False),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
    )
    layers: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
    text = decoder(tokenizer, rope_parameters={"sliding_attention": rope(2, 1, 1), "full_attention": None}, **layers)
    config = hf.CohereCompassConfig(
        text_config=text,
        vision_config={**QWEN_TOWER, **DEEPSTACK},
        tie_word_embeddings=False,
        **token_ids(tokenizer, named),
    )
    return Parts(processor=processor, config=config)


@family("lfm3_vl")
def lfm3_vl(words: tuple[str, ...]) -> Parts:
    """LFM3-VL: short convolutions beside attention, in decoder and tower."""
    processor = qwen_processor(words, hf.Lfm3VlProcessor, hf.Qwen3VLVideoProcessor, cap_pixels_per_frame=False)
    text = decoder(processor.tokenizer, layer_types=["conv", "full_attention"], conv_L_cache=3)
    text |= {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "sliding_attention"]}
    text |= {"sliding_window": 16}
    vision = {**TOWER, "num_key_value_heads": 1, "patch_size": 12, "layer_types": ["conv", "full_attention"]}
    config = hf.Lfm3VlConfig(
        text_config=text,
        vision_config=vision,
        projector_hidden_size=32,
        tie_word_embeddings=False,
        **token_ids(processor.tokenizer, QWEN_TOKENS),
    )
    return Parts(processor=processor, config=config)


@family("qwen4_exp")
def qwen4_exp(words: tuple[str, ...]) -> Parts:
    """Qwen4 (experimental): Gated DeltaNet, several residual streams, experts, embeddings of n-grams."""
    processor = qwen3_processor(words)
    places = rope(2, 1, 1, mrope_interleaved=True, partial_rotary_factor=1.0)
    text = decoder(processor.tokenizer, rope_parameters=places)
    text |= {"layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2}
    text |= {"linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
    text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    text |= {"shared_expert_intermediate_size": 32, "hc_count": 2, "hc_lowrank": 8}
    text |= {"ple_layer_ids": [1], "ple_embed_dim": 32, "ngram_vocab_size_base": 64, "split_ngram_parts": 1}
    # An index that takes every key of a short prompt.
    text |= {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 2048}
    text |= {"indexer_compress_ratio": 4}
    vision = {"num_position_embeddings": 64}
    return Parts(processor=processor, config=qwen_config(hf.Qwen4ExpConfig, processor, text, vision))
