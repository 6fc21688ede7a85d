"""What a policy's checkpoint is, known without its weights: model or adapter, family, config, processor, tokens.

Each is read when it is first asked for, so that a recipe can be read, checked and printed without any of them.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import AutoConfig

from orlaif.policy.asking import speaking
from orlaif.policy.families import Family, family_of
from orlaif.policy.hub import Source, find_source, load_processor


class Checkpoint(nn.Module):
    """A Hugging Face checkpoint whose weights may not have been loaded.

    Args:
        path: folder of a model or a PEFT adapter, or a hub id of one.
        family: where the model differs from others; by default what its model type asks for.

    Attributes:
        model: the transformers (or PEFT) model, once it is loaded.
    """

    def __init__(self, path: str, family: Family | None = None) -> None:
        super().__init__()
        self.path = path
        self.model: nn.Module | None = None
        self._family = family
        self._source: Source | None = None
        self._processor: Any = None

    @property
    def source(self) -> Source:
        """What ``path`` names: a model, or an adapter and its base."""
        if self._source is None:
            self._source = find_source(self.path)
        return self._source

    @property
    def family(self) -> Family:
        """Where this model differs from others."""
        if self._family is None:
            self._family = family_of(self.config)
        return self._family

    @property
    def processor(self) -> Any:
        """Tokenizer and video processor that lie beside the weights; loaded when first asked for."""
        if self._processor is None:
            self._processor = load_processor(self.path)
        return self._processor

    @property
    def config(self) -> Any:
        """The transformers config of the model that is trained, without loading weights."""
        if self.model is not None:
            return self.model.config
        config = AutoConfig.from_pretrained(self.source.model, revision=self.source.revision)
        return speaking(config) or config

    @property
    def pad_id(self) -> int:
        """Id of the token that fills masked places of prompts and completions."""
        return int(self.processor.tokenizer.pad_token_id)

    @property
    def placeholder_ids(self) -> list[int]:
        """Tokens that stand for pixels; never sampled, never counted."""
        return self.family.placeholder_ids(self.config)
