"""A shared prefix under everything a run may add: LoRA, checkpointing, bf16, accumulation, microbatches."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from orlaif.data.datamodule import Collator
from orlaif.data.video import UniformSampling
from orlaif.demo.shapes import ShapesDataset
from orlaif.losses import GRPORankLoss
from orlaif.policy import Policy
from orlaif.policy.encoding import ProcessorEncoder
from orlaif.rollout import Rollout, SamplingParams, generate
from tests.conftest import random_completions
from tests.families import FAMILIES, skip_unless_it_mixes, vision_tower
from tests.training.test_rlaif import Recorder, data, rlaif, trainer

LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
STEPS = 2


def run(
    folder: str, root: str, path: Path, *, policy: dict[str, Any], accumulate: int = 1, **settings: Any
) -> tuple[Recorder, Any]:
    """Two optimizer steps on groups of 4 behind 8 prompts."""
    torch.manual_seed(0)  # PEFT draws the adapter's first weights
    recorder = Recorder()
    module = rlaif(
        folder,
        rollout=Rollout(group_size=4, sampling=SamplingParams(max_new_tokens=4, temperature=1.5)),
        optimizer=lambda params: torch.optim.SGD(params, lr=0.1),
        **settings,
    )
    module.policy = Policy(folder, **{"dtype": "float32", **policy})
    trainer(path, max_steps=STEPS, accumulate_grad_batches=accumulate, callbacks=[recorder]).fit(
        module, data(root, 8 // accumulate)
    )
    return recorder, module


def compare(one: Recorder, two: Recorder, tolerance: float) -> None:
    largest = max(grad.abs().max().item() for step in one.grads for grad in step.values())
    assert largest > 0
    assert len(one.grads) == len(two.grads) == STEPS
    for a, b in zip(one.grads, two.grads, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert (a[name] - b[name]).abs().max().item() <= tolerance * largest, name
    for a_metrics, b_metrics in zip(one.metrics, two.metrics, strict=True):
        assert a_metrics.keys() == b_metrics.keys()
        for name, value in a_metrics.items():
            if not name.startswith("time/"):
                assert b_metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name


@pytest.mark.parametrize(("lora", "checkpointing"), itertools.product([None, LORA], [False, True]))
@pytest.mark.parametrize("attention", ["mask", "split"])
def test_shared_trains_as_duplicated(
    tiny_model: str, data_root: str, tmp_path: Path, attention: str, lora: Any, checkpointing: bool
) -> None:
    common = {"lora": lora, "gradient_checkpointing": checkpointing}
    duplicate, _ = run(tiny_model, data_root, tmp_path, policy={"prefix": "duplicate", **common}, accumulate=2)
    policy = {"prefix": "shared", "prefix_attention": attention, **common}
    shared, _ = run(tiny_model, data_root, tmp_path, policy=policy, accumulate=2)
    # As in test_module: of LoRA's gradients little is left after the group's advantages cancel.
    compare(duplicate, shared, 1e-4 if lora is None else 5e-4)


@pytest.mark.parametrize("lora", [None, LORA])
def test_a_fork_trains_as_duplicated(tiny_model: str, data_root: str, tmp_path: Path, lora: Any) -> None:
    duplicate, _ = run(tiny_model, data_root, tmp_path, policy={"prefix": "duplicate", "lora": lora})
    forked, module = run(tiny_model, data_root, tmp_path, policy={"prefix": "fork", "lora": lora})
    compare(duplicate, forked, 1e-4 if lora is None else 5e-4)
    assert module.prompt_cost.endswith("1 pass of up to 4 of 4 completions behind one prompt")


@pytest.mark.parametrize("size", [1, 3, 4, 9])
@pytest.mark.parametrize(("accumulate", "fused_head"), [(1, False), (2, True)])
def test_microbatches_change_nothing(
    tiny_model: str, data_root: str, tmp_path: Path, size: int, accumulate: int, fused_head: bool
) -> None:
    """Gradients, metrics and steps, whether the size divides the group or exceeds it."""
    loss = GRPORankLoss(kl_coef=0.05, entropy_coef=0.01, fused_head=fused_head)
    whole, _ = run(tiny_model, data_root, tmp_path, policy={}, accumulate=accumulate, loss=loss)
    parts, _ = run(tiny_model, data_root, tmp_path, policy={}, accumulate=accumulate, loss=loss, microbatch=size)
    compare(whole, parts, 1e-4)


def test_a_prompt_is_paid_once_per_microbatch(tiny_model: str, data_root: str, tmp_path: Path) -> None:
    """Group of 4 in parts of 3: the vision tower runs for the rollout, and twice with gradient; no reference here."""
    calls = {"vision": 0}

    class Counted(Policy):
        def load(self, device: Any = None, later: bool = False) -> Policy:
            new = self.model is None
            super().load(device, later)
            if new:
                tower = vision_tower(self.network)
                tower.register_forward_hook(lambda *_: calls.__setitem__("vision", calls["vision"] + 1))
            return self

    module = rlaif(tiny_model, microbatch=3, loss=GRPORankLoss())
    module.policy = Counted(tiny_model, dtype="float32")
    trainer(tmp_path, max_steps=1).fit(module, data(data_root, 4))
    assert calls["vision"] == 3
    assert module.prompt_cost == (
        "each prompt goes once through the rollout and 2 x through the policy: "
        "2 passes of up to 3 of 4 completions behind one prompt"
    )


@pytest.mark.parametrize(("microbatch", "said"), [(None, "1 pass of up to 3 of 5"), (2, "2 passes of up to 2 of 5")])
def test_processes_that_share_a_prompt_have_a_part_of_its_group_each(
    tiny_model: str, microbatch: int | None, said: str
) -> None:
    module = rlaif(tiny_model)
    module.policy = Policy(tiny_model, dtype="float32", sequence_parallel=2)
    passes, in_words = module.passes(5, microbatch)
    assert passes == int(said[0])
    assert in_words == f"{said} completions behind one prompt, on each of the 2 processes that share it"


def test_what_duplication_costs_is_said(tiny_model: str) -> None:
    module = rlaif(tiny_model)
    module.policy = Policy(tiny_model, dtype="float32", prefix="duplicate").load()
    assert module.prompt_cost == (
        "each prompt goes once through the rollout and 4 x through the policy and 4 x through the reference: "
        "prefix: duplicate pays for it with each of 4 completions"
    )


def test_flex_attention_is_refused_where_it_cannot_train(tiny_model: str, data_root: str, tmp_path: Path) -> None:
    module = rlaif(tiny_model)
    module.policy = Policy(tiny_model, dtype="float32", prefix_attention="flex")
    with pytest.raises(ValueError, match=r"policy.prefix_attention is 'flex', which trains on CUDA only"):
        trainer(tmp_path, max_steps=1).fit(module, data(data_root, 4))


def test_a_microbatch_of_nothing_is_refused(tiny_model: str) -> None:
    with pytest.raises(ValueError, match="microbatch is 0; it must be 1 or more"):
        rlaif(tiny_model, microbatch=0)


@pytest.mark.parametrize("attention", ["mask", "split"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_mixed_precision_is_as_close_to_float32_as_the_duplicated_batch(
    family: str, attention: str, shapes: ShapesDataset, tmp_path: Path
) -> None:
    """Under autocast, where norms leave query and key in float32 and projections leave value in bf16."""
    FAMILIES[family](str(tmp_path))

    def logps(mixed: bool, **settings: Any) -> torch.Tensor:
        policy = Policy(str(tmp_path), dtype="float32", **settings).load()
        batch = Collator(ProcessorEncoder(policy.processor), UniformSampling(8))([shapes[i] for i in range(5)]).batch
        if mixed:
            skip_unless_it_mixes(policy, batch)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            sampling = SamplingParams(max_new_tokens=4)
            sampled = generate(policy, batch, 3, sampling, torch.Generator().manual_seed(0))
            assert sampled.mask.any()
            found = policy.completion_logps(batch, random_completions(policy, 5, 3, 4))
        found.sum().backward()
        return found.detach()

    exact = logps(False, prefix="duplicate")
    duplicate = (logps(True, prefix="duplicate") - exact).abs().max()
    shared = (logps(True, prefix="shared", prefix_attention=attention) - exact).abs().max()
    assert 0 < float(duplicate) < 0.2
    assert float(shared) <= 2 * float(duplicate)


@pytest.mark.parametrize("attention", ["mask", "split"])
def test_bf16_is_as_close_to_float32_as_the_duplicated_batch(
    tiny_model: str, shapes: ShapesDataset, attention: str
) -> None:
    """Gradients of a tiny model in bf16: sharing the prompt adds no error of its own to that of the precision."""

    def gradient(dtype: str, **settings: Any) -> torch.Tensor:
        policy = Policy(tiny_model, dtype=dtype, **settings).load()
        batch = Collator(ProcessorEncoder(policy.processor), UniformSampling(8))([shapes[i] for i in range(5)]).batch
        completions = random_completions(policy, 5, 6, 4)
        logps = policy.completion_logps(batch, completions)
        (logps * torch.linspace(-1, 1, logps.numel()).view_as(logps)).sum().backward()
        return torch.cat([p.grad.float().flatten() for p in policy.network.parameters() if p.grad is not None])

    exact = gradient("float32", prefix="duplicate")
    duplicate = (gradient("bfloat16", prefix="duplicate") - exact).norm() / exact.norm()
    shared = (gradient("bfloat16", prefix="shared", prefix_attention=attention) - exact).norm() / exact.norm()
    assert 1e-3 < float(duplicate) < 0.2
    assert float(shared) <= 1.25 * float(duplicate)
