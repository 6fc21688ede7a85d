"""MiniCPM's families: frames merged twice on their way, Qwen3.5's hybrid decoder."""

from __future__ import annotations

from typing import Any

from orlaif.tiny.qwen import DELTA
from orlaif.tiny.registry import Parts, family, hf
from orlaif.tiny.sizes import TOWER, decoder, rope
from orlaif.tiny.tokens import tiny_tokenizer

NAMED = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "image_start_token": "<image>",
    "image_end_token": "</image>",
    "slice_start_token": "<slice>",
    "slice_end_token": "</slice>",
    "image_id_start_token": "<image_id>",
    "image_id_end_token": "</image_id>",
}


def minicpm(words: tuple[str, ...], kind: Any, image: Any, video: Any, config: Any, **changes: Any) -> Parts:
    """A MiniCPM.

    Args:
        words: of its tokenizer.
        kind: class of its processor.
        image: class of its image processor.
        video: class of its video processor.
        config: class of its config.
        changes: to the vision tower.
    """
    tokenizer = tiny_tokenizer(words, NAMED)
    patches: dict[str, Any] = {"scale_resolution": 56, "patch_size": 14, "slice_mode": False}
    processor = kind(
        image_processor=image(**patches),
        video_processor=video(**patches),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
    )
    places = rope(2, 1, 1, mrope_interleaved=True, partial_rotary_factor=0.5)
    text = {"model_type": "qwen3_5_text", **decoder(tokenizer, head_dim=16, rope_parameters=places), **DELTA}
    text |= {"layer_types": ["linear_attention", "full_attention"]}
    vision = {**TOWER, "num_hidden_layers": 3, "image_size": 56, "patch_size": 14, "insert_layer_id": 1, **changes}
    made = config(
        text_config=text,
        vision_config=vision,
        insert_layer_id=1,
        image_size=56,
        patch_size=14,
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
        tie_word_embeddings=False,
    )
    return Parts(processor=processor, config=made)


@family("minicpmv4_6")
def minicpmv4_6(words: tuple[str, ...]) -> Parts:
    """MiniCPM-V 4.6."""
    return minicpm(
        words,
        hf.MiniCPMV4_6Processor,
        hf.MiniCPMV4_6ImageProcessor,
        hf.MiniCPMV4_6VideoProcessor,
        hf.MiniCPMV4_6Config,
    )


@family("minicpmv4_7")
def minicpmv4_7(words: tuple[str, ...]) -> Parts:
    """MiniCPM-V 4.7, whose positions are asked for by arguments of its own."""
    return minicpm(
        words,
        hf.MiniCPMV4_7Processor,
        hf.MiniCPMV4_6ImageProcessor,
        hf.MiniCPMV4_6VideoProcessor,
        hf.MiniCPMV4_7Config,
    )


@family("minicpm_ocr")
def minicpm_ocr(words: tuple[str, ...]) -> Parts:
    """MiniCPM-OCR."""
    return minicpm(
        words,
        hf.MiniCPMOcrProcessor,
        hf.MiniCPMOcrImageProcessor,
        hf.MiniCPMOcrVideoProcessor,
        hf.MiniCPMOcrConfig,
    )
