"""What the plan counts beside the policy on its GPU: the oracle's models, and the host's memory."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForSequenceClassification

from orlaif.cli.plan.host import batches_under_way, clip_bytes, host_plan
from orlaif.cli.plan.judges import Judges
from orlaif.cli.plan.sizes import Setup
from orlaif.data.sampling import UniformSampling
from orlaif.oracles import PreferenceRanker
from orlaif.oracles.held import HeldModel
from orlaif.oracles.score import TextRewardModel
from orlaif.policy import Policy
from tests.conftest import REPO


def held(device: str | None, width: int = 10) -> HeldModel:
    """A model of width x width weights of two bytes."""
    return HeldModel(
        oracle="Judge",
        path="folder",
        device=device,
        build=lambda: torch.nn.Linear(width, width, bias=False, dtype=torch.bfloat16),
    )


def test_an_oracles_models_by_where_they_lie() -> None:
    judges = Judges.of([held(None), held("cuda", 20), held("cpu", 30), held("cuda:1", 40)])
    assert (judges.gpu, judges.host, judges.largest) == (200 + 800, 1800, 800)
    assert "0.00 GB of weights for each process, for they go to cuda:1" in judges.notes[0]
    assert "while they judge" in judges.notes[1]
    assert Judges.of([]) == Judges()


def test_a_ranker_that_is_not_there_yet_is_not_counted(tmp_path: Path) -> None:
    judges = Judges.of(PreferenceRanker(str(tmp_path / "none")).held_models())
    assert judges.gpu == 0
    assert len(judges.notes) == 1
    assert judges.notes[0].startswith(f"not counted: the model of PreferenceRanker at '{tmp_path / 'none'}': ")


@pytest.mark.parametrize(("dtype", "size"), [("bfloat16", 2), ("float32", 4)])
def test_a_rankers_weights_are_those_that_it_loads(tiny_model: str, dtype: str, size: int) -> None:
    (model,) = PreferenceRanker(tiny_model, dtype=dtype).held_models()
    loaded = Policy(tiny_model, dtype=dtype).load().network
    assert sum(p.numel() for p in loaded.parameters()) * size == pytest.approx(model.weight_bytes(), rel=1e-3)


def test_a_reward_model_has_one_output(tmp_path: Path) -> None:
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    config = Qwen3Config(**sizes, num_attention_heads=2, num_key_value_heads=1, num_labels=1)
    config.save_pretrained(tmp_path)
    (model,) = TextRewardModel(str(tmp_path)).held_models()
    real = sum(p.numel() for p in Qwen3ForSequenceClassification(config).parameters())
    # And the frequencies of its positions, in float32, which are no weights: twice 4 numbers.
    assert model.weight_bytes() == 2 * real + 2 * 4 * 4


def data(**changes: Any) -> Any:
    """Of a recipe: frames of 2 threads' batches ahead."""
    settings = {"sampling": UniformSampling(4), "budget": None, "ahead": 2, "num_workers": 0, "decode_device": "cpu"}
    return SimpleNamespace(**settings | changes)


def test_batches_that_are_there_at_once() -> None:
    assert batches_under_way(data(), 0) == 3
    assert batches_under_way(data(ahead=0), 0) == 1
    assert batches_under_way(data(num_workers=4), 0) == 9
    assert batches_under_way(data(), 1) == 4
    assert clip_bytes(data(), 10, 20, 8.0) == 4 * 3 * 10 * 20


def estimate(lora: Any = None, offload: bool = False, away: int = 0) -> Any:
    """Of 100 and 20 weights in float32, all trained, computed in 16 bits, with two states each."""
    model = torch.nn.Sequential(torch.nn.Linear(10, 10, bias=False), torch.nn.Linear(10, 2, bias=False))
    return SimpleNamespace(
        model=model,
        policy=SimpleNamespace(lora=lora, quantization=None, activation_offloading=bool(away)),
        offloaded_activations=lambda setup: away,
        sharding=SimpleNamespace(cpu_offload=offload),
        state_per_byte=2.0,
        compute_bytes=lambda: 240,
    )


@pytest.mark.parametrize(
    ("of", "strategy", "loading", "standing"),
    [
        (estimate(), "ddp", 480 + 480, 0),
        (estimate(lora={}), "ddp", 480, 0),
        (estimate(), "fsdp2", 100, 0),
        (estimate(offload=True), "fsdp2", 120 + 60 + 100, 120 + 60 + 120 + 240),
        (estimate(away=90), "fsdp2", 100, 90),
    ],
    ids=["whole", "lora", "sharded", "offloaded", "activations"],
)
def test_memory_of_the_host(of: Any, strategy: str, loading: int, standing: int) -> None:
    """Whole with the reference's copy, or a quarter of a weight of 400 bytes at a time; 3 batches of 2 clips."""
    setup = Setup(gpus=4, strategy=strategy, prompts=2, patches=6, pixels=5, reference=True)
    plan = host_plan(of, setup, data(), 1000, 0, Judges(gpu=50, host=7, largest=30), engine=True)
    assert sum(plan.loading.values()) == loading
    assert sum(plan.training.values()) == standing + 3 * 2 * 1000 + 3 * 6 * 5 * 4 + 7 + 30 + 240
    assert plan.peak == max(sum(plan.loading.values()), sum(plan.training.values()))
    assert "of 4 processes together" in plan.table()


def test_frames_on_the_gpu_are_not_in_the_hosts_memory() -> None:
    plan = host_plan(estimate(), Setup(patches=6, pixels=5), data(decode_device="cuda"), 1000, 0, Judges(), False)
    assert sum(plan.training.values()) == 0
    assert plan.peak == 480


@pytest.mark.parametrize(
    ("case", "reference", "computed"),
    [
        ("rows, policy", False, 4),
        ("rows, policy and reference", True, 4),
        ("rows, policy and reference, computed in bfloat16", True, 2),
    ],
)
def test_loading_is_what_processes_took(case: str, reference: bool, computed: int) -> None:
    """Four processes that loaded a model on a CPU, where rows stay on the host as offloaded ones do: within 10 %."""
    report = json.loads((REPO / "benchmarks" / "results" / "loading.json").read_text(encoding="utf-8"))
    weights, largest = round(report["model_gb"] * 1e9 / 4), 32768 * 1024
    of = estimate(offload=True)
    of.model = torch.nn.Module()
    with torch.device("meta"):
        sizes = (largest, largest, weights - 2 * largest)  # embeddings, head, and all layers, none of which is as large
        layers = torch.empty(sizes[2]).split(2**20)
        of.model.weights = torch.nn.ParameterList([*map(torch.empty, sizes[:2]), *layers])
    of.compute_bytes = lambda: computed * weights
    setup = Setup(gpus=report["processes"], strategy="fsdp2", reference=reference)
    plan = host_plan(of, setup, data(), 0, 0, Judges(), engine=False)
    together = report["processes"] * sum(plan.loading.values())
    assert together == pytest.approx(1e9 * report["cases"][case]["peak_gb"], rel=0.1)
    assert together > 1e9 * report["cases"][case]["peak_gb"]
