"""ERNIE 4.5 VL: experts by modality, times drawn into the frames with a font that lies beside the processor's files."""

from __future__ import annotations

from pathlib import Path

from PIL import ImageFont

from orlaif.tiny.registry import Parts, family, hf
from orlaif.tiny.sizes import decoder, rope, token_ids
from orlaif.tiny.tokens import chat_template, tiny_tokenizer

NAMED = {
    "image_token": "<|IMAGE_PLACEHOLDER|>",
    "video_token": "<|VIDEO_PLACEHOLDER|>",
    "image_start_token": "<|IMAGE_START|>",
    "image_end_token": "<|IMAGE_END|>",
    "video_start_token": "<|VIDEO_START|>",
    "video_end_token": "<|VIDEO_END|>",
}
FONT = "times.ttf"


@family("ernie4_5_vl_moe")
def ernie4_5_vl_moe(words: tuple[str, ...]) -> Parts:
    """ERNIE 4.5 VL."""
    video = NAMED["video_start_token"] + NAMED["video_token"] + NAMED["video_end_token"]
    image = NAMED["image_start_token"] + NAMED["image_token"] + NAMED["image_end_token"]
    tokenizer = tiny_tokenizer(words, NAMED, template=chat_template(video, image))
    size = {"shortest_edge": 56 * 56, "longest_edge": 4 * 56 * 56}
    processor = hf.Ernie4_5_VLMoeProcessor(
        image_processor=hf.Ernie4_5_VLMoeImageProcessor(size=size),
        video_processor=hf.Ernie4_5_VLMoeVideoProcessor(size=size, font=FONT),
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
    )
    experts = {"moe_intermediate_size": [32, 16], "moe_k": 2, "moe_num_experts": 4, "moe_num_shared_experts": 1}
    text = {**decoder(tokenizer, head_dim=None, rope_parameters=rope(1, 1, 2)), **experts}
    config = hf.Ernie4_5_VLMoeConfig(
        text_config={**text, "mlp_layer_types": ["dense", "sparse"]},
        vision_config={"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64},
        tie_word_embeddings=False,
        **token_ids(tokenizer, NAMED),
    )

    def font(folder: Path) -> None:
        """Pillow's own, as a file."""
        drawn = ImageFont.load_default(size=12)
        assert isinstance(drawn, ImageFont.FreeTypeFont)
        (folder / FONT).write_bytes(drawn.font_bytes)
        processor.video_processor.font = str(folder / FONT)

    return Parts(processor=processor, config=config, lay_down=font)
