"""Rollouts by another engine than the trainer: its weights follow the policy's, and its log-probs are corrected for.

What stands for vLLM here has the parts of its interface that are used, over transformers' own ``generate``; so these
tests say that the right weights, prompts and videos are handed over. ``test_engine`` says that vLLM takes them.
"""

from __future__ import annotations

import json
import random
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForImageTextToText

from orlaif.data.video import PixelBudget
from orlaif.losses import GRPORankLoss
from orlaif.policy import Policy
from orlaif.policy.hub import load_processor
from orlaif.policy.prefix.synthetic import synthetic_prompt
from orlaif.rollout import ImportanceCorrection, Rollout, SamplingParams
from orlaif.rollout.engine import default_room
from orlaif.rollout.engine_requests import begun_once
from orlaif.rollout.engine_weights import checkpoint_weights
from orlaif.rollout.vllm import VLLMRollout
from orlaif.types import Completions, PromptBatch
from tests.training.test_composition import LORA
from tests.training.test_rlaif import ByText, Recorder, data, rlaif, trainer

engines: list[Any] = []
DECODER = r".*language_model.*\.(q_proj|v_proj|down_proj)"


class LLM:
    """As ``vllm.LLM``: a model of its own, loaded from the path."""

    def __init__(self, model: str, dtype: str, **options: Any) -> None:
        assert options["logprobs_mode"] == "processed_logprobs"
        self.options = options
        self.model = AutoModelForImageTextToText.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
        self.processor = load_processor(model)
        self.updates: list[list[str]] = []
        self.forgotten = 0
        self.llm_engine = SimpleNamespace(reset_encoder_cache=self.reset_encoder_cache)
        engines.append(self)
        self.reseed()

    def reseed(self) -> None:
        """As vLLM does, of its whole process."""
        torch.manual_seed(len(engines))
        random.seed(len(engines))
        np.random.seed(len(engines))

    def reset_encoder_cache(self) -> None:
        self.forgotten += 1

    def load_weights(self, weights: Any) -> set[str]:
        own = dict(self.model.named_parameters(remove_duplicate=False))
        names = []
        for name, weight in weights:
            own[name].data.copy_(weight)
            names.append(name)
        assert set(names) == set(own)
        self.updates.append(names)
        return set(names)

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> list[Any]:
        assert method == "reload_weights"
        return [self.load_weights(kwargs["weights_iterator"])]

    def reset_prefix_cache(self) -> bool:
        return True

    def generate(self, prompts: list[Any], settings: list[Any], use_tqdm: bool) -> list[Any]:
        outputs = []
        for prompt, how in zip(prompts, settings, strict=True):
            (frames, about) = prompt["multi_modal_data"]["video"][0]
            about = {name: value for name, value in about.items() if name != "do_sample_frames"}
            inputs = self.processor(
                text=[prompt["prompt"]],
                videos=[[torch.from_numpy(frames).permute(0, 3, 1, 2)]],
                video_metadata=[about],
                return_tensors="pt",
                do_sample_frames=prompt["mm_processor_kwargs"]["do_sample_frames"],
            )
            torch.manual_seed(how.seed)
            made = self.model.generate(
                **inputs,
                do_sample=True,
                temperature=how.temperature,
                top_k=0,
                max_new_tokens=how.max_tokens,
                num_return_sequences=how.n,
                eos_token_id=how.stop_token_ids,
                suppress_tokens=list(how.logit_bias),
                output_scores=True,
                return_dict_in_generate=True,
            )
            start = inputs.input_ids.shape[1]
            logps = torch.stack(made.scores, 1).log_softmax(-1)
            rows = []
            for row, table in zip(made.sequences[:, start:].tolist(), logps, strict=True):
                ends = [k for k, token in enumerate(row) if token in how.stop_token_ids]
                row = row[: ends[0] + 1] if ends else row
                drawn = [{t: SimpleNamespace(logprob=float(table[k, t]))} for k, t in enumerate(row)]
                rows.append(SimpleNamespace(token_ids=row, logprobs=drawn))
            outputs.append(SimpleNamespace(prompt_token_ids=inputs.input_ids[0].tolist(), outputs=rows))
        return outputs


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("vllm")
    module.__spec__ = ModuleSpec("vllm", None)
    module.LLM, module.SamplingParams = LLM, SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    engines.clear()


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_the_engine_follows_the_policy(tiny_model: str, data_root: str, tmp_path: Path, lora: Any) -> None:
    """At a rate that changes the policy much, the sampler's log-probs stay the trainer's."""
    recorder = Recorder()
    rollout = VLLMRollout(group_size=4, sampling=SamplingParams(max_new_tokens=4, temperature=1.5))
    module = rlaif(tiny_model, rollout=rollout, oracle=ByText(), loss=GRPORankLoss())
    module.optimizer = lambda params: torch.optim.SGD(params, lr=1.0 if lora is None else 30.0)
    module.policy = Policy(tiny_model, dtype="float32", lora=lora)
    trainer(tmp_path, max_steps=3, callbacks=[recorder]).fit(module, data(data_root, 4))
    (engine,) = engines
    assert engine.forgotten == 3  # features of videos, with the weights that made them
    assert len(engine.updates) == 3  # before the first rollout, and after each update that one followed
    assert engine.options["gpu_memory_utilization"] == 0.3
    for metrics in recorder.metrics:
        assert metrics["train/sampling/sampling_logp_difference/max"] < 1e-4
        assert metrics["train/sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=1e-4)
        assert metrics["train/sampling/outside_ratio"] == 0

    # Had it kept the weights that it began with, its log-probs would be others.
    policy = module.policy
    batch = synthetic_prompt(policy.processor, torch.device("cpu"), torch.float32)
    engine.model = AutoModelForImageTextToText.from_pretrained(tiny_model, dtype=torch.float32).eval()
    rollout._weights_of = policy.version
    stale = rollout(policy, batch, [torch.Generator().manual_seed(0)])
    assert stale.logps is not None
    with torch.no_grad():
        difference = policy.completion_logps(batch, stale, temperature=1.5) - stale.logps
    assert float(difference.abs().max()) > 1e-3


class Doubted(Rollout):
    """Samples as ever, and says that it held each answer for half as likely as it did."""

    def __call__(self, policy: Policy, batch: PromptBatch, generator: Any) -> Completions:
        made = super().__call__(policy, batch, generator)
        assert made.logps is not None
        first = torch.zeros_like(made.logps)
        first[..., 0] = torch.tensor(2.0).log()
        return Completions(ids=made.ids, mask=made.mask, texts=made.texts, logps=made.logps - first)


def step(folder: str, root: str, out: Path, rollout: Rollout, steps: int = 1) -> Recorder:
    """What a run of ``steps`` steps leaves."""
    recorder = Recorder()
    module = rlaif(folder, rollout=rollout, oracle=ByText(), loss=GRPORankLoss(), microbatch=3)
    trainer(out, max_steps=steps, callbacks=[recorder]).fit(module, data(root, 4))
    return recorder


@pytest.mark.parametrize(("high", "factor", "outside"), [(0, 1.0, None), (1.5, 1.5, 1.0), (4.0, 2.0, 0.0)])
def test_importance_weights_are_truncated(
    tiny_model: str, data_root: str, tmp_path: Path, high: float, factor: float, outside: float | None
) -> None:
    """An answer that the trainer holds for twice as likely as the sampler counts twice, or as much as the bound."""
    settings: dict[str, Any] = {"group_size": 4, "sampling": SamplingParams(max_new_tokens=4)}
    correction = ImportanceCorrection(level="sequence", high=high) if high else None
    plain = step(tiny_model, data_root, tmp_path, Rollout(**settings)).grads[0]
    weighted = step(tiny_model, data_root, tmp_path, Doubted(**settings, correction=correction))
    for name, grad in plain.items():
        torch.testing.assert_close(weighted.grads[0][name], factor * grad, rtol=1e-3, atol=1e-5)
    (metrics,) = weighted.metrics
    assert metrics.get("train/sampling/outside_ratio") == outside
    if correction is not None:
        for name in ("min", "mean", "max"):
            assert metrics[f"train/sampling/importance_sampling_ratio/{name}"] == pytest.approx(factor, rel=1e-4)


def test_each_token_is_weighed_and_a_large_mismatch_is_told_once(
    tiny_model: str, data_root: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first tokens of answers count 1.5 times, as the bound allows, the others once; 0.69 nats are no rounding."""
    sampling = SamplingParams(max_new_tokens=2)
    rollout = Doubted(group_size=4, sampling=sampling, correction=ImportanceCorrection(high=1.5))
    with caplog.at_level("WARNING", logger="orlaif"):
        recorder = step(tiny_model, data_root, tmp_path, rollout, steps=2)
    for metrics in recorder.metrics:
        tokens = metrics["train/completions/mean_length"]
        assert 1 < tokens <= 2
        assert metrics["train/sampling/outside_ratio"] == pytest.approx(1 / tokens, rel=1e-4)
        assert metrics["train/sampling/importance_sampling_ratio/mean"] == pytest.approx(1 + 0.5 / tokens, rel=1e-4)
        assert metrics["train/sampling/importance_sampling_ratio/min"] == pytest.approx(1.0, rel=1e-4)
        assert metrics["train/sampling/importance_sampling_ratio/max"] == pytest.approx(1.5, rel=1e-4)
        assert metrics["train/sampling/sampling_logp_difference/max"] == pytest.approx(0.6931, rel=1e-3)
    (told,) = [record.message for record in caplog.records if "sampler and trainer differ by" in record.message]
    assert told.startswith("step 0: ")
    assert "older weights" in told


def test_settings_that_cannot_work(tiny_model: str) -> None:
    with pytest.raises(ValueError, match=r"top_p and top_k must be 1 and 0"):
        VLLMRollout(sampling=SamplingParams(top_p=0.9))
    with pytest.raises(ValueError, match=r"gpu_memory_utilization is 2"):
        VLLMRollout(gpu_memory_utilization=2)


def test_without_vllm_it_says_so(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.delitem(sys.modules, "vllm")
    with pytest.raises(ValueError, match=r"needs vLLM: pip install '\.\[vllm\]'"):
        VLLMRollout().engine(Policy(tiny_model, dtype="float32"), 16)


def test_an_engine_leaves_the_random_state_of_the_process_alone(tiny_model: str) -> None:
    policy = Policy(tiny_model, dtype="float32")
    batch = synthetic_prompt(policy.processor, torch.device("cpu"), torch.float32)
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    expected = torch.rand(3), random.random(), np.random.rand()
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    VLLMRollout(group_size=2, sampling=SamplingParams(max_new_tokens=2))(
        policy, batch, [torch.Generator().manual_seed(0)]
    )
    assert torch.equal(torch.rand(3), expected[0])
    assert (random.random(), np.random.rand()) == expected[1:]


@pytest.mark.parametrize(("room", "answer", "fits"), [(None, 4, True), (70, 64, False)])
def test_room_for_prompt_and_answer(tiny_model: str, room: int | None, answer: int, fits: bool) -> None:
    policy = Policy(tiny_model, dtype="float32")
    batch = synthetic_prompt(policy.processor, torch.device("cpu"), torch.float32)
    rollout = VLLMRollout(
        group_size=2,
        sampling=SamplingParams(max_new_tokens=answer),
        engine={} if room is None else {"max_model_len": room},
    )
    if fits:
        rollout(policy, batch, [torch.Generator().manual_seed(0)])
        positions = policy.config.get_text_config(decoder=True).max_position_embeddings
        assert engines[0].options["max_model_len"] == min(1024, positions)
        return
    with pytest.raises(ValueError, match=r"'probe' has \d+ tokens .* the engine's max_model_len of 70"):
        rollout(policy, batch, [torch.Generator().manual_seed(0)])


def test_a_kind_of_model_that_vllm_serves_without_video(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy(tiny_model, dtype="float32").load()
    monkeypatch.setattr(policy.config, "model_type", "smolvlm")
    with pytest.raises(ValueError, match=r"vLLM serves models of type 'smolvlm' without video"):
        VLLMRollout().engine(policy, 16)
    assert not engines


# ------------------------------------------------------------------------------------------------- adapters and sleep


class LoRARequest:
    """As ``vllm.lora.request.LoRARequest``; what its folder holds is read when it is made."""

    def __init__(self, name: str, number: int, path: str) -> None:
        self.name, self.number, self.path = name, number, path
        self.weights = load_file(Path(path, "adapter_model.safetensors"))
        self.config = json.loads(Path(path, "adapter_config.json").read_text())


class Sleeper(LLM):
    """Notes what it is told, in order, and does not sample."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.events: list[str] = []

    def sleep(self, level: int) -> None:
        self.events.append(f"sleep {level}")

    def wake_up(self, tags: list[str]) -> None:
        self.events.append(f"wake {tags}")

    def collective_rpc(self, method: str, kwargs: dict[str, Any]) -> list[Any]:
        self.events.append("weights")
        return super().collective_rpc(method, kwargs)

    def generate(self, prompts: list[Any], settings: list[Any], use_tqdm: bool, lora_request: Any = None) -> list[Any]:
        self.events.append("generate" if lora_request is None else f"generate with {lora_request.name}")
        self.lora_request = lora_request
        return super().generate(prompts, settings, use_tqdm)


@pytest.fixture
def sleeper(monkeypatch: pytest.MonkeyPatch, vllm: None) -> None:
    """Engines note what they are told, and the policy says that it is on a GPU."""
    monkeypatch.setattr(sys.modules["vllm"], "LLM", Sleeper)
    request = ModuleType("vllm.lora.request")
    request.LoRARequest = LoRARequest  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm.lora", ModuleType("vllm.lora"))
    monkeypatch.setitem(sys.modules, "vllm.lora.request", request)


def sampled(rollout: VLLMRollout, policy: Policy) -> Any:
    """One rollout; what the engine was told."""
    batch = synthetic_prompt(policy.processor, torch.device("cpu"), torch.float32)
    rollout(policy, batch, [torch.Generator().manual_seed(0)])
    events, engines[-1].events = engines[-1].events, []
    return events


@pytest.mark.parametrize(
    ("level", "again"), [(1, []), (2, ["weights"])], ids=["weights wait on the CPU", "weights are dropped"]
)
def test_an_engine_sleeps_while_the_step_trains(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch, sleeper: None, level: int, again: list[str]
) -> None:
    policy = Policy(tiny_model, dtype="float32").load()
    monkeypatch.setattr(Policy, "device", property(lambda self: torch.device("cuda")))
    rollout = VLLMRollout(group_size=2, sampling=SamplingParams(max_new_tokens=2), sleep_level=level)
    assert rollout.engine_sleeps
    assert sampled(rollout, policy) == ["weights", "generate", f"sleep {level}"]
    assert engines[0].options["enable_sleep_mode"] is True
    awake = ["wake ['weights']", *again, "wake ['kv_cache']", "generate", f"sleep {level}"]
    assert sampled(rollout, policy) == awake  # the policy is the same
    policy.version += 1
    assert sampled(rollout, policy) == [awake[0], "weights", "wake ['kv_cache']", "generate", f"sleep {level}"]


def test_sleep_on_a_cpu_is_refused(tiny_model: str) -> None:
    with pytest.raises(ValueError, match=r"rollout.sleep_level is 1, and vLLM does not sleep on a CPU; use 0 here"):
        VLLMRollout(sleep_level=1).engine(Policy(tiny_model, dtype="float32"), 16)
    with pytest.raises(ValueError, match=r"rollout.sleep_level is 3; it must be 0, 1 or 2"):
        VLLMRollout(sleep_level=3)
    with pytest.raises(ValueError, match=r"rollout.sleep_level is 2, which drops the base"):
        VLLMRollout(sleep_level=2, lora="adapter")
    assert not engines


def test_an_adapter_has_a_new_number_after_every_update(tiny_model: str, sleeper: None) -> None:
    """No whole weights move, and the adapter's are those of the moment, under the names that PEFT saves them by."""
    policy = Policy(tiny_model, dtype="float32", lora={"r": 4, "lora_alpha": 8, "target_modules": DECODER}).load()
    rollout = VLLMRollout(group_size=2, sampling=SamplingParams(max_new_tokens=2), lora="adapter")
    assert sampled(rollout, policy) == ["generate with policy-0"]
    (engine,) = engines
    assert (engine.options["enable_lora"], engine.options["max_lora_rank"]) == (True, 8)
    policy.version += 1
    with torch.no_grad():
        for name, weight in policy.network.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.25)
    before = engine.lora_request.path
    assert sampled(rollout, policy) == ["generate with policy-1"]
    request = engine.lora_request
    assert request.number == 2
    assert not Path(before).exists()
    assert (request.config["r"], request.config["lora_alpha"]) == (4, 8)
    assert {float(w.mean()) for name, w in request.weights.items() if "lora_B" in name} == {0.25}
    with TemporaryDirectory() as folder:
        policy.network.save_pretrained(folder)
        assert request.weights.keys() == load_file(Path(folder, "adapter_model.safetensors")).keys()
    assert engine.updates == []
    assert engine.forgotten == 2


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        (None, r"all weights are trained \(policy.lora is null\); use 'merged'"),
        ({"use_dora": True}, r"policy.lora.use_dora is given, which vLLM's adapters do not have; use 'merged'"),
        ({"modules_to_save": ["lm_head"]}, r"policy.lora.modules_to_save is given"),
        ({"target_modules": ["q_proj", "qkv"]}, r"the adapter reaches the vision tower"),
        ({"r": 1024}, r"policy.lora.r is 1024, more than vLLM's 512"),
    ],
)
def test_adapters_that_an_engine_cannot_add(tiny_model: str, sleeper: None, lora: Any, said: str) -> None:
    settings = None if lora is None else {"r": 4, "target_modules": DECODER, **lora}
    policy = Policy(tiny_model, dtype="float32", lora=settings).load()
    with pytest.raises(ValueError, match=rf"^rollout.lora is 'adapter', and {said}"):
        VLLMRollout(lora="adapter").engine(policy, 16)
    assert not engines


