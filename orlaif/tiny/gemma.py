"""Gemma's families: layers with a window, 70 tokens a frame, times in minutes and seconds."""

from __future__ import annotations

from typing import Any

from orlaif.tiny.registry import Parts, family, hf
from orlaif.tiny.sizes import TOWER, decoder, rope
from orlaif.tiny.tokens import tiny_tokenizer

NAMED = {
    "image_token": "<|image|>",
    "video_token": "<|video|>",
    "audio_token": "<|audio|>",
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
}
#: Patches of 6 x 6 pixels, four to a token; 70 tokens a frame is the least that the processor knows.
PATCHES: dict[str, Any] = {"patch_size": 6, "pooling_kernel_size": 2, "max_soft_tokens": 70}


def gemma4_processor(words: tuple[str, ...], kind: Any, image: Any, video: Any, sound: Any) -> Any:
    """A Gemma 4 processor of a class, around the image, video and sound processors that go with it."""
    tokenizer = tiny_tokenizer(words, NAMED)
    return kind(
        feature_extractor=sound(),
        image_processor=image(**PATCHES),
        video_processor=video(**PATCHES),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
    )


def gemma4_text(tokenizer: Any) -> dict[str, Any]:
    """A decoder of a layer with a window and one without, whose heads are larger."""
    layers = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
    places = {"sliding_attention": rope(), "full_attention": rope(partial_rotary_factor=0.5)}
    caps = {"final_logit_softcapping": 30.0, "tie_word_embeddings": True}
    return {**decoder(tokenizer, rope_parameters=places), **layers, **caps, "global_head_dim": 16}


def gemma4_ids(processor: Any) -> dict[str, Any]:
    """Numbers of the tokens, as a Gemma 4 config names them."""
    number = processor.tokenizer.convert_tokens_to_ids
    ids = {f"{name}_id": number(token) for name, token in NAMED.items() if name != "eoa_token"}
    return {**ids, "eoa_token_index": number(NAMED["eoa_token"])}


@family("gemma4")
def gemma4(words: tuple[str, ...]) -> Parts:
    """Gemma 4: embeddings for each layer, heads of two sizes, logits with a soft cap; without its ear."""
    processor = gemma4_processor(
        words,
        hf.Gemma4Processor,
        hf.Gemma4ImageProcessor,
        hf.Gemma4VideoProcessor,
        hf.Gemma4AudioFeatureExtractor,
    )
    text = gemma4_text(processor.tokenizer)
    text |= {"vocab_size_per_layer_input": text["vocab_size"], "hidden_size_per_layer_input": 8}
    vision = {**TOWER, "num_key_value_heads": 2, "head_dim": 16, "patch_size": 6, "pooling_kernel_size": 2}
    vision |= {"position_embedding_size": 128}
    config = hf.Gemma4Config(
        text_config=text, vision_config=vision, audio_config=None, tie_word_embeddings=True, **gemma4_ids(processor)
    )
    return Parts(processor=processor, config=config)


@family("gemma4_unified")
def gemma4_unified(words: tuple[str, ...]) -> Parts:
    """Gemma 4 without a tower: patches go straight into the decoder, where a frame's tokens see one another."""
    processor = gemma4_processor(
        words,
        hf.Gemma4UnifiedProcessor,
        hf.Gemma4UnifiedImageProcessor,
        hf.Gemma4UnifiedVideoProcessor,
        hf.Gemma4UnifiedAudioFeatureExtractor,
    )
    vision = {"patch_size": 6, "pooling_kernel_size": 2, "mm_embed_dim": 32, "output_proj_dims": 32}
    vision |= {"mm_posemb_size": 128}
    config = hf.Gemma4UnifiedConfig(
        text_config=gemma4_text(processor.tokenizer),
        vision_config=vision,
        audio_config=None,
        tie_word_embeddings=True,
        **gemma4_ids(processor),
    )
    return Parts(processor=processor, config=config)
