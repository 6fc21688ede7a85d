"""Families of their own kind: Muse, Molmo 2, dots.note, PerceptionLM."""

from __future__ import annotations

from typing import Any

from orlaif.tiny.qwen import PATCHES
from orlaif.tiny.registry import Parts, family, hf
from orlaif.tiny.sizes import SQUARE, TOWER, decoder, rope, token_ids
from orlaif.tiny.tokens import tiny_tokenizer

MUSE = {
    "image_token": "<|patch|>",
    "image_start_token": "<|image_start|>",
    "image_end_token": "<|image_end|>",
    "video_token": "<|video|>",
    "video_sep_token": "<|vid_frame_separator|>",
    "video_start_token": "<|vid_start|>",
    "video_end_token": "<|vid_end|>",
}
MUSE_TOWER = {**TOWER, "patch_size": 14, "pos_emb_height": 8, "pos_emb_width": 8, "max_position_embeddings": 64}
MUSE_TOWER |= {"layer_types": ["window_attention", "full_attention"]}
#: A layer with a window and rotary positions, and one with neither; logits scaled and capped.
MUSE_TEXT: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
MUSE_TEXT |= {"layer_rope_theta": [10000.0, 0], "output_multiplier": 0.5, "rope_parameters": rope()}


@family("muse_glimmer")
def muse_glimmer(words: tuple[str, ...]) -> Parts:
    """Muse Glimmer: windows and layers without positions, logits scaled and capped."""
    tokenizer = tiny_tokenizer(words, MUSE)
    processor = hf.MuseGlimmerProcessor(
        image_processor=hf.MuseGlimmerImageProcessor(),
        video_processor=hf.MuseGlimmerVideoProcessor(max_video_frame_tokens=4),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
    )
    config = hf.MuseGlimmerConfig(
        text_config=decoder(tokenizer, **MUSE_TEXT),
        vision_config=MUSE_TOWER,
        out_hidden_size=128,
        projector_hidden_size=32,
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
        tie_word_embeddings=False,
    )
    return Parts(processor=processor, config=config)


@family("muse_spark")
def muse_spark(words: tuple[str, ...]) -> Parts:
    """Muse Spark: Muse Glimmer with experts and an ear."""
    sound = {"audio_token": "<|audio|>", "audio_start_token": "<|soft_audio_start|>"}
    tokenizer = tiny_tokenizer(words, {**MUSE, **sound, "audio_end_token": "<|soft_audio_end|>"})
    processor = hf.MuseSparkProcessor(
        image_processor=hf.MuseGlimmerImageProcessor(),
        video_processor=hf.MuseGlimmerVideoProcessor(max_video_frame_tokens=4),
        tokenizer=tokenizer,
        feature_extractor=hf.MuseSparkFeatureExtractor(),
        chat_template=tokenizer.chat_template,
    )
    experts = {"moe_intermediate_size": 32, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_hidden_size": 32}
    ear = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "out_hidden_size": 32}
    config = hf.MuseSparkConfig(
        text_config=decoder(tokenizer, **MUSE_TEXT, **experts, mlp_layer_types=["dense", "sparse"]),
        vision_config=MUSE_TOWER,
        audio_config=ear,
        out_hidden_size=128,
        projector_hidden_size=32,
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
        audio_token_id=processor.audio_token_id,
        tie_word_embeddings=False,
    )
    return Parts(processor=processor, config=config)


MOLMO = {
    "image_start_token": "<im_start>",
    "low_res_image_start_token": "<low_res_im_start>",
    "image_end_token": "<im_end>",
    "frame_start_token": "<frame_start>",
    "frame_end_token": "<frame_end>",
}


