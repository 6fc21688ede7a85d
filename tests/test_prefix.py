"""The shared prefix: its layout by hand, and its equality with the duplicated batch on whole models."""

from __future__ import annotations

import pytest
import torch

from orlaif.data.datamodule import Collator
from orlaif.data.shapes import ShapesDataset
from orlaif.data.video import UniformSampling
from orlaif.policy import SHARED_PREFIX_FAMILIES, Policy
from orlaif.prefix import completion_positions, group_row
from orlaif.types import Completions, PromptBatch
from tests.conftest import make_policy, random_completions
from tests.families import FAMILIES


def test_layout_by_hand() -> None:
    """One prompt of 2 tokens behind one of padding, two completions of 2 and 1 tokens."""
    row = group_row(
        torch.tensor([[9, 11, 12]]),
        torch.tensor([[0, 1, 1]]),
        torch.tensor([[0, 0, 1]]),
        torch.tensor([[[21, 22], [31, 0]]]),
        torch.tensor([[[True, True], [True, False]]]),
    )
    assert row.input_ids.tolist() == [[9, 11, 12, 21, 22, 31, 0]]
    assert row.position_ids.tolist() == [[0, 0, 1, 2, 3, 2, 3]]
    assert row.attention_mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],  # padding sees itself
        [0, 1, 0, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 1, 0, 0],
        [0, 1, 1, 0, 0, 1, 0],  # the second completion sees the prompt, not the first
        [0, 1, 1, 0, 0, 1, 1],
    ]
    assert row.keep.tolist() == [2, 3, 5]  # end of the prompt, then every token but the last of each completion
    assert row.pick.tolist() == [[0, 1], [0, 2]]


def test_completions_start_behind_the_largest_of_three_coordinates() -> None:
    positions = torch.tensor([[[0, 1, 1]], [[0, 1, 4]], [[0, 1, 2]]])
    assert completion_positions(positions, 2).tolist() == [[[5, 6]]] * 3


@pytest.fixture(scope="module", params=list(FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp(request.param))
    FAMILIES[request.param](path)
    return path


def the_batch(policy: Policy, shapes: ShapesDataset) -> PromptBatch:
    return Collator(policy.processor, UniformSampling(8))([shapes[i] for i in range(5)])


def to_double(batch: PromptBatch) -> PromptBatch:
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in batch.mm_inputs.items()}
    return PromptBatch(
        prompts=batch.prompts,
        clips=batch.clips,
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        mm_inputs=inputs,
    )


def test_every_family_said_to_be_exact_is_tested() -> None:
    assert set(SHARED_PREFIX_FAMILIES) <= set(FAMILIES)


@pytest.mark.parametrize(("dtype", "tolerance", "grad_tolerance"), [("float64", 1e-6, 1e-6), ("float32", 1e-5, 1e-5)])
def test_shared_equals_duplicated(
    folder: str, shapes: ShapesDataset, dtype: str, tolerance: float, grad_tolerance: float
) -> None:
    """Log-probs, and the gradient of a weighted sum of them, through prompt and vision tower."""
    results = {}
    for prefix in ("shared", "duplicate"):
        policy = make_policy(folder, dtype, prefix=prefix)
        batch = the_batch(policy, shapes)
        assert batch.attention_mask.sum(-1).unique().numel() > 1  # prompts of different lengths
        batch = to_double(batch) if dtype == "float64" else batch
        completions = random_completions(policy, 5, 3, 4)
        logps = policy.completion_logps(batch, completions)
        (logps * torch.linspace(-1, 1, logps.numel()).view_as(logps)).sum().backward()
        grads = {name: p.grad for name, p in policy.network.named_parameters() if p.grad is not None}
        results[prefix] = (logps.detach(), grads)
    shared, duplicate = results["shared"], results["duplicate"]
    assert float(shared[0].min()) < -5  # the model is far from uniform, so this is no accident
    torch.testing.assert_close(shared[0], duplicate[0], atol=tolerance, rtol=0)
    assert shared[1].keys() == duplicate[1].keys()
    assert any("visual" in name for name in shared[1])
    largest = max(float(g.abs().max()) for g in duplicate[1].values())
    for name, grad in shared[1].items():
        assert float((grad - duplicate[1][name]).abs().max()) <= grad_tolerance * largest, name


def test_duplicated_equals_the_model_left_to_itself(folder: str, shapes: ShapesDataset) -> None:
    """Against transformers' own forward: its own positions, a plain mask, one completion alone."""
    policy = make_policy(folder, prefix="duplicate")
    batch = Collator(policy.processor, UniformSampling(8))([shapes[3]])
    completions = random_completions(policy, 1, 2, 4)
    logps = policy.completion_logps(batch, completions)
    for g in range(2):
        n = int(completions.lengths[0, g])
        own = completions.ids[0, g, :n]
        inputs = dict(batch.mm_inputs)
        inputs["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, n))
        ids = torch.cat([batch.input_ids[0], own])[None]
        with torch.no_grad():
            logits = policy.network(
                input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **inputs
            ).logits[0]
        logits[:, policy.placeholder_ids] = -torch.inf
        expected = logits[-n - 1 : -1].log_softmax(-1).gather(-1, own[:, None])[:, 0]
        torch.testing.assert_close(logps[0, g, :n].detach(), expected, atol=1e-5, rtol=1e-5)


def test_the_group_pays_once_and_only_completions_get_logits(folder: str, shapes: ShapesDataset) -> None:
    policy = make_policy(folder, prefix="shared")
    batch = the_batch(policy, shapes)
    seen = {"frames": 0, "calls": 0, "logits": 0}

    def vision(module: object, args: tuple, kwargs: dict, output: object) -> None:
        seen["calls"] += 1
        seen["frames"] += int((kwargs["grid_thw"] if "grid_thw" in kwargs else args[1])[:, 0].sum())

    def head(module: object, args: tuple, output: torch.Tensor) -> None:
        seen["logits"] += output[..., 0].numel()

    policy.network.model.visual.register_forward_hook(vision, with_kwargs=True)
    policy.network.lm_head.register_forward_hook(head)
    policy.completion_logits(batch, random_completions(policy, 5, 6, 4))
    assert seen == {
        "frames": 5 * 4,
        "calls": 1,
        "logits": 5 * (1 + 6 * 3),
    }  # 8 frames in 4 pairs; the first token is shared


def test_one_token_completions(folder: str, shapes: ShapesDataset) -> None:
    completions = {}
    for prefix in ("shared", "duplicate"):
        policy = make_policy(folder, prefix=prefix)
        batch = the_batch(policy, shapes)
        completions[prefix] = policy.completion_logps(batch, random_completions(policy, 5, 2, 1)).detach()
    torch.testing.assert_close(completions["shared"], completions["duplicate"], atol=1e-5, rtol=0)


def test_an_empty_completion_changes_nothing(folder: str, shapes: ShapesDataset) -> None:
    policy = make_policy(folder, prefix="shared")
    batch = the_batch(policy, shapes)
    full = random_completions(policy, 5, 3, 4)
    mask = full.mask.clone()
    mask[1, 2] = False
    holed = Completions(ids=full.ids, mask=mask, texts=full.texts)
    a, b = (policy.completion_logps(batch, c).detach() for c in (full, holed))
    assert bool((b[1, 2] == 0).all())
    torch.testing.assert_close(a.masked_fill(~mask, 0.0), b, atol=1e-6, rtol=0)
