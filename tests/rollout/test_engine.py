"""VLLMRollout with vLLM itself, on a CPU (``make vllm-test``): it samples from the policy of each moment, to 1e-5.

What a run logs says it at every step: ``train/sampling/sampling_logp_difference/max`` is the largest difference of a
sampled token's log-prob, trainer against engine, over all processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "ERROR"}

import pytest
import torch

from orlaif.data.collator import Collator
from orlaif.data.video import FpsSampling, UniformSampling
from orlaif.demo.shapes import ShapesDataset
from orlaif.policy import Policy
from orlaif.policy.encoding import ProcessorEncoder
from orlaif.rollout import SamplingParams, VLLMRollout
from orlaif.types import Completions, PromptBatch
from tests.processes import Job, run
from tests.rollout.engine_models import engine_model
from tests.training.test_rlaif import ByText, Recorder, data, rlaif, trainer

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300)]

LARGEST = "train/sampling/sampling_logp_difference/max"
#: Layers of the decoder alone, which vLLM's own adapters are for.
DECODER = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
ADAPTER = {"r": 4, "lora_alpha": 8, "target_modules": DECODER}


def rollout(**settings: Any) -> VLLMRollout:
    sampling = SamplingParams(max_new_tokens=6, temperature=1.3)
    return VLLMRollout(group_size=4, sampling=sampling, engine={"enforce_eager": True}, **settings)


class Bench:
    """A family's tiny checkpoint, and engines of it that tests share: each takes the weights of whoever samples."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.rollouts: dict[str, VLLMRollout] = {}

    def rollout(self, lora: Any = "merged") -> VLLMRollout:
        shared = self.rollouts.setdefault(lora, rollout(lora=lora))
        shared._weights_of = None  # of another test's policy
        return shared


@pytest.fixture(scope="module", params=["qwen3_vl", "qwen2_5_vl"])
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    made = Bench(engine_model(request.param, tmp_path_factory.mktemp(request.param)))
    yield made
    made.rollouts.clear()


def unequal(policy: Policy, shapes: ShapesDataset) -> PromptBatch:
    """Clips of 4, 8 and 6 frames, two of them segments of their videos."""
    rows = [replace(shapes[0], end_s=1.0), shapes[1], replace(shapes[2], start_s=0.5)]
    collator = Collator(ProcessorEncoder(policy.processor, family=policy.family), FpsSampling(fps=4, max_frames=8))
    return collator(rows).batch


def generators(number: int = 3) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(number)]


def difference(policy: Policy, batch: PromptBatch, sampled: Completions) -> float:
    assert sampled.logps is not None
    with torch.no_grad():
        logps = policy.completion_logps(batch, sampled, temperature=1.3)
    return float(((logps - sampled.logps) * sampled.mask).abs().max())


def test_the_first_step(bench: Bench, shapes: ShapesDataset) -> None:
    policy = Policy(bench.folder, dtype="float32")
    batch = unequal(policy, shapes)
    assert sorted({len(clip.frames) for clip in batch.clips}) == [4, 6, 8]
    sampled = bench.rollout()(policy, batch, generators())
    assert sampled.logps is not None
    assert float(sampled.logps.min()) < -2  # far from sure, so that a wrong position or pixel would show
    assert difference(policy, batch, sampled) < 1e-5
    again = bench.rollout()(policy, batch, generators())
    assert torch.equal(again.ids, sampled.ids)  # all randomness is the generators'


def fitted(
    bench: Bench, root: str, out: Path, steps: int, shared: VLLMRollout, rate: float = 1e-2, **policy: Any
) -> tuple[Any, Recorder]:
    """A run over eight clips, again and again."""
    recorder = Recorder()
    module = rlaif(bench.folder, rollout=shared, oracle=ByText())
    module.optimizer = lambda params: torch.optim.AdamW(params, lr=rate)
    module.policy = Policy(bench.folder, dtype="float32", **policy)
    source = data(root, 4)
    source.datasets["train"] = ShapesDataset(root, "train", size=8)
    trainer(out, max_steps=steps, max_epochs=100, callbacks=[recorder]).fit(module, source)
    return module, recorder


