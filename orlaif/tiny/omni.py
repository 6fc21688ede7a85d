"""Qwen's Omni models: whole checkpoints, in which the thinker lies beside what makes its voice."""

from __future__ import annotations

from typing import Any

from orlaif.tiny.qwen import DEEPSTACK, EXPERTS
from orlaif.tiny.registry import Parts, family, hf
from orlaif.tiny.sizes import QWEN_TOWER, decoder, rope
from orlaif.tiny.tokens import QWEN_TOKENS, chat_template, tiny_tokenizer

#: Their processors see a video of at least 131,072 pixels, whatever is saved; large patches make few tokens of it.
PATCH = {"patch_size": 28, "temporal_patch_size": 2}
OMNI_TOKENS = {
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "audio_token": "<|audio_pad|>",
    "audio_bos_token": "<|audio_start|>",
    "audio_eos_token": "<|audio_end|>",
}
#: An encoder of 16 mel bins: its layers, and what they hand to the decoder.
EAR = {"num_mel_bins": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 64, "d_model": 32}
EAR |= {"output_dim": 32}


def omni_processor(words: tuple[str, ...], kind: Any) -> Any:
    """A processor with a feature extractor for sound."""
    video = f"{QWEN_TOKENS['vision_start_token']}{QWEN_TOKENS['video_token']}{QWEN_TOKENS['vision_end_token']}"
    template = chat_template(video, QWEN_TOKENS["image_token"])
    return kind(
        image_processor=hf.Qwen2VLImageProcessor(**PATCH, merge_size=2),
        video_processor=hf.Qwen2VLVideoProcessor(**PATCH, merge_size=2),
        feature_extractor=hf.WhisperFeatureExtractor(feature_size=16),
        tokenizer=tiny_tokenizer(words, OMNI_TOKENS, template=template),
        chat_template=template,
    )


def thinker_tokens(tokenizer: Any, suffix: str) -> dict[str, int]:
    """What a thinker's config says of the tokenizer; ``suffix`` is how it calls the places of features."""
    ids = tokenizer.convert_tokens_to_ids
    places = {f"{kind}_token_{suffix}": ids(f"<|{kind}_pad|>") for kind in ("image", "video", "audio")}
    ends = [f"{kind}_{end}" for kind in ("vision", "audio") for end in ("start", "end")]
    return places | {f"{name}_token_id": ids(f"<|{name}|>") for name in ends}


@family("qwen3_omni_moe")
def qwen3_omni_moe(words: tuple[str, ...]) -> Parts:
    """Qwen3-Omni: experts in the thinker; talker and vocoder beside it."""
    processor = omni_processor(words, hf.Qwen3OmniMoeProcessor)
    places = rope(2, 1, 1, mrope_interleaved=True)
    small = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    spoken = {**small, "head_dim": 8, "rope_parameters": places, **EXPERTS, "shared_expert_intermediate_size": 32}
    config = hf.Qwen3OmniMoeConfig(
        thinker_config={
            "text_config": decoder(processor.tokenizer, rope_parameters=places) | EXPERTS,
            "vision_config": {**QWEN_TOWER, **PATCH, **DEEPSTACK},
            "audio_config": {**EAR, "downsample_hidden_size": 8, "n_window": 50, "n_window_infer": 100},
            **thinker_tokens(processor.tokenizer, "id"),
        },
        talker_config={
            "text_config": spoken,
            "code_predictor_config": {**small, "head_dim": 8, "num_code_groups": 2},
            "num_code_groups": 2,
            "thinker_hidden_size": 32,
            "accept_hidden_layer": 1,
            "spatial_merge_size": 2,
        },
        code2wav_config={
            **{name: size for name, size in small.items() if name != "vocab_size"},
            "codebook_size": 64,
            "num_quantizers": 2,
            "decoder_dim": 32,
            "upsample_rates": [2, 2],
            "upsampling_ratios": [2],
        },
    )
    return Parts(processor=processor, config=config)


@family("qwen2_5_omni")
def qwen2_5_omni(words: tuple[str, ...]) -> Parts:
    """Qwen2.5-Omni without its voice, which it may be saved without."""
    processor = omni_processor(words, hf.Qwen2_5OmniProcessor)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": None}
    config = hf.Qwen2_5OmniConfig(
        thinker_config={
            "text_config": decoder(processor.tokenizer, **heads, rope_parameters=rope(2, 3, 3)),
            "vision_config": {**QWEN_TOWER, **PATCH, "window_size": 56, "fullatt_block_indexes": [1]},
            "audio_config": EAR,
            **thinker_tokens(processor.tokenizer, "index"),
        },
        enable_audio_output=False,
    )
    return Parts(processor=processor, config=config)
