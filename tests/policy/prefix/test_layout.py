"""The shared prefix: its layout by hand, and its equality with the duplicated batch on whole models."""

from __future__ import annotations

import pytest
import torch

from orlaif.data.datamodule import Collator
from orlaif.data.video import UniformSampling
from orlaif.demo.shapes import ShapesDataset
from orlaif.policy import Policy
from orlaif.policy.encoding import ProcessorEncoder
from orlaif.policy.positions import completion_positions
from orlaif.policy.prefix.attention import choose_attention, flex_attention
from orlaif.policy.prefix.layout import GroupRows, group_rows
from orlaif.policy.prefix.split import split_attention
from orlaif.types import Completions, PromptBatch
from tests.conftest import make_policy, random_completions
from tests.families import FAMILIES, original_numbering, vision_tower


def test_layout_by_hand() -> None:
    """One prompt of 2 tokens behind one of padding, two completions of 2 and 1 tokens."""
    rows = group_rows(torch.tensor([[0, 1, 1]]), torch.tensor([[[True, True], [True, False]]]))
    assert rows.lay(torch.tensor([[9, 11, 12]]), torch.tensor([[[21, 22], [31, 0]]])).tolist() == [[11, 12, 21, 22, 31]]
    ahead = completion_positions(torch.tensor([[0, 0, 1]]), 2)[:, None].expand(1, 2, 2)
    assert rows.lay(torch.tensor([[0, 0, 1]]), ahead).tolist() == [[0, 1, 2, 3, 2]]
    assert rows.mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],  # the second completion sees the prompt, not the first
    ]
    # Both first tokens are predicted at the end of the prompt; a masked place points there as well.
    assert rows.predict.tolist() == [[[1, 2], [1, 1]]]


def test_groups_are_packed_into_rows_by_hand() -> None:
    """Groups of 5, 2 and 3 tokens: rows of 5, and one row of 10 without padding."""
    prompts = torch.tensor([[1, 1, 1], [0, 0, 1], [0, 1, 1]])
    completions = torch.tensor([[[1, 1]], [[1, 0]], [[1, 0]]]).bool()
    values = torch.tensor([[1, 2, 3], [0, 0, 4], [0, 5, 6]]), torch.tensor([[[11, 12]], [[13, 0]], [[14, 0]]])
    rows = group_rows(prompts, completions)
    assert rows.lay(*values, padding=-7).tolist() == [[1, 2, 3, 11, 12], [4, 13, 5, 6, 14]]
    assert rows.group.tolist() == [[0, 0, 0, 0, 0], [1, 1, 2, 2, 2]]
    assert rows.mask[1, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],  # a group does not see the one before it
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 1],
    ]
    assert rows.predict.tolist() == [[[2, 3]], [[5, 5]], [[8, 8]]]
    one = group_rows(prompts, completions, one_row=True)
    assert one.lay(*values).tolist() == [[1, 2, 3, 11, 12, 4, 13, 5, 6, 14]]
    assert one.predict.tolist() == [[[2, 3]], [[5, 5]], [[8, 8]]]