def test_a_quantised_base_is_handed_over_whole(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that are trained and layers that are not; here "quantised" is the half of each weight."""
    policy = Policy(tiny_model, dtype="float32", lora={"r": 4, "target_modules": ["q_proj"]}).load()
    whole = {name: weight.clone() for name, weight in checkpoint_weights(policy).items()}
    linear = {id(m) for m in policy.network.modules() if isinstance(m, torch.nn.Linear)}
    monkeypatch.setattr(policy, "quantization", {"load_in_4bit": True})

    def dequantised(module: Any) -> torch.Tensor:
        return module.weight * (2 if id(module) in linear else 1)

    monkeypatch.setattr("peft.utils.integrations.dequantize_module_weight", dequantised)
    handed = checkpoint_weights(policy)
    layer = "language_model.layers.0.self_attn"
    for name in (f"model.{layer}.q_proj.weight", f"model.{layer}.k_proj.weight"):
        assert torch.equal(handed[name], 2 * whole[name])
    norm = "model.language_model.norm.weight"
    assert torch.equal(handed[norm], whole[norm])


def test_a_beginning_that_the_tokenizer_adds_is_not_written_twice(tiny_model: str) -> None:
    tokenizer = load_processor(tiny_model).tokenizer
    tokenizer.bos_token = "circle"
    start = [("circle", tokenizer.bos_token_id)]
    assert begun_once(tokenizer, "circle red") == "circle red"  # it adds none
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="circle $A", special_tokens=start)
    assert begun_once(tokenizer, "circle red") == " red"
    assert tokenizer(" red").input_ids == tokenizer("circle red", add_special_tokens=False).input_ids
    assert begun_once(tokenizer, "red") == "red"


# --------------------------------------------------------------------------------------------- room for what may come


def test_the_room_is_that_of_the_longest_prompt_that_the_data_allows(
    tiny_model: str, data_root: str, tmp_path: Path
) -> None:
    """Said before anything is sampled, where the recipe leaves less room; and chosen, where it says nothing."""
    budget = PixelBudget(per_frame=48 * 48)

    def fit(**engine: Any) -> VLLMRollout:
        sampling = SamplingParams(max_new_tokens=8)
        rollout = VLLMRollout(group_size=2, sampling=sampling, engine=engine)
        module = rlaif(tiny_model, rollout=rollout, oracle=ByText())
        trainer(tmp_path, max_steps=1).fit(module, data(data_root, 4, budget=budget))
        return rollout

    module, source = rlaif(tiny_model), data(data_root, 4, budget=budget)
    trainer(tmp_path, max_steps=1).fit(module, source)
    found = source.longest_prompt()
    assert found is not None
    longest, which = found
    lengths = [len(source.collator([prompt]).batch.input_ids[0]) for prompt in source.datasets["train"].prompts]
    assert max(lengths) == 59  # of square clips; those of 54 x 40 pixels have more patches
    assert longest == 67
    assert which.endswith("with a clip of 8 frames as large as data.budget allows")

    said = (
        rf"^rollout.engine.max_model_len is {longest + 7}, and prompt 'train-\d+' with a clip of 8 frames .* has "
        rf"{longest} tokens, its answer up to 8; it must be {longest + 8} or more, or data.budget smaller$"
    )
    with pytest.raises(ValueError, match=said):
        fit(max_model_len=longest + 7)
    assert not engines
    assert fit(max_model_len=longest + 8)._room == longest + 8
    assert fit()._room == 1024
    assert engines[-1].options["max_model_len"] == 1024
    assert default_room(module.policy.config, 1025) == 1088
    assert default_room(module.policy.config, 10**6) == module.policy.config.text_config.max_position_embeddings
    source.budget = None
    assert source.longest_prompt() is None
