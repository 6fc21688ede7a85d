"""LLaVA's kind: a tower of the CLIP kind, a projector, as many tokens as frames and their patches give."""

from __future__ import annotations

from typing import Any

from orlaif.tiny.registry import Parts, family, hf
from orlaif.tiny.sizes import PATCH, SQUARE, TOWER, decoder
from orlaif.tiny.tokens import tiny_tokenizer

NAMED = {"image_token": "<image>", "video_token": "<video>"}
SIGLIP = {"model_type": "siglip_vision_model", **TOWER, **PATCH, "vision_use_head": False}
CLIP = {"model_type": "clip_vision_model", **TOWER, **PATCH}
#: Of processors that scale the shorter side and cut out the middle.
CROPPED: dict[str, Any] = {"size": {"shortest_edge": 48}, "crop_size": SQUARE}


@family("llava_onevision")
def llava_onevision(words: tuple[str, ...]) -> Parts:
    """LLaVA-OneVision: Qwen2 and SigLIP; frames are pooled to four tokens each, and a line break ends the video."""
    tokenizer = tiny_tokenizer(words, NAMED)
    processor = hf.LlavaOnevisionProcessor(
        image_processor=hf.LlavaOnevisionImageProcessor(size=SQUARE, image_grid_pinpoints=[[48, 48]]),
        video_processor=hf.LlavaOnevisionVideoProcessor(size=SQUARE),
        tokenizer=tokenizer,
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=tokenizer.chat_template,
        image_token="<image>",
        video_token="<video>",
    )
    config = hf.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **decoder(tokenizer)},
        vision_config=SIGLIP,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        vision_feature_layer=-1,
        image_grid_pinpoints=[[48, 48]],
        tie_word_embeddings=False,
    )
    return Parts(processor=processor, config=config)


@family("llava_next_video")
def llava_next_video(words: tuple[str, ...]) -> Parts:
    """LLaVA-NeXT-Video: Llama and CLIP; frames are pooled to four tokens each."""
    tokenizer = tiny_tokenizer(words, NAMED)
    processor = hf.LlavaNextVideoProcessor(
        image_processor=hf.LlavaNextImageProcessor(**CROPPED, image_grid_pinpoints=[[48, 48]]),
        video_processor=hf.LlavaNextVideoVideoProcessor(**CROPPED),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
        patch_size=12,
        vision_feature_select_strategy="default",
    )
    config = hf.LlavaNextVideoConfig(
        text_config={"model_type": "llama", **decoder(tokenizer)},
        vision_config=CLIP,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[48, 48]],
        image_seq_length=16,
        video_seq_length=16,
        tie_word_embeddings=False,
    )
    return Parts(processor=processor, config=config)


@family("video_llava")
def video_llava(words: tuple[str, ...]) -> Parts:
    """Video-LLaVA: Llama, a CLIP tower for pictures and one for videos of eight frames."""
    tokenizer = tiny_tokenizer(words, NAMED)
    processor = hf.VideoLlavaProcessor(
        image_processor=hf.VideoLlavaImageProcessor(**CROPPED),
        video_processor=hf.VideoLlavaVideoProcessor(**CROPPED),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
        patch_size=12,
        vision_feature_select_strategy="default",
    )
    config = hf.VideoLlavaConfig(
        text_config={"model_type": "llama", **decoder(tokenizer)},
        vision_config=CLIP,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_seq_length=16,
        video_seq_length=17 * 8,
        tie_word_embeddings=False,
    )
    return Parts(processor=processor, config=config)


@family("smolvlm")
def smolvlm(words: tuple[str, ...]) -> Parts:
    """SmolVLM: Llama and SigLIP, four tokens a frame; the prompt says in words how many frames there are and when."""
    extra = ("<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    tokenizer = tiny_tokenizer(words, NAMED, extra)
    sizes = {"size": {"longest_edge": 48}, "max_image_size": {"longest_edge": 48}}
    processor = hf.SmolVLMProcessor(
        image_processor=hf.SmolVLMImageProcessor(**sizes),
        video_processor=hf.SmolVLMVideoProcessor(**sizes, num_frames=8, fps=1),
        tokenizer=tokenizer,
        image_seq_len=4,
        chat_template=tokenizer.chat_template,
    )
    config = hf.SmolVLMConfig(
        text_config={"model_type": "llama", **decoder(tokenizer)},
        vision_config={**TOWER, **PATCH},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    return Parts(processor=processor, config=config)


@family("internvl")
def internvl(words: tuple[str, ...]) -> Parts:
    """InternVL: Qwen3 and InternViT, four tokens a frame."""
    named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    tokenizer = tiny_tokenizer(words, {**named, "video_token": "<video>", "image_token": "<IMG_CONTEXT>"})
    processor = hf.InternVLProcessor(
        image_processor=hf.GotOcr2ImageProcessor(size=SQUARE),
        video_processor=hf.InternVLVideoProcessor(size=SQUARE),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=tokenizer.chat_template,
    )
    config = hf.InternVLConfig(
        text_config={"model_type": "qwen3", **decoder(tokenizer)},
        vision_config={**TOWER, "image_size": [48, 48], "patch_size": [12, 12]},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )
    return Parts(processor=processor, config=config)
