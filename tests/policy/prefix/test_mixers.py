"""Recurrent layers inside rows: log-probs and gradients of completions alone, however rows are laid and models run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.models.qwen3_5 import modeling_qwen3_5

from orlaif.demo.shapes import ShapesDataset
from orlaif.policy import Policy
from orlaif.policy.prefix.layout import group_rows
from orlaif.policy.prefix.mixers import cut
from orlaif.rollout import SamplingParams, generate
from orlaif.types import Completions
from tests.conftest import random_completions
from tests.families import HYBRIDS, older_transformers
from tests.policy.prefix.truth import differences, encoded, given, gradients, loaded, pair, truth, written

FIVE = range(5)


@pytest.fixture(scope="module", params=list(HYBRIDS))
def hybrid(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return written(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def qwen3_5(tmp_path_factory: pytest.TempPathFactory) -> str:
    return written("qwen3_5", tmp_path_factory)


def test_rows_are_cut_and_laid_back_by_hand() -> None:
    """Two groups in rows of 7: prompts of 1 and 3 tokens, completions of 2 and 1, 1 and 0."""
    prompts = torch.tensor([[0, 0, 1], [1, 1, 1]])
    rows = group_rows(prompts, torch.tensor([[[1, 1], [1, 0]], [[1, 0], [0, 0]]]).bool(), one_row=True)
    parts = cut(rows)
    x = rows.lay(torch.tensor([[0, 0, 1], [2, 3, 4]]), torch.tensor([[[11, 12], [21, 0]], [[31, 0], [0, 0]]]))
    x = x.float()[..., None]
    assert x.flatten().tolist() == [1, 11, 12, 21, 2, 3, 4, 31]
    assert parts.prompts_of(x)[..., 0].tolist() == [[0, 0, 1], [2, 3, 4]]
    assert parts.real is not None
    assert parts.real.tolist() == [[False, False, True], [True, True, True]]
    completions = parts.completions_of(x)[..., 0]
    assert completions[0].tolist() == [11, 12]
    assert [completions[1, 0], completions[2, 0]] == [21, 31]
    assert parts.owner.tolist() == [0, 0, 1, 1]
    laid = parts.lay(10 * parts.prompts_of(x), 100 * parts.completions_of(x), rows.shape)
    assert laid.flatten().tolist() == [10, 1100, 1200, 2100, 20, 30, 40, 3100]


@pytest.mark.parametrize("attention", ["mask", "split"])
def test_a_row_is_its_completions_alone(hybrid: str, shapes: ShapesDataset, attention: str) -> None:
    """Ragged prompts and completions, packed by ``mask`` into rows of the longest group and by ``split`` into one."""
    shared, plain = pair(hybrid, prefix_attention=attention)
    completions = random_completions(plain, 5, 3, 6)
    theirs = truth(plain, shapes, FIVE, completions)
    assert float(theirs[0].min()) < -5  # far from uniform, so this is no accident
    logps, grads = differences(given(shared, shapes, FIVE, completions), theirs)
    # A model's own forward in transformers 5.17 is 4e-5 from what float64 gives, and the row 4e-6.
    limit = 1e-4 if older_transformers() else 1e-5
    assert logps <= limit
    assert grads <= limit


def delta_rule(query: Any, key: Any, value: Any, g: Any, beta: Any, initial_state: Any = None, **_: Any) -> Any:
    """The gated delta rule token by token, in the dtype of its inputs: transformers' computes in float32."""
    repeats = value.shape[2] // key.shape[2]
    query, key = (x.repeat_interleave(repeats, 2) for x in (query, key))
    query, key = (x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6) for x in (query, key))
    state = query.new_zeros(len(query), query.shape[2], query.shape[3], value.shape[3])
    state = state if initial_state is None else initial_state
    outputs = []
    for i in range(query.shape[1]):
        state = state * g[:, i, :, None, None].exp()
        new = (value[:, i] - (state * key[:, i, :, :, None]).sum(-2)) * beta[:, i, :, None]
        state = state + key[:, i, :, :, None] * new[:, :, None]
        outputs.append((state * query[:, i, :, :, None]).sum(-2) * query.shape[-1] ** -0.5)
    return torch.stack(outputs, 1), state


def test_in_float64(qwen3_5: str, shapes: ShapesDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling_qwen3_5, "torch_chunk_gated_delta_rule", delta_rule)
    shared, plain = pair(qwen3_5, "float64")
    completions = random_completions(plain, 3, 3, 4)
    theirs = truth(plain, shapes, range(3), completions)
    logps, grads = differences(given(shared, shapes, range(3), completions), theirs)
    assert logps <= 1e-6
    assert grads <= 1e-6


