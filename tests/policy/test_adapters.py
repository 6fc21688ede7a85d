"""An adapter is a checkpoint: wherever a model's folder may stand, and whatever the adapter is of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForImageTextToText

from orlaif.oracles.listwise import ListwiseJudge
from orlaif.policy import Policy
from orlaif.policy.hub import find_source, load_processor
from orlaif.types import PromptBatch
from tests.conftest import random_completions

LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"]}


def moved(path: str, lora: dict[str, Any] | None = None, **settings: Any) -> Policy:
    """A policy whose trained weights are not where they started."""
    policy = Policy(path, lora=LORA if lora is None else lora, dtype="float32", prefix="duplicate", **settings).load()
    move(policy)
    return policy


@torch.no_grad()
def move(policy: Policy, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.network.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    ids = torch.randint(8, 40, (1, 9), generator=torch.Generator().manual_seed(0))
    return model.eval()(input_ids=ids).logits


def same(one: Any, other: Any) -> bool:
    expected = logits(one)
    return float((logits(other) - expected).abs().max() / expected.abs().max()) < 1e-5


@pytest.fixture
def adapter(tiny_model: str, tmp_path: Path) -> tuple[Policy, str]:
    """A policy, and its export as an adapter."""
    policy = moved(tiny_model)
    policy.export(str(tmp_path / "adapter"))
    return policy, str(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("lora", "continued"),
    [
        (LORA, True),
        ({**LORA, "lora_dropout": 0.1, "task_type": "CAUSAL_LM"}, True),  # which change no weight's meaning
        (None, False),
        ({**LORA, "r": 8}, False),
        ({**LORA, "lora_alpha": 32}, False),
        ({"r": 4, "target_modules": "all-linear"}, False),
    ],
)
def test_a_policy_starts_where_its_adapter_left_off(adapter: tuple[Policy, str], lora: Any, continued: bool) -> None:
    trained, folder = adapter
    policy = Policy(folder, lora=lora, dtype="float32", prefix="duplicate").load()
    assert policy.continued is continued
    assert same(trained.network, policy.network)


@pytest.mark.parametrize("lora", [LORA, {**LORA, "r": 8}, {"r": 2, "target_modules": ["o_proj", "q_proj"]}])
def test_training_on_is_exported_on_the_first_base(
    adapter: tuple[Policy, str], lora: Any, tiny_model: str, tmp_path: Path
) -> None:
    """As an adapter of that base, whether it was trained on or another one begun, and merged."""
    policy = moved(adapter[1], lora)
    policy.export(str(tmp_path / "second"))
    about = json.loads((tmp_path / "second" / "adapter_config.json").read_text())
    assert about["base_model_name_or_path"] == str(Path(tiny_model).absolute())
    assert not same(adapter[0].network, policy.network)
    for merge in (False, True):
        policy.export(str(tmp_path / "second"), merge=merge)
        whole = AutoModelForImageTextToText.from_pretrained(tmp_path / "second", dtype=torch.float32)
        assert same(policy.network, whole)


def logps_around_a_move(policy: Policy, batch: PromptBatch) -> tuple[Tensor, Tensor]:
    """The policy's log-probs f32[P, G, T] before and after its weights move; the reference stays at those before."""
    policy.load_reference()
    completions = random_completions(policy, 5, 2, 3)
    with torch.no_grad():
        start = policy.completion_logps(batch, completions)
        assert torch.equal(policy.completion_logps(batch, completions, reference=True), start)
        move(policy)
        assert torch.equal(policy.completion_logps(batch, completions, reference=True), start)
        return start, policy.completion_logps(batch, completions)


def test_the_reference_of_a_warm_start_is_the_warm_start(adapter: tuple[Policy, str], batch: PromptBatch) -> None:
    policy = Policy(adapter[1], lora=LORA, dtype="float32").load()
    start, now = logps_around_a_move(policy, batch)
    assert not torch.allclose(now, start, atol=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": False},
        {"use_dora": True},
        {"use_rslora": True},
        {"lora_bias": True},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [9, 10]},
    ],
)
def test_the_reference_is_the_policy_before_the_first_update(
    tiny_model: str, batch: PromptBatch, settings: dict[str, Any]
) -> None:
    policy = Policy(tiny_model, lora={**LORA, **settings}, dtype="float32").load()
    logps_around_a_move(policy, batch)


@pytest.mark.parametrize(
    "start", ["pissa", "pissa_niter_4", "olora", "loftq", "corda", "eva", "lora_ga", "mica", "something new"]
)
def test_starts_that_change_the_base_are_refused(tiny_model: str, start: str) -> None:
    with pytest.raises(ValueError, match=rf"policy.lora.init_lora_weights is '{start}'.*use true"):
        Policy(tiny_model, lora={**LORA, "init_lora_weights": start}).load()