def test_twenty_steps_of_full_fine_tuning(bench: Bench, data_root: str, tmp_path: Path, shapes: ShapesDataset) -> None:
    """Tower trained, clips repeated: neither weights nor features of an earlier step are sampled from."""
    shared = bench.rollout()
    before = Policy(bench.folder, dtype="float32").load()
    module, recorder = fitted(bench, data_root, tmp_path, 20, shared, rate=1e-3)
    assert len(recorder.metrics) == 20
    assert max(metrics[LARGEST] for metrics in recorder.metrics) < 1e-5
    policy = module.policy
    tower = dict(policy.network.model.visual.named_parameters())
    moved = [float((tower[name] - p).abs().max()) for name, p in before.network.model.visual.named_parameters()]
    assert max(moved) > 0.005

    # The weights that it began with would have shown, and so would the features of the tower that it began with.
    batch = unequal(policy, shapes)
    sampled = shared(policy, batch, generators())
    assert difference(policy, batch, sampled) < 1e-5
    assert difference(before, batch, sampled) > 1e-3
    before.network.model.language_model.load_state_dict(policy.network.model.language_model.state_dict())
    before.network.lm_head.load_state_dict(policy.network.lm_head.state_dict())
    assert difference(before, batch, sampled) > 1e-4


@pytest.mark.parametrize("lora", ["merged", "adapter"])
def test_updates_of_an_adapter(bench: Bench, data_root: str, tmp_path: Path, lora: Any, shapes: ShapesDataset) -> None:
    shared = bench.rollout(lora)
    module, recorder = fitted(bench, data_root, tmp_path, 4, shared, lora=ADAPTER)
    assert len(recorder.metrics) == 4
    assert max(metrics[LARGEST] for metrics in recorder.metrics) < 1e-5
    batch = unequal(module.policy, shapes)
    sampled = shared(module.policy, batch, generators())
    assert difference(Policy(bench.folder, dtype="float32").load(), batch, sampled) > 1e-2
    if lora == "adapter":
        assert shared._adapter.lora_int_id == module.policy.version + 1 > 4


@pytest.mark.parametrize(("family", "strategy"), [("qwen3_vl", "ddp"), ("qwen2_5_vl", "fsdp2")])
def test_two_processes_and_a_resumed_run(family: str, strategy: str, data_root: str, tmp_path: Path) -> None:
    """Each process has an engine of its own; one that begins at a checkpoint has the checkpoint's weights."""
    folder = engine_model(family, tmp_path / "model")
    settings: dict[str, Any] = {"folder": folder, "root": data_root, "strategy": strategy, "rollout": rollout()}
    settings |= {"batch": 4, "optimizer": "adamw", "rate": 1e-2}

    def after(name: str, steps: int, **more: Any) -> dict[str, Any]:
        (tmp_path / name).mkdir()
        job = Job(out=str(tmp_path / name / "out.pt"), steps=steps, **settings, **more)
        return run(job, world=2, timeout=240)

    whole = after("whole", 3)
    after("first", 2, save_every=2)
    (checkpoint,) = (tmp_path / "first" / "checkpoints").glob("*.ckpt")
    resumed = after("resumed", 3, resume=str(checkpoint))
    assert [len(found["metrics"]) for found in (whole, resumed)] == [3, 1]
    assert max(metrics[LARGEST] for metrics in whole["metrics"] + resumed["metrics"]) < 1e-5
    for name, weight in whole["weights"].items():
        torch.testing.assert_close(resumed["weights"][name], weight, rtol=0, atol=1e-6)


def test_names_of_a_published_checkpoint(shapes: ShapesDataset, tmp_path: Path) -> None:
    """LLaVA-OneVision, whose publisher named its weights otherwise than transformers does; vLLM wants equal clips."""
    policy = Policy(engine_model("llava_onevision", tmp_path), dtype="float32")
    encoder = ProcessorEncoder(policy.processor, family=policy.family)
    batch = Collator(encoder, UniformSampling(8))([shapes[i] for i in range(3)]).batch
    engine = rollout()
    assert difference(policy, batch, engine(policy, batch, generators())) < 1e-5
    before = engine(policy, batch, generators())
    with torch.no_grad():
        for parameter in policy.network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    policy.features.forget()
    policy.version += 1
    assert difference(policy, batch, engine(policy, batch, generators())) < 1e-5
    assert difference(policy, batch, before) > 1e-2
