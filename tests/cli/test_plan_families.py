"""The plan of every family, from a config and a processor alone; layers by one or two of a kind; seconds."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from transformers.modeling_layers import GradientCheckpointingLayer

from orlaif.cli.plan import layers, passes
from orlaif.cli.plan.estimate import Estimate
from orlaif.cli.plan.hardware import GPUS, Hardware, hardware
from orlaif.cli.plan.passes import Passes
from orlaif.cli.plan.recipe_sizes import video_tokens
from orlaif.cli.plan.seconds import Seconds, told
from orlaif.cli.plan.sizes import Plan, Setup, Used
from orlaif.data.sampling import UniformSampling
from orlaif.policy import Policy
from orlaif.policy.experts import active_parameters, active_share
from orlaif.tiny import families, registry
from orlaif.tiny.tokens import WORDS, WRITTEN
from tests.configs import write_config

#: With other ways of their own: embeddings for each layer, experts by modality, convolutions, keys that are compressed.
QUICK = ("gemma4", "ernie4_5_vl_moe", "lfm3_vl", "kimi_k25")
#: Loops over each token of each prompt in Python, by numbers that a meta device has not.
UNKNOWN = "qwen4_exp"
ROUND = Hardware(name="round", half=1e15, single=1e14, memory=1e12, link=1e11, of_peak=0.5, of_bandwidth=0.5)


def without_weights(family: str, folder: Path) -> str:
    """Config and processor of a tiny model; what the installed transformers has not is skipped."""
    if family not in families():
        pytest.skip(f"transformers {transformers.__version__} has no model type {family!r}")
    parts = registry._BUILDERS[family]((*WORDS, *WRITTEN))
    parts.config.save_pretrained(folder)
    if parts.lay_down is not None:
        parts.lay_down(folder)
    parts.processor.save_pretrained(folder)
    return str(folder)


def buildable() -> list[Any]:
    known = [name for name in families() if name not in (UNKNOWN, "perception_lm")]  # which needs timm
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in known]


@pytest.mark.parametrize("family", buildable())
def test_every_family_has_a_plan(family: str, tmp_path: Path) -> None:
    """With the prompt that its own processor makes; LoRA trains less than all, and recomputing keeps less."""
    folder = without_weights(family, tmp_path)
    clip: Any = SimpleNamespace(sampling=UniformSampling(8), budget=None)
    tokens, patches, pixels, _ = video_tokens(Policy(folder), clip, 96, 128, 8.0)
    assert tokens > 8
    assert patches > 8
    setup = Setup(group_size=4, part=4, prompt_tokens=tokens, patches=patches, pixels=pixels, reference=True)
    lora = {"r": 4, "target_modules": "all-linear"}
    plans = []
    for settings in ({}, {"lora": lora, "freeze_vision": True, "gradient_checkpointing": True}):
        estimate = Estimate(Policy(folder, **settings), lambda ps: torch.optim.AdamW(ps))  # type: ignore[arg-type]
        plans.append(estimate.plan(setup))
        assert all(size >= 0 for phase in plans[-1].phases.values() for size in phase.values())
        assert estimate.passes.cache(64) > 0
        assert min(Seconds(estimate, ROUND).of_step(setup).values()) > 0
    full, adapted = plans
    assert adapted.trained < full.trained
    assert adapted.phases["policy"]["activations"] < full.phases["policy"]["activations"]


def test_a_model_whose_passes_need_numbers_has_no_plan(tmp_path: Path) -> None:
    estimate = Estimate(Policy(without_weights(UNKNOWN, tmp_path)), lambda ps: torch.optim.AdamW(ps))
    with pytest.raises(ValueError, match="a model of type 'qwen4_exp', of which no pass can be counted without its"):
        estimate.plan(Setup(group_size=4, part=4, prompt_tokens=60))


@pytest.mark.parametrize("name", ["Qwen/Qwen3-VL-2B-Instruct", "Qwen/Qwen3.5-2B"])
def test_a_few_layers_tell_what_all_take(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes and products to the last one; operations and the moment at which most is there, nearly."""
    policy = Policy(write_config(name, tmp_path), gradient_checkpointing=True)
    few, length = Passes(policy), 40
    found = [few.decoder(1, length, train, grown=train) for train in (True, False)], few.cache(length)
    monkeypatch.setattr(passes, "extrapolated", lambda decoder, run, *_, **__: run())
    every = Passes(policy)
    for one, whole in zip(
        found[0], [every.decoder(1, length, train, grown=train) for train in (True, False)], strict=True
    ):
        assert (one.kept, one.flops, one.single) == (whole.kept, whole.flops, whole.single)
        assert one.peak == pytest.approx(whole.peak, rel=0.02)
        assert one.operations == pytest.approx(whole.operations, rel=0.02)
    assert found[1] == every.cache(length)


