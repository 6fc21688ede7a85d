"""``prefix: fork``: completions behind their prompt's cache equal single sequences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from orlaif.policy import Policy
from orlaif.policy.encoding import ProcessorEncoder
from orlaif.policy.prefix.probe import alone
from orlaif.policy.prefix.synthetic import synthetic_batch
from orlaif.tiny import families
from orlaif.types import Completions, PromptBatch
from tests.conftest import random_completions
from tests.families import made as write_tiny_model
from tests.families import older_transformers
from tests.policy.test_encoding import prompts_and_clips

#: Full attention, numbered in one and in three coordinates; Gated DeltaNet; a short convolution; windows of 16 tokens,
#: which the prompts exceed; MLA, sparse indexers and Gated DeltaNet in one.
MODELS = ("llava_onevision", "qwen2_5_vl", "qwen3_5", "lfm3_vl", "gemma4", "exaone4_5", "glm5_next", "qwen4_exp")
LORA = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False}


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Policy]:
    """From a family and settings to its tiny model with ``prefix: fork``."""

    @cache
    def folder(kind: str) -> str:
        return write_tiny_model(kind, str(tmp_path_factory.mktemp(kind)))

    def made(kind: str, **settings: Any) -> Policy:
        return Policy(folder(kind), **{"dtype": "float32", "prefix": "fork", **settings}).load()

    return made


def ragged(policy: Policy, dtype: str = "float32") -> tuple[PromptBatch, list[PromptBatch], Completions]:
    """Four prompts with clips of three lengths, the same one by one, and completions of 1 to 5 tokens."""
    encoder = ProcessorEncoder(policy.processor, family=policy.family)
    prompts, clips = prompts_and_clips()
    batches = [encoder(prompts, clips), *(encoder([one], [clip]) for one, clip in zip(prompts, clips, strict=True))]
    if dtype == "float64":
        batches = [replace(batch, mm_inputs=to_double(batch.mm_inputs)) for batch in batches]
    completions = random_completions(policy, len(prompts), 3, 5)
    assert completions.lengths.unique().numel() > 2
    return batches[0], batches[1:], completions


def to_double(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: to_double(one) for name, one in value.items()}
    if isinstance(value, list):
        return [to_double(one) for one in value]
    return value.double() if value.is_floating_point() else value


def logps_alone(policy: Policy, singles: list[PromptBatch], completions: Completions) -> Tensor:
    """Log-probs f32[P, G, T] of every completion as one unpadded sequence, by transformers' own forward."""
    rows = []
    for single, group, lengths in zip(singles, completions.ids, completions.lengths.tolist(), strict=True):
        for ids, n in zip(group, lengths, strict=True):
            logits = policy.mask_placeholders(alone(policy.network, single, ids[:n], policy.family))
            logps = logits.log_softmax(-1).gather(-1, ids[:n, None])[:, 0]
            rows.append(torch.nn.functional.pad(logps, (0, len(ids) - n)))
    return torch.stack(rows).view(completions.ids.shape)


def gradients(policy: Policy, logps: Tensor) -> dict[str, Tensor]:
    """Of a weighted sum of ``logps``."""
    policy.network.zero_grad()
    (logps * torch.linspace(-1, 1, logps.numel(), dtype=logps.dtype).view_as(logps)).sum().backward()
    return {name: p.grad.clone() for name, p in policy.network.named_parameters() if p.grad is not None}


