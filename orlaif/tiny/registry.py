"""Which families there are tiny models of, and how one is written to a folder."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, AutoModelForMultimodalLM

from orlaif.tiny.tokens import WORDS, WRITTEN

#: Its classes, which check what they are given themselves.
hf: Any = transformers
#: Modules of builders; each registers its own by :func:`family`.
MODULES = ("qwen", "qwen_like", "llava", "glm", "gemma", "minicpm", "ernie", "others", "omni", "nvidia", "latent")


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a checkpoint is made of.

    Args:
        processor: of transformers, with its tokenizer.
        config: of the whole model.
        kind: class of the model; by default the one that transformers has for the config.
        lay_down: writes files that the processor keeps beside its own, to a folder, and tells it.
    """

    processor: Any
    config: Any
    kind: Any = None
    lay_down: Callable[[Path], None] | None = None


Builder = Callable[[tuple[str, ...]], Parts]
_BUILDERS: dict[str, Builder] = {}


def family(*model_types: str) -> Callable[[Builder], Builder]:
    """Let a function build the tiny models of these model types; it is given the words that a tokenizer must know."""

    def register(builder: Builder) -> Builder:
        _BUILDERS.update(dict.fromkeys(model_types, builder))
        return builder

    return register


def families() -> list[str]:
    """The model types of the installed transformers that :func:`tiny_model` has a builder for."""
    for module in MODULES:
        importlib.import_module(f"orlaif.tiny.{module}")
    return sorted(_BUILDERS.keys() & CONFIG_MAPPING.keys())


def tiny_model(model_type: str, folder: str | Path, words: Iterable[str] = WORDS, seed: int = 0) -> str:
    """Write a randomly initialised tiny checkpoint of a family: model, tokenizer and processor, in float32.

    2 layers, 32 hidden units, and weights so large that distributions are sharp: a wrong token or position shows.

    Args:
        model_type: as transformers names it.
        folder: created where it is missing; files of the same name are replaced.
        words: what the tokenizer must know besides digits, punctuation and special tokens.
        seed: of the random weights.

    Returns:
        The folder.

    Raises:
        ValueError: no builder knows ``model_type``.
    """
    return write(built(model_type, words), folder, seed)


def built(model_type: str, words: Iterable[str] = WORDS) -> Parts:
    """Config and processor of a family's tiny model; arguments and errors are those of :func:`tiny_model`."""
    if model_type not in families():
        raise ValueError(f"no tiny model of model type {model_type!r}; there are {', '.join(families())}")
    return _BUILDERS[model_type]((*words, *WRITTEN))


def write(parts: Parts, folder: str | Path, seed: int = 0) -> str:
    """Write a checkpoint with random weights to a folder, which is returned."""
    model = random_model(parts, seed)
    model.save_pretrained(folder)
    if parts.lay_down is not None:
        parts.lay_down(Path(folder))
    parts.processor.save_pretrained(folder)
    return str(folder)


def random_model(parts: Parts, seed: int) -> Any:
    """The model of a config with random weights, at least 0.1 in spread, that ends answers as its tokenizer does."""
    kind: Any = parts.kind or AutoModelForImageTextToText._model_mapping.get(type(parts.config), None)
    kind = kind or AutoModelForMultimodalLM._model_mapping[type(parts.config)]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = kind(parts.config)
        for parameter in model.parameters():
            if parameter.ndim > 1 and parameter.std() < 0.1:
                parameter.mul_(0.1 / parameter.std().clamp(min=1e-3))
        speaking = getattr(model, "thinker", model)
        head, embedding = speaking.get_output_embeddings(), speaking.get_input_embeddings()
        if head is not None and head.weight is not embedding.weight:
            head.weight.copy_(torch.randn_like(head.weight) * 0.5)
    tokenizer = parts.processor.tokenizer
    ends = model.generation_config
    ends.eos_token_id, ends.pad_token_id, ends.bos_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id, None
    return model