def test_with_recomputation_and_an_adapter(hybrid: str, shapes: ShapesDataset) -> None:
    """A second forward pass, of other rows, lies between a forward pass and its backward pass."""
    adapter = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False, "lora_alpha": 1}
    shared = loaded(hybrid, prefix="shared", lora=adapter, gradient_checkpointing=True)
    plain = loaded(hybrid, prefix="duplicate", lora=adapter)
    completions = random_completions(plain, 3, 2, 4)
    theirs = truth(plain, shapes, range(3), completions)
    logps = shared.completion_logps(encoded(shared, shapes, range(3)), completions)
    shared.completion_logps(encoded(shared, shapes, [4]), random_completions(shared, 1, 3, 5))
    off, grads = differences((logps.detach(), gradients(shared, logps)), theirs)
    assert any("lora_A" in name for name in theirs[1])
    assert off <= 1e-5
    assert grads <= 1e-5


def test_under_autocast_it_is_as_exact_as_the_duplicated_batch(hybrid: str, shapes: ShapesDataset) -> None:
    shared, plain = pair(hybrid)
    completions = random_completions(plain, 5, 3, 4)
    exact = truth(plain, shapes, FIVE, completions)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (given(policy, shapes, FIVE, completions) for policy in (shared, plain))
    errors = [(given_logps - exact[0]).norm() / exact[0].norm() for given_logps, _ in (ours, theirs)]
    assert 0 < errors[0] <= 1.5 * errors[1] < 0.2


@pytest.mark.parametrize("t", [1, 2])
def test_short_and_empty_completions(hybrid: str, shapes: ShapesDataset, t: int) -> None:
    """One token is what layers take for decoding, where they write their state in place."""
    shared, plain = pair(hybrid)
    drawn = random_completions(plain, 2, 3, t)
    mask = drawn.mask.clone()
    mask[1, 2] = False
    completions = Completions(ids=drawn.ids, mask=mask, texts=drawn.texts)
    batches = [encoded(policy, shapes, [1, 3]) for policy in (shared, plain)]
    logps = [
        policy.completion_logps(batch, completions) for policy, batch in zip((shared, plain), batches, strict=True)
    ]
    torch.testing.assert_close(logps[0], logps[1], atol=1e-5, rtol=0)
    assert bool((logps[0][1, 2] == 0).all())
    logps[0].sum().backward()


def test_no_completion_sees_another(hybrid: str, shapes: ShapesDataset) -> None:
    policy = loaded(hybrid, prefix="shared")
    batch = encoded(policy, shapes, [0, 1])
    first = random_completions(policy, 2, 3, 4)
    ids = first.ids.clone()
    ids[:, 0] = ids[:, 0].roll(1, -1)
    other = Completions(ids=ids, mask=first.mask, texts=first.texts)
    with torch.no_grad():
        a, b = (policy.completion_logps(batch, completions) for completions in (first, other))
    assert not torch.equal(a[:, 0], b[:, 0])
    assert torch.equal(a[:, 1:], b[:, 1:])


def test_a_copy_of_the_model_runs_its_own_layers(qwen3_5: str, shapes: ShapesDataset) -> None:
    """As the frozen reference of full fine-tuning is one."""
    policy = loaded(qwen3_5, prefix="shared")
    policy.load_reference()
    batch, completions = encoded(policy, shapes, [0, 1]), random_completions(policy, 2, 3, 4)
    with torch.no_grad():
        before = policy.completion_logps(batch, completions)
        for parameter in policy.network.parameters():
            parameter.mul_(0.5)
        reference = policy.completion_logps(batch, completions, reference=True)
    assert torch.equal(reference, before)
    assert not torch.equal(policy.completion_logps(batch, completions), before)


def test_a_rollout_samples_what_is_trained(hybrid: str, shapes: ShapesDataset) -> None:
    policy = loaded(hybrid)
    assert policy.layout == "shared"
    batch = encoded(policy, shapes, FIVE)
    completions = generate(policy, batch, 3, SamplingParams(max_new_tokens=5), torch.Generator().manual_seed(0))
    with torch.no_grad():
        again = policy.completion_logps(batch, completions)
    assert completions.logps is not None
    torch.testing.assert_close(completions.logps, again, atol=2e-4, rtol=0)


def test_a_model_without_states_is_left_as_it_is(tiny_model: str) -> None:
    policy = Policy(tiny_model, dtype="float32").load()
    assert not any("forward" in vars(module) for module in policy.network.modules())


def test_layers_with_a_state_are_found_by_what_they_write(hybrid: str) -> None:
    policy = Policy(hybrid, dtype="float32").load()
    config = policy.config.get_text_config(decoder=True)
    found = [module.orlaif_mixer.layer for module in policy.network.modules() if hasattr(module, "orlaif_mixer")]
    assert found == [i for i, kind in enumerate(config.layer_types) if kind in ("linear_attention", "conv")]