def same(ours: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    largest = max(float(grad.abs().max()) for grad in expected.values())
    assert largest > 0
    assert ours.keys() == expected.keys()
    for name, grad in expected.items():
        assert float((ours[name] - grad).abs().max()) <= tolerance * largest, name


def check(policy: Policy, dtype: str = "float32", tolerance: float = 1e-5) -> Tensor:
    """Log-probs and gradients, of ragged prompts and completions, equal those of single sequences; the log-probs."""
    assert policy.layout == "fork"
    batch, singles, completions = ragged(policy, dtype)
    expected = logps_alone(policy, singles, completions)
    truth = gradients(policy, expected)
    logps = policy.completion_logps(batch, completions)
    # Sharp heads give log-probs of -10 and below, of which float32 keeps seven digits.
    torch.testing.assert_close(logps.detach().to(expected), expected.detach(), atol=tolerance, rtol=tolerance / 2)
    same(gradients(policy, logps), truth, tolerance)
    return logps.detach()


@pytest.mark.parametrize("kind", MODELS)
def test_fork_equals_single_sequences(kind: str, forked: Callable[..., Policy]) -> None:
    """Through prompt and vision tower."""
    try:
        policy = forked(kind)
    except ValueError as refusal:  # a cache that does not repeat all that the model keeps
        if not older_transformers():
            raise
        pytest.skip(f"transformers {transformers.__version__}: {refusal}")
    logps = check(policy)
    assert float(logps[logps < 0].std()) > 0.2  # the model is far from uniform, so this is no accident


@pytest.mark.slow
@pytest.mark.parametrize("kind", families())
def test_every_family_forks(kind: str, forked: Callable[..., Policy]) -> None:
    """By the check at load: log-probs, a gradient, and who sees whom."""
    if kind == "perception_lm":
        pytest.importorskip("timm")
    assert forked(kind).layout == "fork"


@pytest.mark.parametrize("kind", ["llava_onevision", "qwen3_5", "gemma4"])
def test_lora_behind_a_fork(kind: str, forked: Callable[..., Policy]) -> None:
    check(forked(kind, lora=LORA))


@pytest.mark.parametrize("kind", ["llava_onevision", "lfm3_vl"])
def test_fork_in_float64(kind: str, forked: Callable[..., Policy]) -> None:
    check(forked(kind, dtype="float64"), "float64", 1e-6)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_short_completions(length: int, forked: Callable[..., Policy]) -> None:
    """Nothing is left for the second pass, or a single token, which layers take for decoding."""
    policy = forked("qwen3_5")
    batch, singles, _ = ragged(policy)
    completions = random_completions(policy, len(batch), 2, length)
    expected = logps_alone(policy, singles, completions)
    truth = gradients(policy, expected)
    logps = policy.completion_logps(batch, completions)
    torch.testing.assert_close(logps.detach(), expected.detach(), atol=1e-5, rtol=0)
    same(gradients(policy, logps), truth, 1e-5)


@pytest.mark.parametrize("kind", ["llava_onevision", "gemma4"])
def test_hidden_states_and_head_make_the_logits(kind: str, forked: Callable[..., Policy]) -> None:
    """What a fused head starts from; Gemma caps its logits."""
    policy = forked(kind)
    batch, _, completions = ragged(policy)
    hidden, head = policy.completion_hidden(batch, completions)
    logits = hidden @ head["weight"].T
    if head["softcap"] is not None:
        logits = head["softcap"] * torch.tanh(logits / head["softcap"])
    logits = logits + head["bias"]
    torch.testing.assert_close(logits, policy.completion_logits(batch, completions), atol=1e-5, rtol=1e-5)


def test_the_prompt_goes_through_the_model_once(forked: Callable[..., Policy]) -> None:
    """Tokens that are embedded: those of P prompts, and of P * G completions without their last."""
    policy = forked("qwen2_5_vl")
    batch, _, completions = ragged(policy)
    seen: list[tuple[int, ...]] = []
    embedded = policy.network.get_input_embeddings()
    embedded.register_forward_hook(lambda module, inputs, output: seen.append(tuple(inputs[0].shape)))
    policy.completion_logps(batch, completions)
    assert seen == [tuple(batch.input_ids.shape), (4 * 3, 5 - 1)]


def test_checkpointing_is_refused(forked: Callable[..., Policy], caplog: pytest.LogCaptureFixture) -> None:
    """Where the recipe insists before anything is loaded, else by the next layout; and if switched on behind us."""
    why = "under gradient checkpointing transformers drops the cache that 'fork' runs behind"
    with pytest.raises(ValueError, match=f"is 'fork' and policy.gradient_checkpointing is 'layers': {why}"):
        Policy("nowhere", prefix="fork", gradient_checkpointing=True)
    with caplog.at_level("INFO", logger="orlaif"):
        policy = forked("glm5_next", prefix="auto", gradient_checkpointing=True)
    assert policy.layout == "duplicate"
    assert f"not 'fork': {why}" in caplog.text
    policy = forked("qwen3_5")
    batch, _, completions = ragged(policy)
    policy.network.gradient_checkpointing_enable()
    policy.network.train()
    with pytest.raises(ValueError, match=why):
        policy.completion_logps(batch, completions)


def test_time_exceeds_height_and_width_in_the_check(forked: Callable[..., Policy]) -> None:
    """Among the tokens of the video, by Qwen2.5-VL's numbering in seconds."""
    policy = forked("qwen2_5_vl")
    batch = synthetic_batch(policy.processor, ("what",), torch.device("cpu"), torch.float32, policy.family)
    video = batch.input_ids[0] == policy.config.video_token_id
    time, height, width = policy.family.prompt_positions(policy.network, batch)[:, 0, video]
    assert int(time.max()) > max(int(height.max()), int(width.max()))
