"""Families whose keys and values are compressed (latent attention), or looked for by an index: Kimi, HY, MiniMax."""

from __future__ import annotations

from typing import Any

from orlaif.tiny.registry import Parts, family, hf
from orlaif.tiny.sizes import TOWER, decoder, rope
from orlaif.tiny.tokens import QWEN_TOKENS, chat_template, tiny_tokenizer

#: Latent attention.
LATENT: dict[str, Any] = {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8}
LATENT |= {"v_head_dim": 8, "head_dim": None, "num_key_value_heads": 4}
#: Experts, one of them shared.
EXPERTS: dict[str, Any] = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


@family("kimi_k25")
def kimi_k25(words: tuple[str, ...]) -> Parts:
    """Kimi K2.5: DeepSeek V3's decoder, four frames a grid, the time written before each."""
    named = {"image_token": "<|media_pad|>", "video_token": "<|kimi_k25_video_placeholder|>"}
    written = ("<|media_begin|>", "<|media_content|>", "<|media_end|>")
    tokenizer = tiny_tokenizer(words, named, extra=written)
    processor = hf.Kimi_K25Processor(
        image_processor=hf.Kimi_K25ImageProcessor(),
        video_processor=hf.Kimi_K25VideoProcessor(),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
    )
    ids = tokenizer.convert_tokens_to_ids
    config = hf.Kimi_K25Config(
        text_config={
            "model_type": "deepseek_v3",
            **decoder(tokenizer, **LATENT, rope_parameters=rope()),
            **EXPERTS,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
        vision_config={**TOWER, "pos_emb_height": 8, "pos_emb_width": 8},
        projection_hidden_size=32,
        image_token_id=ids("<|media_pad|>"),
        video_token_id=ids("<|kimi_k25_video_placeholder|>"),
        vision_start_token_id=ids("<|media_begin|>"),
        vision_end_token_id=ids("<|media_end|>"),
        tie_word_embeddings=False,
    )
    return Parts(processor=processor, config=config)


@family("hy_v4_vl")
def hy_v4_vl(words: tuple[str, ...]) -> Parts:
    """HY V4: an index finds the keys that a query sees, and a sink stands beside them, which sdpa has not."""
    tokenizer = tiny_tokenizer(words, QWEN_TOKENS)
    patches: dict[str, Any] = {"patch_size": 12, "merge_size": 2}
    processor = hf.HYV4VLProcessor(
        image_processor=hf.HYV4VLImageProcessor(**patches),
        video_processor=hf.HYV4VLVideoProcessor(**patches),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
    )
    index = {"index_topk": 2048, "index_head_dim": 16, "index_n_heads": 2, "hc_mult": 2}
    config = hf.HYV4VLConfig(
        text_config={**decoder(tokenizer, **LATENT, rope_parameters=rope(2, 1, 1)), **EXPERTS, **index},
        vision_config={**TOWER, "patch_size": 12, "out_hidden_size": 32, "max_image_size": 96},
        image_token_id=tokenizer.convert_tokens_to_ids(QWEN_TOKENS["image_token"]),
        video_token_id=tokenizer.convert_tokens_to_ids(QWEN_TOKENS["video_token"]),
    )
    return Parts(processor=processor, config=config)


@family("minimax_m3_vl")
def minimax_m3_vl(words: tuple[str, ...]) -> Parts:
    """MiniMax M3: experts; its processor leaves frames as large as they are, unless it is told otherwise."""
    named = {"image_token": "]<]image[>[", "video_token": "]<]video[>["}
    written = ("]<]start of image[>[", "]<]end of image[>[")
    tokenizer = tiny_tokenizer(words, named, extra=written, template=chat_template(*reversed(named.values())))
    processor = hf.MiniMaxM3VLProcessor(
        image_processor=hf.MiniMaxM3VLImageProcessor(),
        video_processor=hf.MiniMaxM3VLVideoProcessor(min_pixels=28 * 28),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
    )
    text = decoder(tokenizer, rope_parameters=rope(partial_rotary_factor=0.5))
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "dense_intermediate_size": 64}
    experts |= {"shared_intermediate_size": 32, "rotary_dim": 4}
    config = hf.MiniMaxM3VLConfig(
        text_config=text | experts,
        vision_config={**TOWER, "image_size": 112},
        projector_hidden_size=32,
        image_token_index=tokenizer.convert_tokens_to_ids(named["image_token"]),
        video_token_index=tokenizer.convert_tokens_to_ids(named["video_token"]),
    )
    return Parts(processor=processor, config=config)