def test_what_layers_lack_is_looked_for_in_all() -> None:
    """A decoder that cannot run with a few of its layers runs whole, and that is told; one without layers too."""
    calls: list[int] = []

    def run() -> Used:
        calls.append(1)
        return Used(kept=7, peak=9)

    assert layers.extrapolated(torch.nn.Linear(2, 2), run, train=True).kept == 7
    assert len(calls) == 1

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = SimpleNamespace(num_hidden_layers=5)
            self.layers = torch.nn.ModuleList([GradientCheckpointingLayer() for _ in range(5)])

    decoder, notes = Whole(), list[str]()
    told = lambda: Used(kept=len([decoder.layers[i] for i in (0, 4)]), peak=9)  # noqa: E731
    assert layers.extrapolated(decoder, told, train=True, notes=notes).kept == 2
    assert len(decoder.layers) == 5
    assert notes == [
        "its decoder ran with all of its layers: with a few of them it fails (IndexError: index 4 is out of range)"
    ]
    with pytest.raises(ZeroDivisionError):  # which is no model's way to miss a layer
        layers.extrapolated(decoder, lambda: Used(kept=1 // 0, peak=0), train=True)


def test_processes_that_share_prompts(tmp_path: Path) -> None:
    """Each runs the tower over half of the frames; keys and values of a prompt go over the link four times."""
    passes = Passes(Policy(without_weights("qwen3_vl", tmp_path), dtype="float32"))
    whole = Setup(prompts=2, group_size=4, part=2, sharers=2, prompt_tokens=96, patches=384, pixels=864, reference=True)
    half = dataclasses.replace(whole, tower_sharers=2)
    given = 384 * 864 * 4 + 2 * 96 * 32 * 4  # pixels and features, of all
    one, other = passes.vision(whole, train=True), passes.vision(half, train=True)
    assert other.kept - given == pytest.approx((one.kept - given) / 2, rel=1e-3)
    seconds = Seconds.__new__(Seconds)
    seconds.passes, seconds.hardware = passes, ROUND
    seconds.estimate = SimpleNamespace(compute=torch.float32)  # type: ignore[assignment]
    keys = 2 * 96 * (2 * 2 * 8 * 2) * 4  # prompts, tokens, keys and values of two heads of 8 in two layers
    features = 2 * 96 * 32 * 4
    assert seconds._exchanges(whole) == pytest.approx(0.5 * 4 * keys / 5e10)
    assert seconds._exchanges(half) == pytest.approx(0.5 * (4 * keys + 3 * features) / 5e10)


def test_the_rollout_is_of_the_prompts_that_a_process_samples(tmp_path: Path) -> None:
    """Of four that two share: what sampling two takes, beside the pixels of all four."""
    estimate = Estimate(Policy(without_weights("qwen3_vl", tmp_path), dtype="float32"), torch.optim.SGD)
    sizes: dict[str, Any] = {"group_size": 4, "part": 2, "prompt_tokens": 96, "completion_tokens": 400}
    four, two = Setup(prompts=4, sharers=2, samplers=2, **sizes), Setup(prompts=2, **sizes)
    assert estimate.plan(four).phases["rollout"] == estimate.plan(two).phases["rollout"]
    seconds = Seconds(estimate, ROUND)
    assert seconds.of_step(four)["rollout"] == seconds.of_step(two)["rollout"]
    four, two = (dataclasses.replace(s, pixels=864, patches=384 * s.prompts) for s in (four, two))
    shared, alone = (estimate.plan(s).phases["rollout"]["activations"] for s in (four, two))
    assert shared == alone + 1536 * 864 * 4


def test_what_waits_on_the_host_is_of_every_answer(tmp_path: Path) -> None:
    """Where a config rules out that a prompt is shared: the layers' inputs of four rows, as if asked for so."""
    folder = without_weights("dots3_note", tmp_path)
    settings: dict[str, Any] = {"gradient_checkpointing": True, "activation_offloading": True}
    setup = Setup(group_size=4, part=4, prompt_tokens=60)
    auto, asked = (
        Estimate(Policy(folder, prefix=prefix, **settings), torch.optim.SGD) for prefix in ("auto", "duplicate")
    )
    assert auto.passes.layout == "duplicate"
    assert auto.offloaded_activations(setup) == asked.offloaded_activations(setup) == 4 * 2**14


def test_seconds_are_products_bytes_and_launches() -> None:
    """5e14 FLOP/s of 16 bits at half the peak, 5e13 of 32 bits; ten microseconds an operation where that is more."""
    seconds = Seconds.__new__(Seconds)
    seconds.hardware, seconds.rate = ROUND, ROUND.rate(torch.bfloat16)
    used = Used(kept=0, peak=0, flops=1e15, single=1e14, operations=1000)
    assert seconds._pass(used) == pytest.approx(2.0 + 2.0)
    assert seconds._pass(dataclasses.replace(used, operations=10**6)) == pytest.approx(10.0)
    away = dataclasses.replace(used, away=32 * 10**9)  # there and back, at half of 1e10 bytes/s
    assert seconds._pass(away) == pytest.approx(4.0)
    seconds.hardware = dataclasses.replace(ROUND, host=1e10)
    assert seconds._pass(away) == pytest.approx(12.8)


def test_a_step_of_a_published_size(tmp_path: Path) -> None:
    """3.1 B weights of decoder and head see 1,000 + 8 x 100 tokens: 2 x 3.1e9 x 1,800 FLOP, and twice that back."""
    lora = {"r": 8, "target_modules": ["q_proj"]}
    policy = Policy(write_config("Qwen/Qwen2.5-VL-3B-Instruct", tmp_path), lora=lora, freeze_vision=True)
    estimate = Estimate(policy, lambda ps: torch.optim.AdamW(ps))
    setup = Setup(group_size=8, part=8, prompt_tokens=1000, completion_tokens=100, reference=True, loss="fused_head")
    found = Seconds(estimate, ROUND).of_step(setup)
    body, head = 2.775e9, 2048 * 151936
    assert found["reference"] == pytest.approx(2 * (body * 1800 + head * 800) / 5e14, rel=0.1)
    assert found["policy"] == pytest.approx(2 * found["reference"], rel=0.1)
    assert found["vision"] == 0
    token = max(2 * (body + head) / 5e11, 1e-5 * estimate.passes.decoder(8, 2, train=False).operations)
    assert found["rollout"] == pytest.approx(100 * token, rel=0.1)
    assert "predicted, not measured" in told(found, ROUND)
    twice = Seconds(estimate, ROUND).of_step(dataclasses.replace(setup, accumulate=2))
    assert twice["policy"] == pytest.approx(2 * found["policy"], rel=0.03)
    assert twice["update"] == found["update"]


def test_hardware_is_named() -> None:
    assert GPUS["h100"].rate(torch.bfloat16) == pytest.approx(0.4 * 989.4e12)
    with pytest.raises(ValueError, match="--gpu is 'h1000'; it must be one of a10, a100, b200, h100"):
        hardware("h1000")
    tried = hardware("cpu")
    assert tried.half > 0
    assert tried.memory > 0


def test_experts_that_a_token_goes_through() -> None:
    assert active_share(SimpleNamespace(num_experts_per_tok=8), 128) == 1 / 16
    with pytest.raises(ValueError, match="does not say how many experts"):
        active_share(SimpleNamespace(model_type="x"), 128)


class Mixture(torch.nn.Module):
    """A decoder of 5 weights and 4 experts of 6."""

    def __init__(self) -> None:
        super().__init__()
        self.other = torch.nn.Linear(5, 1, bias=False)
        self.experts = torch.nn.Parameter(torch.zeros(4, 2, 3))

    def get_decoder(self) -> Any:
        return self


def test_parameters_that_a_token_goes_through() -> None:
    """5 and one expert of 6; a config that does not say how many experts is told in the table."""
    assert active_parameters(Mixture(), SimpleNamespace(num_experts_per_tok=1)) == 11
    dense = torch.nn.Linear(5, 1)
    dense.get_decoder = lambda: dense  # type: ignore[assignment]
    assert active_parameters(dense, SimpleNamespace()) is None
    estimate = Estimate.__new__(Estimate)
    estimate.model, estimate.text = Mixture(), SimpleNamespace(model_type="x")  # type: ignore[assignment]
    plan = Plan(setup=Setup(), parameters=29, trained=29, standing={}, phases={"policy": {}}, active=estimate._active())
    told_of = "active       not known: the config of 'x' does not say how many experts a token goes through"
    assert told_of in plan.table()
    of_many = dataclasses.replace(plan, parameters=29 * 10**6, active=11 * 10**6)
    assert "active       11.0 M per token (37.93 %)" in of_many.table()


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
