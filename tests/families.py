"""Tiny models of further families, for tests that must hold on each."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from orlaif.demo.shapes import words
from orlaif.policy import Policy
from orlaif.policy.families import family_of
from orlaif.policy.positions import behind_the_largest
from orlaif.tiny import tiny_model


def made(model_type: str, folder: str) -> None:
    """A tiny model that knows the words of the embedded data set."""
    tiny_model(model_type, folder, words())


def vision_tower(network: Any) -> torch.nn.Module:
    """The first of the modules that turn a video into features."""
    return family_of(network.config).tower(network)[0]


@contextmanager
def original_numbering(policy: Policy) -> Iterator[None]:
    """Within, Qwen2.5-VL's own forward numbers text behind a video as its original implementation does."""
    if policy.config.model_type != "qwen2_5_vl":
        yield
        return
    inner = policy.network.model
    ask = inner.get_rope_index

    def asked(input_ids: Tensor, *, mm_token_type_ids: Tensor, attention_mask: Tensor, **kwargs: object) -> object:
        positions, _ = ask(input_ids, mm_token_type_ids=mm_token_type_ids, attention_mask=attention_mask, **kwargs)
        positions = behind_the_largest(positions, mm_token_type_ids.bool(), attention_mask.bool())
        return positions, positions.amax((0, 2))[:, None] + 1 - attention_mask.sum(-1, keepdim=True)

    inner.get_rope_index = asked
    try:
        yield
    finally:
        del inner.get_rope_index


FAMILIES = {name: functools.partial(made, name) for name in ("qwen3_vl", "qwen2_5_vl", "llava_onevision", "smolvlm")}
#: Families with layers whose state runs from token to token.
HYBRIDS = {name: functools.partial(made, name) for name in ("qwen3_5", "qwen3_5_moe", "lfm3_vl", "nemotron_h_omni")}
#: Families with windows of 16 tokens, or with frames whose tokens see one another.
MASKED = {name: functools.partial(made, name) for name in ("gemma4", "gemma4_unified", "exaone4_5", "molmo2")}
