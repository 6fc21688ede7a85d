"""A family held back: no line of orlaif names its model type, and transformers has none like it.

Its modules, its inputs and the way in which its video enters are its own: two inputs that nobody else has, no class of
a vision tower, a decoder and a head under other names, a processor that is a tokenizer and arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    Qwen3Config,
    Qwen3Model,
)
from transformers.feature_extraction_utils import BatchFeature
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from orlaif.policy import Policy
from orlaif.policy.families import Family
from orlaif.rollout import SamplingParams, generate
from orlaif.tiny import tiny_tokenizer
from orlaif.tiny.registry import Parts, random_model
from orlaif.tiny.sizes import decoder
from orlaif.tiny.tokens import WORDS
from tests.conftest import REPO
from tests.policy.test_all_families import compared, reloads, trained
from tests.zoo import encoded, greedy

NAME, SLIDE = "periscope", "<|slide|>"


class PeriscopeConfig(PreTrainedConfig):
    model_type = NAME
    sub_configs = {"story_config": Qwen3Config}  # noqa: RUF012

    story_config: Any = None
    video_token_id: int = 0
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.story_config, dict):
            self.story_config = Qwen3Config(**self.story_config)
        super().__post_init__(**kwargs)

    def get_text_config(self, *args: Any, **kwargs: Any) -> Any:
        return self.story_config


class Periscope(PreTrainedModel, GenerationMixin):
    """A frame is four tokens: the mean color of each quarter, and how far on in its video it stands, projected."""

    config_class = PeriscopeConfig
    base_model_prefix = ""
    _supports_sdpa = True

    def __init__(self, config: PeriscopeConfig) -> None:
        super().__init__(config)
        size = config.story_config.hidden_size
        self.lens = nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Linear(16, size))
        self.narrator = Qwen3Model(config.story_config)
        self.voice = nn.Linear(size, config.story_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> Any:
        return self.narrator.embed_tokens

    def get_output_embeddings(self) -> Any:
        return self.voice

    def get_decoder(self) -> Any:
        return self.narrator

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        slides: Tensor | None = None,
        slide_counts: Tensor | None = None,
        **more: Any,
    ) -> CausalLMOutputWithPast:
        embedded = self.narrator.embed_tokens(input_ids)
        places = (input_ids == self.config.video_token_id).unsqueeze(-1)
        if slides is not None and slide_counts is not None and bool(places.any()):
            along = torch.cat([torch.arange(int(n)) / n for n in slide_counts]).to(slides)
            seen = self.lens(torch.cat([slides, along[:, None, None].expand(-1, 4, 1)], -1))
            embedded = embedded.masked_scatter(places.expand_as(embedded), seen.to(embedded))
        told = self.narrator(inputs_embeds=embedded, attention_mask=attention_mask, **more)
        return CausalLMOutputWithPast(logits=self.voice(told.last_hidden_state), past_key_values=told.past_key_values)


class PeriscopeProcessor(ProcessorMixin):
    def __init__(self, tokenizer: Any = None, chat_template: str | None = None, **kwargs: Any) -> None:
        super().__init__(tokenizer, chat_template=chat_template)

    def __call__(self, text: list[str], videos: list[Any], return_tensors: str = "pt", **kwargs: Any) -> BatchFeature:
        written, slides = [], []
        for prompt, (frames,) in zip(text, videos, strict=True):
            quarters = nn.functional.adaptive_avg_pool2d(frames.float() / 255, 2).flatten(2).transpose(1, 2)
            slides.append(quarters)
            written.append(prompt.replace(SLIDE, " ".join(f"{i} {SLIDE * 4}" for i in range(len(frames)))))
        tokens = self.tokenizer(written, padding=True, return_tensors="pt", add_special_tokens=False)
        counts = torch.tensor([len(one) for one in slides])
        given = {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}
        return BatchFeature({**given, "slides": torch.cat(slides), "slide_counts": counts})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Registered with transformers as code beside a checkpoint is, and taken out again."""
    AutoConfig.register(NAME, PeriscopeConfig)
    AutoModelForImageTextToText.register(PeriscopeConfig, Periscope)
    AutoProcessor.register(PeriscopeConfig, PeriscopeProcessor)
    tokenizer = tiny_tokenizer(WORDS, {"video_token": SLIDE})
    processor = PeriscopeProcessor(tokenizer, chat_template=tokenizer.chat_template)
    config = PeriscopeConfig(story_config=decoder(tokenizer), video_token_id=tokenizer.convert_tokens_to_ids(SLIDE))
    path = tmp_path_factory.mktemp(NAME)
    random_model(Parts(processor=processor, config=config, kind=Periscope), seed=0).save_pretrained(path)
    processor.save_pretrained(path)
    yield str(path)
    CONFIG_MAPPING._extra_content.pop(NAME)
    for mapping in (AutoModelForImageTextToText._model_mapping, PROCESSOR_MAPPING):
        mapping._extra_content.pop(PeriscopeConfig)


@pytest.fixture(scope="module")
def policy(folder: str) -> Policy:
    return Policy(folder, dtype="float32").load()


def test_no_line_names_it() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (REPO / "orlaif").rglob("*.py")]
    assert len(sources) > 100
    assert not [text for text in sources if NAME in text.lower() or "slide" in text.lower()]


def test_a_prompt_is_paid_once(policy: Policy) -> None:
    assert type(policy.family) is Family
    assert (policy.layout, policy.reads_prompt_once) == ("shared", True)
    assert policy.choice is not None
    assert policy.choice.head.reason is None
    assert policy.placeholder_ids == [policy.config.video_token_id]


def test_a_ragged_batch_is_its_sequences(policy: Policy) -> None:
    assert encoded(policy, 0, 1).mm_inputs["slide_counts"].tolist() == [4, 8]
    compared(policy, 1e-5, 1e-5)


def test_greedy_is_generate(policy: Policy) -> None:
    ours = generate(policy, encoded(policy, 0, 1), 2, SamplingParams(max_new_tokens=6, temperature=0.0))
    for p in range(2):
        n = int(ours.lengths[p, 0])
        assert ours.ids[p, 0, :n].tolist() == greedy(policy, encoded(policy, p), 6)[:n]


@pytest.mark.parametrize("lora", [None, {"r": 2, "target_modules": "all-linear"}])
def test_a_step_and_an_export(policy: Policy, lora: Any, tmp_path: Path) -> None:
    module = trained(policy, tmp_path, lora=lora)
    module.policy.export(str(tmp_path / "export"), merge=lora is not None)
    reloads(module.policy, str(tmp_path / "export"))


def test_a_frozen_tower_is_its_lens(folder: str) -> None:
    network: Any = Policy(folder, dtype="float32", freeze_vision=True).load().network
    frozen = {name.partition(".")[0] for name, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {"lens"}