def test_padding_at_the_end_of_a_row_sees_padding_only() -> None:
    rows = group_rows(torch.tensor([[1, 1], [0, 1]]), torch.tensor([[[1, 1]], [[1, 0]]]).bool())
    assert rows.source.tolist() == [[0, 1, 4, 5], [3, 6, -1, -1]]
    assert rows.mask[1, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert rows.num_tokens == 6


def test_equal_groups_keep_a_row_each() -> None:
    """So that attention works on all of them in one call."""
    rows = group_rows(torch.ones(3, 4), torch.ones(3, 2, 5).bool(), one_row=True)
    assert rows.shape == (3, 14)


def layout(kind: str, p: int = 3, s: int = 40, g: int = 4, t: int = 6) -> GroupRows:
    generator = torch.Generator().manual_seed(3)
    prompts, lengths = torch.full((p,), s), torch.full((p, g), t)
    if kind != "equal":
        prompts = torch.randint(2, s + 1, (p,), generator=generator)
        lengths = torch.randint(0, t + 1, (p, g), generator=generator)
    if kind == "empty":
        lengths[1] = 0
    mask = torch.arange(s) >= s - prompts[:, None]
    return group_rows(mask, torch.arange(t) < lengths[..., None], one_row=kind != "rows")


def attention_inputs(
    rows: GroupRows, heads: int, key_heads: int, dtype: torch.dtype, size: int = 16
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    r, length = rows.shape
    # As transformers hands them over: transposed views.
    return [
        torch.randn(r, length, h, size, dtype=torch.float64, generator=generator).to(dtype).transpose(1, 2)
        for h in (heads, key_heads, key_heads)
    ]


def by_mask(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: GroupRows, scale: float) -> torch.Tensor:
    n = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(n, 1).mT * scale
    return scores.masked_fill(~rows.mask, -torch.inf).softmax(-1) @ value.repeat_interleave(n, 1)


@pytest.mark.parametrize("kind", ["equal", "rows", "ragged", "empty"])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6), (torch.bfloat16, 4e-2)]
)
def test_split_attention_equals_the_mask(
    kind: str, heads: int, key_heads: int, dtype: torch.dtype, tolerance: float
) -> None:
    """Output and gradients against the plain formula in float64, of inputs rounded to ``dtype``."""
    rows = layout(kind)
    real = (rows.source >= 0)[:, None, :, None]
    inputs = attention_inputs(rows, heads, key_heads, dtype)
    weight = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * real
    results = []
    for function, kind_of in ((by_mask, torch.float64), (split_attention, dtype)):
        leaves = [x.detach().to(kind_of).requires_grad_() for x in inputs]
        out = function(*leaves, rows, 0.4)
        (out * weight.to(kind_of)).sum().backward()
        results.append([out.detach().double() * real, *(x.grad.double() for x in leaves)])
    assert bool((split_attention(*inputs, rows, 0.4).masked_select(~real) == 0).all())
    for ours, expected in zip(results[1], results[0], strict=True):
        assert float(expected.abs().max()) > 0.1
        assert float((ours - expected).abs().max()) <= tolerance * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("kind", ["equal", "rows", "ragged"])
def test_flex_attention_equals_the_mask(kind: str) -> None:
    """Forward only: FlexAttention has no backward pass on a CPU."""
    rows = layout(kind)
    real = (rows.source >= 0)[:, None, :, None]
    inputs = attention_inputs(rows, 4, 2, torch.float32)
    ours, expected = (f(*inputs, rows, 0.4) * real for f in (flex_attention, by_mask))
    torch.testing.assert_close(ours, expected, atol=2e-6, rtol=0)


def test_split_gradients_by_finite_differences() -> None:
    rows = layout("ragged", p=2, s=5, g=2, t=3)
    inputs = [x.requires_grad_() for x in attention_inputs(rows, 2, 1, torch.float64)]
    torch.autograd.gradcheck(lambda *x: split_attention(*x, rows, 0.4), inputs)


def test_the_choice_by_size() -> None:
    def choose(p: int, s: int, names: tuple[str, ...], kind: str = "cpu") -> str:
        masks = torch.ones(p, s), torch.ones(p, 8, 32).bool()
        return choose_attention(*masks, names, torch.device(kind), torch.float32)

    assert choose(8, 384 - 8 * 32 - 1, ("mask", "split")) == "mask"
    assert choose(8, 384 - 8 * 32, ("mask", "split")) == "split"
    assert choose(1, 8192, ("mask", "split")) == "split"
    assert choose(1, 8192, ("mask",)) == "mask"
    assert choose(8, 60, ("split",)) == "split"
    assert choose(1, 8192, ("mask", "split"), "cuda") == "mask"  # no flash attention in 32 bits there
    with pytest.raises(ValueError, match=r"policy.prefix_attention is 'split', .* this is cuda in float32: use 'auto'"):
        choose(1, 8192, ("split",), "cuda")


def test_completions_start_behind_the_largest_of_three_coordinates() -> None:
    positions = torch.tensor([[[0, 1, 1]], [[0, 1, 4]], [[0, 1, 2]]])
    assert completion_positions(positions, 2).tolist() == [[[5, 6]]] * 3


@pytest.fixture(scope="module", params=list(FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp(request.param))
    FAMILIES[request.param](path)
    return path


def the_batch(policy: Policy, shapes: ShapesDataset) -> PromptBatch:
    return Collator(ProcessorEncoder(policy.processor), UniformSampling(8))([shapes[i] for i in range(5)]).batch


def to_double(batch: PromptBatch) -> PromptBatch:
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in batch.mm_inputs.items()}
    return PromptBatch(
        prompts=batch.prompts,
        clips=batch.clips,
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        mm_inputs=inputs,
    )