def test_trained_biases_have_no_reference(tiny_model: str) -> None:
    policy = Policy(tiny_model, lora={**LORA, "bias": "all"}).load()
    with pytest.raises(ValueError, match=r"policy.lora.bias is 'all'.*use 'none'"):
        policy.load_reference()
    with pytest.raises(ValueError, match=r"policy.lora.bias is 'all'.*nor judge"):  # the base, which they changed
        ListwiseJudge(None).bind(policy)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["lm_head", "embed_tokens"]},
        {"target_modules": ["lm_head"], "ensure_weight_tying": True},
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        {"trainable_token_indices": [9, 10, 11]},
        {"bias": "all"},
    ],
)
def test_adapters_on_tied_embeddings(tiny_model: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """Merged or not, to transformers and to a policy, the export is the policy that was trained."""
    lora = {**LORA, **settings}
    policy = moved(tiny_model, lora)
    assert policy.config.tie_word_embeddings
    # transformers 5.17 itself makes another model of such adapters; a policy, which reads them by PEFT, does not.
    old = transformers.__version__.startswith("5.17.") and {"modules_to_save", "trainable_token_indices"} & {*settings}
    for merge in (False, True):
        policy.export(str(tmp_path / "out"), merge=merge)
        if merge or not old:
            assert same(
                policy.network, AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype=torch.float32)
            )
        again = Policy(str(tmp_path / "out"), None if merge else lora, dtype="float32", prefix="duplicate").load()
        assert again.continued is not merge
        assert same(policy.network, again.network)


def test_what_peft_cannot_merge_is_refused_before_training(tiny_model: str, tmp_path: Path) -> None:
    tokens = {"r": 4, "target_modules": ["lm_head"], "trainable_token_indices": [9]}
    with pytest.raises(ValueError, match=r"trainable_token_indices is given, and target_modules has lm_head"):
        Policy(tiny_model, lora=tokens).load()
    policy = moved(tiny_model, {**LORA, "lora_bias": True})
    policy.export(str(tmp_path / "adapter"))
    with pytest.raises(ValueError, match=r"policy.lora.lora_bias is true.*merge: false"):
        policy.export(str(tmp_path / "merged"), merge=True)


def test_a_judge_may_be_an_adapter(adapter: tuple[Policy, str]) -> None:
    assert same(adapter[0].network, ListwiseJudge(adapter[1], dtype="float32", device="cpu").judge.network)


def test_a_base_is_found_beside_an_adapter_that_was_moved(
    adapter: tuple[Policy, str], tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a path relative to a folder above it, from anywhere; and its processor, where the adapter has none."""
    shutil.copytree(tiny_model, tmp_path / "moved" / "models" / "base")
    folder = tmp_path / "moved" / "runs" / "a" / "export"
    folder.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(Path(adapter[1], name), folder)
    about = json.loads((folder / "adapter_config.json").read_text())
    about["base_model_name_or_path"] = "models/base"
    (folder / "adapter_config.json").write_text(json.dumps(about))
    monkeypatch.chdir("/")
    assert find_source(str(folder)).model == str(tmp_path / "moved" / "models" / "base")
    assert load_processor(str(folder)).tokenizer.padding_side == "left"
    assert same(adapter[0].network, Policy(str(folder), dtype="float32", prefix="duplicate").network)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("/no/such/base", r"an adapter whose base model, '/no/such/base', is not there; .*base_model_name_or_path"),
        ("../nor/this", r"an adapter whose base model, '../nor/this', is not there"),
        (None, "does not name its base"),
        ("itself", r"is an adapter itself; .*--merge"),
    ],
)
def test_an_adapter_without_its_base(adapter: tuple[Policy, str], base: str | None, message: str) -> None:
    path = Path(adapter[1], "adapter_config.json")
    about = json.loads(path.read_text()) | {"base_model_name_or_path": adapter[1] if base == "itself" else base}
    path.write_text(json.dumps(about))
    with pytest.raises(ValueError, match=message) as error:
        Policy(adapter[1]).load()
    assert adapter[1] in str(error.value)


def test_a_base_on_the_hub_is_of_the_revision_it_was_trained_on(adapter: tuple[Policy, str]) -> None:
    path = Path(adapter[1], "adapter_config.json")
    about = json.loads(path.read_text()) | {"base_model_name_or_path": "someone/model", "revision": "abc123"}
    path.write_text(json.dumps(about))
    source = find_source(adapter[1])
    assert (source.model, source.revision, source.adapter) == ("someone/model", "abc123", adapter[1])


def test_a_model_and_an_adapter_in_one_folder(adapter: tuple[Policy, str], tiny_model: str) -> None:
    shutil.copytree(tiny_model, adapter[1], dirs_exist_ok=True)
    with pytest.raises(ValueError, match="holds a whole model and an adapter as well"):
        Policy(adapter[1]).load()


def test_an_engine_is_not_given_half_an_adapter(tiny_model: str) -> None:
    from orlaif.policy.lora import adapted_weights

    for settings, message in (
        ({"target_modules": ["lm_head"]}, "one matrix in this model"),
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "whole modules or tokens"),
    ):
        base = Policy(tiny_model, lora={**LORA, **settings}, prefix="duplicate").network.get_base_model()
        with pytest.raises(ValueError, match=message):
            list(adapted_weights(base))
