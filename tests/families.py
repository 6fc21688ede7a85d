"""Tiny models of further families, for tests that must hold on each."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor

from orlaif.demo.shapes import words
from orlaif.policy import Policy
from orlaif.policy.families import family_of
from orlaif.policy.positions import behind_the_largest
from orlaif.policy.whole import holds_more
from orlaif.tiny import families, tiny_model
from orlaif.types import PromptBatch
from tests.conftest import REPO


def made(model_type: str, folder: str, known: Iterable[str] | None = None) -> str:
    """The folder of a tiny model that knows the words of the embedded data set; what this environment lacks is skipped.

    Raises:
        Skipped: the installed transformers has no such family, or needs a package for it that is not installed.
    """
    if model_type not in families():
        pytest.skip(f"transformers {transformers.__version__} has no model type {model_type!r}")
    try:
        return tiny_model(model_type, folder, words() if known is None else known)
    except ImportError as error:
        pytest.skip(f"model type {model_type!r}: {' '.join(str(error).split())}")


def older_transformers() -> bool:
    """Than those of ``constraints.txt``: what they cannot do is no fault of orlaif, as long as it says so."""
    tested = re.search(r"^transformers==(\S+)", (REPO / "constraints.txt").read_text(), re.MULTILINE)
    assert tested
    return Version(transformers.__version__) < Version(tested[1])


def skip_unless_it_mixes(policy: Policy, batch: PromptBatch) -> None:
    """Skip where transformers' own forward of a family fails under autocast, as that of SmolVLM does in 5.17."""
    given = policy.family.inputs(policy.network, batch)
    try:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            policy.network(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **given)
    except RuntimeError as error:
        pytest.skip(f"transformers {transformers.__version__}, {policy.config.model_type} in mixed precision: {error}")


def loaded_or_skipped(folder: str) -> Policy:
    """A policy that is loaded; skipped is what orlaif refuses to load with transformers older than the tested ones."""
    policy = Policy(folder, dtype="float32")
    try:
        return policy.load()
    except ValueError as refusal:
        if not older_transformers():
            raise
        pytest.skip(f"transformers {transformers.__version__}: {refusal}")


def skip_unless_its_export_is_whole(folder: str) -> None:
    """Skip a thinker whose towers are beside its model, as in transformers 5.17: orlaif refuses to export it."""
    policy = Policy(folder, prefix="duplicate")
    if older_transformers() and holds_more(policy.source) and not hasattr(policy.load().network.model, "audio_tower"):
        pytest.skip(f"transformers {transformers.__version__} has a thinker's towers beside its model")


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
