"""What only a GPU can show of the shared prefix: flash attention in both directions, FlexAttention, CUDA graphs."""

from __future__ import annotations

import pytest
import torch

from benchmarks.step import TextPolicy, inputs, language_model
from orlaif.policy.prefix.attention import enable_grouping, flex_attention
from orlaif.policy.prefix.split import split_attention
from orlaif.rollout import SamplingParams, generate
from tests.policy.prefix.test_layout import attention_inputs, by_mask, layout

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("kind", ["equal", "rows", "ragged", "empty"])
@pytest.mark.parametrize("function", [split_attention, flex_attention])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_attention_and_gradients_on_cuda(kind: str, function: object, dtype: torch.dtype) -> None:
    """Against the formula in float64, of inputs rounded to ``dtype``; prompts of several blocks."""
    rows = layout(kind, p=3, s=300, g=4, t=40).to("cuda")
    real = (rows.source >= 0)[:, None, :, None]
    given = [x.cuda() for x in attention_inputs(rows, 8, 2, dtype, size=64)]
    weight = torch.randn(given[0].shape, dtype=torch.float64, device="cuda") * real
    results = []
    for attend, kind_of in ((by_mask, torch.float64), (function, dtype)):
        leaves = [x.detach().to(kind_of).requires_grad_() for x in given]
        out = attend(*leaves, rows, 0.2)  # type: ignore[operator]
        (out * weight.to(kind_of)).sum().backward()
        results.append([out.detach().double() * real, *(x.grad.double() for x in leaves)])
    for ours, expected in zip(results[1], results[0], strict=True):
        assert float((ours - expected).norm() / expected.norm()) <= 2e-2


def test_flex_attention_compiles_once_for_all_lengths() -> None:
    torch._dynamo.reset()
    graphs = []
    for s in (200, 333, 512, 777, 1024):
        rows = layout("ragged", p=2, s=s, g=4, t=40).to("cuda")
        given = [x.cuda().requires_grad_() for x in attention_inputs(rows, 8, 2, torch.bfloat16, size=64)]
        flex_attention(*given, rows, 0.2).sum().backward()
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[-1] == graphs[1]


def test_a_rollout_by_cuda_graphs_gives_the_same() -> None:
    """In bf16, so that a draw may fall the other way: nearly all first tokens, and log-probs while the same."""
    model = language_model("cuda").eval()
    enable_grouping(model)
    policy = TextPolicy(model, "shared", ("mask", "split"))
    batch, _, _ = inputs((700, 32, 8), "cuda", model.config.vocab_size)
    sampling = SamplingParams(max_new_tokens=32)
    plain = generate(policy, batch, 8, sampling, torch.Generator("cuda").manual_seed(0))
    for _ in range(3):  # warm-up, recording, replay
        graphs = generate(policy, batch, 8, sampling, torch.Generator("cuda").manual_seed(0), compile_decode=True)
    same = (graphs.ids == plain.ids).cumprod(-1).bool()
    assert float(same[..., :4].float().mean()) > 0.9
    assert graphs.logps is not None
    assert plain.logps is not None
    torch.testing.assert_close(graphs.logps[same], plain.logps[same], atol=0.1, rtol=0)