@family("molmo2")
def molmo2(words: tuple[str, ...]) -> Parts:
    """Molmo 2: frames whose tokens see one another, features of two layers of the tower pooled by attention."""
    names = {"image_token": "<|image|>", "video_token": "<|video|>"}
    tokenizer = tiny_tokenizer(words, names, (*MOLMO.values(), "<im_patch>", "<im_col>", "<im_low>"))
    sizes: dict[str, Any] = {"size": SQUARE, "patch_size": 12, "pooling_size": [2, 2]}
    sizes |= {"do_resize": True, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True}
    processor = hf.Molmo2Processor(
        image_processor=hf.Molmo2ImageProcessor(**sizes, max_crops=1, overlap_margins=[1, 1]),
        video_processor=hf.Molmo2VideoProcessor(**sizes),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
    )
    heads = {"num_key_value_heads": 2, "head_dim": 16}
    vision = {**TOWER, **heads, "image_size": [48, 48], "patch_size": 12, "num_position_embeddings": 16}
    adapter = {"vision_feature_layer": [1, 0], "hidden_size": 32, "num_attention_heads": 2, **heads}
    number = tokenizer.convert_tokens_to_ids
    config = hf.Molmo2Config(
        text_config={**decoder(tokenizer), "additional_vocab_size": 8},
        vision_config=vision,
        adapter_config={**adapter, "intermediate_size": 64, "text_hidden_size": 32},
        image_patch_id=number("<im_patch>"),
        tie_word_embeddings=False,
        **token_ids(tokenizer, MOLMO),
    )
    return Parts(processor=processor, config=config)


@family("dots3_note")
def dots3_note(words: tuple[str, ...]) -> Parts:
    """dots.note 3: compressed keys and values with a sparse index, windows, experts in decoder and tower, an ear."""
    named = {"image_token": "<|imgpad|>", "video_token": "<|video_pad|>", "audio_token": "<|audio_comp_pad|>"}
    tokenizer = tiny_tokenizer(words, named)
    processor = hf.Dots3NoteProcessor(
        image_processor=hf.Qwen2VLImageProcessor(**PATCHES),
        video_processor=hf.Qwen3VLVideoProcessor(**{**PATCHES, "temporal_patch_size": 1}, cap_pixels_per_frame=False),
        tokenizer=tokenizer,
        feature_extractor=hf.Dots3NoteFeatureExtractor(),
        chat_template=tokenizer.chat_template,
    )
    parts = {"kv_lora_rank": 8, "q_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
    experts = {"moe_intermediate_size": 32, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2}
    text = {**decoder(tokenizer, num_key_value_heads=4), **parts, **experts, "shared_experts_intermediate_size": 32}
    text |= {"mlp_layer_types": ["dense", "sparse"], "layer_types": ["indexed_attention", "sliding_attention"]}
    text |= {"index_topk": 2048, "index_head_dim": 8, "index_n_heads": 2, "sliding_window": 16}
    text |= {"per_layer_config": {1: {"num_attention_heads": 2, "num_key_value_heads": 2}}}
    vision = {**TOWER, "patch_size": 12, "mlp_layer_types": ["dense", "sparse"], "num_local_experts": 4}
    vision |= {"moe_intermediate_size": 32, "adapter_in_dim": 32, "adapter_out_dim": 32}
    ear = {**TOWER, "num_key_value_heads": 2, "head_dim": 16, "downsample_hidden_size": 8, "adapter_input_size": 32}
    config = hf.Dots3NoteConfig(
        text_config=text,
        vision_config=vision,
        audio_config={**ear, "adapter_out_dim": 32, "conv_output_size": 128},
        tie_word_embeddings=False,
        **token_ids(tokenizer, named),
    )
    return Parts(processor=processor, config=config)


@family("perception_lm")
def perception_lm(words: tuple[str, ...]) -> Parts:
    """PerceptionLM: Llama, and a tower of timm, which must be installed."""
    tokenizer = tiny_tokenizer(words, {"image_token": "<|image|>", "video_token": "<|video|>"})
    processor = hf.PerceptionLMProcessor(
        image_processor=hf.PerceptionLMImageProcessor(tile_size=48, max_num_tiles=1),
        video_processor=hf.PerceptionLMVideoProcessor(size=SQUARE),
        tokenizer=tokenizer,
        patch_size=12,
        pooling_ratio=2,
        chat_template=tokenizer.chat_template,
    )
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": [48, 48], "patch_size": 12, "global_pool": ""}
    places = {"use_post_transformer_norm": False, "class_token": False, "ref_feat_shape": [4, 4]}
    tower = {
        "architecture": "vit_pe_core_large_patch14_336",
        "initializer_range": 0.02,
        "model_args": {**sizes, **places},
        "num_classes": 0,
    }
    config = hf.PerceptionLMConfig(
        text_config={"model_type": "llama", **decoder(tokenizer)},
        vision_config={"model_type": "timm_wrapper", **tower},
        vision_use_cls_token=False,
        projector_pooling_ratio=2,
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
        tie_word_embeddings=False,
    )
    return Parts(processor=processor, config=config)
