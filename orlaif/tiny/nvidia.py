"""NVIDIA's: Cosmos 3 Edge, and Nemotron 3 Omni, whose decoder is of Mamba, attention and experts."""

from __future__ import annotations

from typing import Any

from orlaif.tiny.registry import Parts, family, hf
from orlaif.tiny.sizes import TOWER, decoder, rope, token_ids
from orlaif.tiny.tokens import QWEN_TOKENS, chat_template, tiny_tokenizer


@family("cosmos3_edge")
def cosmos3_edge(words: tuple[str, ...]) -> Parts:
    """Cosmos 3 Edge: one frame a grid, its time written before it, positions in three coordinates."""
    tokenizer = tiny_tokenizer(words, QWEN_TOKENS)
    size = {"shortest_edge": 2 * 48 * 48, "longest_edge": 64 * 48 * 48}
    patches: dict[str, Any] = {"patch_size": 12, "merge_size": 2, "size": size}
    processor = hf.Cosmos3EdgeProcessor(
        image_processor=hf.Cosmos3EdgeImageProcessor(**patches),
        video_processor=hf.Cosmos3EdgeVideoProcessor(**patches),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
    )
    config = hf.Cosmos3EdgeConfig(
        text_config=decoder(tokenizer, rope_parameters=rope(2, 1, 1)),
        vision_config={**TOWER, "patch_size": 12, "num_patches": 16},
        projector_hidden_size=64,
        **token_ids(tokenizer, QWEN_TOKENS),
    )
    return Parts(processor=processor, config=config)


@family("nemotron_h_omni")
def nemotron_h_omni(words: tuple[str, ...]) -> Parts:
    """Nemotron 3 Omni: a layer of Mamba, one of attention and one of experts; an ear beside the eye."""
    named = {"image_token": "<image>", "video_token": "<video>", "audio_token": "<so_embedding>"}
    named |= {"image_start_token": "<img>", "image_end_token": "</img>"}
    tokenizer = tiny_tokenizer(
        words, named, extra=("<so_start>", "<so_end>"), template=chat_template("<video>", "<image>")
    )
    spread = {"norm_mean": [0.5, 0.5, 0.5], "norm_std": [0.5, 0.5, 0.5]}
    processor = hf.NemotronH_Omni_Reasoning_V3Processor(
        image_processor=hf.NemotronH_Omni_Reasoning_V3ImageProcessor(**spread),
        video_processor=hf.NemotronH_Omni_Reasoning_V3VideoProcessor(**spread, video_target_num_patches=16),
        tokenizer=tokenizer,
        feature_extractor=hf.ParakeetFeatureExtractor(feature_size=16),
        chat_template=tokenizer.chat_template,
    )
    mixers = {"layers_block_type": ["mamba", "attention", "moe"], "ssm_state_size": 8, "mamba_num_heads": 4}
    mixers |= {"mamba_head_dim": 16, "n_groups": 1, "conv_kernel": 4, "chunk_size": 8, "use_mamba_kernels": False}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    experts |= {"moe_shared_expert_intermediate_size": 32}
    text = {**decoder(tokenizer, num_hidden_layers=None), **mixers, **experts}
    sound = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = hf.NemotronH_Omni_Reasoning_V3_Config(
        text_config=text,
        vision_config={**{k: v for k, v in TOWER.items() if k != "intermediate_size"}, "image_size": 64}
        | {"max_img_size": 128, "video_temporal_patch_size": 2, "mlp_ratio": 2.0},
        audio_config={**sound, "num_mel_bins": 16, "subsampling_conv_channels": 8, "projection_hidden_size": 32}
        | {"projection_bias": False},
        projector_hidden_size=32,
        vision_hidden_size=32,
        force_image_size=64,
        **{f"{kind}_token_id": tokenizer.convert_tokens_to_ids(named[f"{kind}_token"]) for kind in ("image", "video")},
        audio_token_id=tokenizer.convert_tokens_to_ids("<so_embedding>"),
    )
    return Parts(processor=processor, config=config)
