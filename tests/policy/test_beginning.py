"""Answers begin as the chat template begins them."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.models.smolvlm.processing_smolvlm import DEFAULT_CHAT_TEMPLATE

from orlaif.policy.beginning import lead_of, word_ids
from orlaif.tiny.tokens import CHAT_TEMPLATE


class Processor:
    """A byte-level tokenizer, as real ones are, with a chat template."""

    def __init__(self, template: str) -> None:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
        backend.train_from_iterator(["Assistant: red", "red red red red"] * 9, trainer)
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end_of_utterance>")
        self.chat_template = template

    def apply_chat_template(self, messages: Any, **kwargs: Any) -> Any:
        return self.tokenizer.apply_chat_template(messages, chat_template=self.chat_template, **kwargs)


def tokens(processor: Processor, text: str) -> list[str]:
    return processor.tokenizer.convert_ids_to_tokens(word_ids(processor, text, {}))


def test_smolvlm_writes_a_space_before_an_answer() -> None:
    processor = Processor(DEFAULT_CHAT_TEMPLATE)
    assert lead_of(processor, {}) == ("Assistant:", " ")
    assert tokens(processor, "red") == ["Ġred"]
    assert tokens(processor, "red red") == ["Ġred", "Ġred"]
    assert tokens(processor, " red") == ["Ġred"]  # it has its own
    assert tokens(processor, "") == []


@pytest.mark.parametrize(
    "template",
    [
        CHAT_TEMPLATE,
        # Thoughts that a template makes up are no space, and one that takes words only writes nothing.
        "{% for m in messages %}{{ m.role }}\n{% if m.role == 'assistant' %}<think></think> answer{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}assistant\n{% endif %}",
        "{% for m in messages %}{% if m.role == 'user' %}user {% else %}{{ 'assistant: ' + m.content }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}",
        "{% for m in messages %}{% if m.role == 'user' %}user {% else %}{{ raise_exception('no') }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}",
    ],
    ids=["qwen", "thoughts", "words only", "no answers"],
)
def test_others_write_none(template: str) -> None:
    processor = Processor(template)
    assert lead_of(processor, {})[1] == ""
    assert tokens(processor, "red") == ["red"]
