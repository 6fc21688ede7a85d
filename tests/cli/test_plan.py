"""The plan against what a step really allocates, counted tensor by tensor on the CPU."""

from __future__ import annotations

import importlib
import itertools
import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.by_stage import ByStage
from orlaif.cli.plan import main, passes
from orlaif.cli.plan.advice import advice
from orlaif.cli.plan.estimate import Estimate
from orlaif.cli.plan.passes import Passes
from orlaif.cli.plan.sizes import Setup
from orlaif.demo.tiny import make_tiny_model
from orlaif.losses import grpo_rank_loss
from orlaif.policy import Policy
from orlaif.policy.encoding import ProcessorEncoder
from orlaif.rollout import SamplingParams, generate
from orlaif.types import Completions, PromptBatch, VideoClip, VideoPrompt
from tests.conftest import REPO

LORA = {"r": 8, "target_modules": ["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]}
P, G, T = 2, 4, 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Wider, and with a larger vocabulary, than the other tests' model, so that it is tensors of size that count."""
    path = str(tmp_path_factory.mktemp("wider"))
    make_tiny_model(path, [f"word{i}" for i in range(4000)], hidden_size=128, num_layers=4)
    return path


def clips(policy: Policy) -> PromptBatch:
    """Two videos of noise, about 400 tokens each."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (16, 3, 256, 256), generator=generator, dtype=torch.uint8)
    times = torch.arange(16, dtype=torch.float64) / 2
    clip = VideoClip(frames=frames, pts_s=times, duration_s=8.0, path="noise")
    prompts = [VideoPrompt(id=f"p{i}", video="noise", question="what is this") for i in range(P)]
    return ProcessorEncoder(policy.processor)(prompts, [clip] * P)


def completions(policy: Policy) -> Completions:
    ids = torch.randint(200, 4000, (P, G, T), generator=torch.Generator().manual_seed(0))
    texts = tuple(("x",) * G for _ in range(P))
    return Completions(ids=ids, mask=torch.ones(P, G, T, dtype=torch.bool), texts=texts)


def counted(known: list[Any], work: Any) -> int:
    with ByStage([t for t in known if isinstance(t, torch.Tensor)]) as live:
        work()
    return live.peak


def real_peaks(policy: Policy, reference: bool) -> dict[str, int]:
    """Bytes that each phase of a step adds, gradients included."""
    network = policy.network.train()
    batch, sampled = clips(policy), completions(policy)
    known = [*network.parameters(), *network.buffers(), batch.input_ids, batch.attention_mask]
    tensors = [t for t in batch.mm_inputs.values() if isinstance(t, torch.Tensor)]
    inputs = sum(t.numel() * t.element_size() for t in tensors)
    known += tensors
    sampling = SamplingParams(max_new_tokens=T)
    never_ends = torch.Generator().manual_seed(0)
    peaks = {"rollout": counted(known, lambda: generate(policy, batch, G, sampling, never_ends))}
    policy.positions.forget()
    if reference:
        policy.load_reference()
        known += list(policy.reference.parameters())
        peaks["reference"] = counted(known, lambda: policy.completion_logps(batch, sampled, reference=True))

    def update() -> None:
        logits = policy.completion_logits(batch, sampled)
        loss, _ = grpo_rank_loss(
            logits,
            sampled.ids.flatten(0, 1),
            advantages=torch.linspace(-1, 1, P * G),
            mask=sampled.mask.flatten(0, 1),
            ref_logps=torch.zeros(P * G, T) if reference else None,
            normalizer=1.0,
            implementation="torch",
        )
        loss.backward()

    peaks["policy"] = counted(known, update)
    return {name: peak + inputs for name, peak in peaks.items()}


def setup_for(policy: Policy) -> Setup:
    batch = clips(policy)
    pixels = batch.mm_inputs["pixel_values_videos"]
    return Setup(
        prompts=P,
        group_size=G,
        part=G,
        prompt_tokens=batch.input_ids.shape[1],
        completion_tokens=T,
        patches=pixels.shape[0],
        pixels=pixels.shape[1],
        reference=True,
        loss="logits",
        host_overhead=0,
    )


RECOMPUTED = {"recomputed": "layers", "selective": "selective", "inputs away": "layers"}


STEPS = [
    *itertools.product(["float32", "bfloat16"], [None, LORA], ["kept", "recomputed", "forked"]),
    ("float32", None, "selective"),
    ("bfloat16", LORA, "selective"),
    ("float32", None, "all away"),
    ("bfloat16", LORA, "inputs away"),
]


@pytest.mark.parametrize(
    ("dtype", "lora", "way"), STEPS, ids=lambda x: x if isinstance(x, str) else "lora" if x else "full"
)
def test_the_plan_is_what_a_step_allocates(folder: str, dtype: str, lora: Any, way: str) -> None:
    """Within 10 %, phase by phase."""
    settings: dict[str, Any] = {"lora": lora, "dtype": dtype, "gradient_checkpointing": RECOMPUTED.get(way, False)}
    settings["activation_offloading"] = way.endswith("away")
    settings |= {"prefix": "fork"} if way == "forked" else {"prefix": "shared", "prefix_attention": "split"}
    policy = Policy(folder, **settings)
    estimate = Estimate(policy, lambda params: torch.optim.AdamW(params), device="cpu")
    setup = setup_for(policy)
    plan = estimate.plan(setup)
    real = real_peaks(policy.load(), reference=True)
    for phase, peak in real.items():
        planned = sum(plan.phases[phase].values())
        print(f"{phase}: planned {planned / 1e6:.1f} MB, real {peak / 1e6:.1f} MB, {planned / peak - 1:+.1%}")
    for phase, peak in real.items():
        assert sum(plan.phases[phase].values()) == pytest.approx(peak, rel=0.1), phase


def test_what_is_away_grows_with_the_layers_and_the_device_does_not(tmp_path: Any, monkeypatch: Any) -> None:
    """Of eight layers, from runs of three and four of them, to the byte what a run of all says."""
    make_tiny_model(str(tmp_path), ["word"], hidden_size=128, num_layers=8)
    policy = Policy(str(tmp_path), dtype="float32", prefix="shared", activation_offloading=True)
    told = Passes(policy).decoder(1, 200, train=True)
    monkeypatch.setattr(passes, "extrapolated", lambda decoder, run, *_: run())
    assert replace(Passes(policy).decoder(1, 200, train=True), operations=0) == replace(told, operations=0)
    eight = 8 * 200 * 128 * 4  # bytes of all layers' inputs, of which there is more
    assert told.away > 8 * eight > told.kept
    assert told.away < told.host < 2 * told.away
    layers = Policy(str(tmp_path), dtype="float32", gradient_checkpointing="layers", activation_offloading=True)
    assert Passes(layers).decoder(1, 200, train=True).away == eight


def test_the_advice_is_the_cheapest_that_is_enough(folder: str) -> None:
    """In turn: selective, all layers, and their inputs on the host."""
    ways: list[dict[str, Any]] = [{}, {"gradient_checkpointing": "selective"}, {"gradient_checkpointing": "layers"}]
    ways.append({"gradient_checkpointing": "layers", "activation_offloading": True})
    setup = Setup(prompt_tokens=2000, completion_tokens=8, loss="none", host_overhead=0)
    estimates = [Estimate(Policy(folder, lora=LORA, prefix="shared", **way), torch.optim.SGD) for way in ways]
    totals = [estimate.plan(setup).total for estimate in estimates]
    assert totals == sorted(totals, reverse=True)
    selective, layers, away = (
        [line.rsplit(": ", 1)[0] for line in advice(estimates[0], setup, memory)] for memory in totals[1:]
    )
    assert selective == ["policy.gradient_checkpointing: selective"]
    assert layers == ["policy.gradient_checkpointing: layers"]
    assert away == ["policy.gradient_checkpointing: layers", "policy.activation_offloading: true"]
    assert advice(estimates[1], setup, totals[2])[0].startswith("policy.gradient_checkpointing: layers")


def test_no_advice_contradicts_another(folder: str) -> None:
    """Weights that are quantised are not sharded: what was said of shards is taken back."""
    estimate = Estimate(Policy(folder, dtype="float32", lora=LORA, prefix="shared"), torch.optim.SGD)
    setup = Setup(gpus=2, strategy="fsdp2", prompt_tokens=3000, loss="none", host_overhead=0, rollout=False)
    said = " ".join(advice(estimate, setup, 1.0))
    assert "policy.quantization: {load_in_4bit: true, ...}" in said
    assert "trainer.strategy: ddp" in said
    assert "cpu_offload" not in said


def test_a_long_prompt_is_shared_where_it_can_be(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By two of four processes, where two are enough."""
    module = importlib.import_module("orlaif.cli.plan.advice")
    monkeypatch.setattr(module, "_REMEDIES", (module._shared_prompts,))
    estimate = Estimate(Policy(folder, lora=LORA, dtype="bfloat16", prefix="shared"), torch.optim.SGD)
    setup = Setup(gpus=4, strategy="ddp", prompt_tokens=20000, loss="none", rollout=False, may_share=True)
    memory = estimate.plan(replace(setup, sharers=2, accumulate=2)).total
    assert memory < estimate.plan(setup).total
    (said,) = advice(estimate, setup, memory)
    assert said.startswith("policy.sequence_parallel: 2 with trainer.accumulate_grad_batches: 2, the same step: ")
    others: list[dict[str, Any]] = [{"may_share": False}, {"prompt_tokens": 16000}, {"gpus": 1}, {"prompts": 2}]
    for other in others:
        assert len(advice(estimate, replace(setup, **other), 1.0)) == 1  # that nothing helps


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["ranker_demo.yaml", "--answers=3"], "3 answers of up to 10"),
        (
            ["ranker_demo.yaml", "--answers=3", "--model.class_path=orlaif.training.ranker.ListwiseRankerTraining"],
            "3 answers in a row, 30 tokens together",
        ),
        (
            ["demo_rlaif.yaml", "--model.init_args.dynamic_sampling.max_batches=7"],
            "for a step up to 7 batches",
        ),
    ],
)
def test_rankers_and_dynamic_sampling(
    words: list[str], told: str, folder: str, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(REPO / "recipes" / words[0])
    sizes = ["--prompt-tokens=100", "--text-tokens=20", "--answer-tokens=10"]
    policy = f"--model.init_args.policy.init_args.path={folder}"
    assert main(["--config", recipe, *sizes, policy, f"--run_dir={tmp_path}", *words[1:]]) == 0
    said = capsys.readouterr().out
    assert told in said
    assert "GB of the host's memory for each process, predicted, not measured" in said
    if "batches" in told:
        batch = int(re.search(r"1 x (\d+) x (\d+) prompts.*: ([\d,]+) tokens", said)[3].replace(",", ""))  # type: ignore[index]
        assert f"{7 * batch:,} tokens, where groups tie" in said