@pytest.mark.parametrize(("dtype", "tolerance", "grad_tolerance"), [("float64", 1e-6, 1e-6), ("float32", 1e-5, 1e-5)])
@pytest.mark.parametrize("attention", ["mask", "split"])
def test_shared_equals_duplicated(
    folder: str, shapes: ShapesDataset, attention: str, dtype: str, tolerance: float, grad_tolerance: float
) -> None:
    """Log-probs, and the gradient of a weighted sum of them, through prompt and vision tower."""
    results = {}
    for prefix in ("shared", "duplicate"):
        policy = make_policy(folder, dtype, prefix=prefix, prefix_attention=attention if prefix == "shared" else "auto")
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
    torch.testing.assert_close(shared[0], duplicate[0], atol=tolerance, rtol=1e-6)
    assert shared[1].keys() == duplicate[1].keys()
    assert any("vis" in name for name in shared[1])
    largest = max(float(g.abs().max()) for g in duplicate[1].values())
    for name, grad in shared[1].items():
        assert float((grad - duplicate[1][name]).abs().max()) <= grad_tolerance * largest, name


def test_duplicated_equals_the_model_left_to_itself(folder: str, shapes: ShapesDataset) -> None:
    """Against transformers' own forward: its own positions, a plain mask, one completion alone."""
    policy = make_policy(folder, prefix="duplicate")
    batch = Collator(ProcessorEncoder(policy.processor), UniformSampling(8))([shapes[3]]).batch
    completions = random_completions(policy, 1, 2, 4)
    logps = policy.completion_logps(batch, completions)
    for g in range(2):
        n = int(completions.lengths[0, g])
        own = completions.ids[0, g, :n]
        inputs = dict(batch.mm_inputs)
        if "mm_token_type_ids" in inputs:
            inputs["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, n))
        ids = torch.cat([batch.input_ids[0], own])[None]
        with torch.no_grad(), original_numbering(policy):
            logits = policy.network(
                input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **inputs
            ).logits[0]
        logits[:, policy.placeholder_ids] = -torch.inf
        expected = logits[-n - 1 : -1].log_softmax(-1).gather(-1, own[:, None])[:, 0]
        torch.testing.assert_close(logps[0, g, :n].detach(), expected, atol=1e-5, rtol=1e-5)


def count(policy: Policy) -> dict[str, int]:
    """Calls of the vision tower and pixels it has seen, and logits made, from now on."""
    seen = {"calls": 0, "pixels": 0, "logits": 0}

    def vision(module: object, args: tuple, kwargs: dict) -> None:
        seen["calls"] += 1
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor) and x.is_floating_point()]
        seen["pixels"] += tensors[0].numel()

    def head(module: object, args: tuple, output: torch.Tensor) -> None:
        seen["logits"] += output[..., 0].numel()

    vision_tower(policy.network).register_forward_pre_hook(vision, with_kwargs=True)
    policy.network.lm_head.register_forward_hook(head)
    return seen


@pytest.mark.parametrize("attention", ["mask", "split"])
def test_the_group_pays_once_and_only_completions_get_logits(
    folder: str, shapes: ShapesDataset, attention: str
) -> None:
    policy = make_policy(folder, prefix="shared", prefix_attention=attention)
    batch = the_batch(policy, shapes)
    seen = count(policy)
    policy.completion_logits(batch, random_completions(policy, 5, 6, 4))
    pixels = next(value for name, value in batch.mm_inputs.items() if name.startswith("pixel_values"))
    assert seen == {"calls": 1, "pixels": pixels.numel(), "logits": 5 * 6 * 4}


@pytest.mark.parametrize("prefix", ["shared", "duplicate"])
def test_hidden_states_and_head_make_the_logits(folder: str, shapes: ShapesDataset, prefix: str) -> None:
    """What a fused head starts from, for every family that is said to allow one."""
    policy = make_policy(folder, prefix=prefix)
    batch, completions = the_batch(policy, shapes), random_completions(policy, 5, 3, 4)
    hidden, head = policy.completion_hidden(batch, completions)
    logits = hidden @ head["weight"].T + head["bias"]
    assert head["softcap"] is None
    torch.testing.assert_close(logits, policy.completion_logits(batch, completions), atol=1e-5, rtol=1e-5)


def test_eager_attention_equals_duplicated(folder: str, shapes: ShapesDataset) -> None:
    """Its mask is added to the scores, not chosen from them."""
    logps = []
    for prefix in ("shared", "duplicate"):
        policy = make_policy(folder, prefix=prefix, attn_implementation="eager")
        logps.append(policy.completion_logps(the_batch(policy, shapes), random_completions(policy, 5, 3, 4)).detach())
    torch.testing.assert_close(*logps, atol=1e-5, rtol=0)


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
