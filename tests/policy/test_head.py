"""A head fused with the loss: the same loss and gradients as logits give, with bias, scale and soft cap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from orlaif.losses import GRPORankLoss
from orlaif.policy import Policy
from orlaif.policy.encoding import ProcessorEncoder
from orlaif.policy.families import Family
from orlaif.policy.prefix.fused import Head
from orlaif.tiny import families
from orlaif.tiny import tiny_model as write
from orlaif.types import VideoPrompt
from tests.conftest import random_completions
from tests.policy.test_encoding import a_clip


class WithBias(Family):
    """Qwen3-VL's, its LM head with a bias."""

    def load(self, path: str, **options: Any) -> Any:
        model = super().load(path, **options)
        model.lm_head.bias = nn.Parameter(torch.linspace(-2, 2, model.lm_head.out_features))
        return model


class WithTrainedScale(Family):
    """Qwen3-VL's, its logits times a weight."""

    def load(self, path: str, **options: Any) -> Any:
        model = super().load(path, **options)
        model.logit_scale = nn.Parameter(torch.tensor(2.0))
        model.lm_head.register_forward_hook(lambda module, inputs, output: output * model.logit_scale)
        return model


#: Model type, family, and what the check at load must find.
HEADS = [
    ("qwen3_vl", Family, Head()),
    ("qwen3_vl", WithBias, Head()),
    ("hyperclovax_vision_v2", Family, Head(scale=2.0)),
    ("gemma4", None, Head(softcap=30.0)),
    ("muse_glimmer", Family, Head(scale=0.5, softcap=20.0)),
]


@pytest.mark.parametrize(("model_type", "family", "expected"), HEADS)
@pytest.mark.parametrize("implementation", ["torch", "triton"])
def test_a_fused_step_is_a_step(
    model_type: str, family: Any, expected: Head, implementation: str, tmp_path: Path
) -> None:
    if model_type not in families():
        pytest.skip(f"transformers {transformers.__version__} knows no {model_type}")
    folder = write(model_type, str(tmp_path))
    policy = Policy(folder, dtype="float32", family=None if family is None else family()).load()
    assert policy.choice is not None
    assert policy.choice.head == expected
    prompts = [VideoPrompt(id=q, video="clip", question=q) for q in ("what color is it ?", "what")]
    batch = ProcessorEncoder(policy.processor, family=policy.family)(prompts, [a_clip(4), a_clip(4)])
    completions = random_completions(policy, 2, 3, 4)
    ids = completions.ids.flatten(0, 1)
    tokens: dict[str, Any] = {"mask": completions.mask.flatten(0, 1), "temperature": 0.7, "normalizer": 1.0}
    tokens |= {"advantages": torch.tensor([1.0, -1.0, 0.5, -0.5, 0.25, -0.25])}
    loss = GRPORankLoss(kl_coef=0.0, entropy_coef=0.01, implementation=implementation)
    found = []
    for fused in (True, False):
        policy.network.zero_grad()
        if fused:
            hidden, head = policy.completion_hidden(batch, completions)
            total, _ = loss.of_hidden(hidden, head.pop("weight"), ids, **head, **tokens)
        else:
            total, _ = loss.of_logits(policy.completion_logits(batch, completions), ids, **tokens)
        total.backward()
        grads = {n: p.grad.clone() for n, p in policy.network.named_parameters() if p.grad is not None}
        found.append((float(total), grads))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    assert found[0][1].keys() == found[1][1].keys()
    if family is WithBias:
        assert float(found[0][1]["lm_head.bias"].abs().max()) > 0
    largest = max(float(grad.abs().max()) for grad in found[1][1].values())
    assert max(float((found[0][1][n] - g).abs().max()) for n, g in found[1][1].items()) <= 1e-5 * largest


def test_a_scale_that_is_trained_is_not_fused(tmp_path: Path) -> None:
    policy = Policy(write("qwen3_vl", str(tmp_path)), dtype="float32", family=WithTrainedScale()).load()
    prompt = VideoPrompt(id="a", video="clip", question="what")
    batch = ProcessorEncoder(policy.processor, family=policy.family)([prompt], [a_clip(4)])
    with pytest.raises(ValueError, match=r"fused_head: .*its logits depend on logit_scale behind its LM head"):
        policy.completion_hidden(batch, random_completions(policy, 1, 2, 3))
    policy.completion_logps(batch, random_completions(policy, 1, 2, 3)).sum().backward()
    assert policy.network.logit_scale.grad is not None
