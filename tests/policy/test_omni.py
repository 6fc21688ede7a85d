"""Omni checkpoints: the thinker of a whole one is trained, with the sound of its videos, and goes back into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForMultimodalLM

from orlaif.data.video import UniformSampling, decode_clip
from orlaif.policy import Policy
from orlaif.policy.encoding import ProcessorEncoder
from orlaif.policy.families import Family
from orlaif.policy.omni import Omni
from orlaif.rollout import SamplingParams, generate
from orlaif.tiny import tiny_model
from orlaif.types import PromptBatch, VideoError, VideoPrompt
from tests.conftest import random_completions
from tests.families import skip_unless_its_export_is_whole
from tests.policy.test_encoding import a_clip

KINDS = ("qwen2_5_omni", "qwen3_omni_moe")


@pytest.fixture(scope="module", params=KINDS)
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tiny_model(request.param, str(tmp_path_factory.mktemp(request.param)))
    torch.save({}, f"{folder}/spk_dict.pt")  # voices, without which Qwen2.5-Omni does not load
    skip_unless_its_export_is_whole(folder)
    return folder


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    found = {}
    for path in Path(folder).glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def heard(policy: Policy, shared_videos: Path, *spans: tuple[float, float]) -> PromptBatch:
    video = str(shared_videos / "nasa_13013.mp4")
    prompts = [VideoPrompt(id=f"{s}", video=video, question="what is it ?", start_s=s, end_s=e) for s, e in spans]
    clips = [decode_clip(prompt, UniformSampling(4 + 2 * i)) for i, prompt in enumerate(prompts)]
    return ProcessorEncoder(policy.processor, family=policy.family)(prompts, clips)


def test_the_thinker_goes_back_into_the_whole(folder: str, tmp_path: Path) -> None:
    policy = Policy(folder, dtype="float32").load()
    assert type(policy.network).__name__.endswith("ThinkerForConditionalGeneration")
    assert policy.layout == "shared"
    prompts = [VideoPrompt(id=q, video="clip", question=q) for q in ("what color is it ?", "what")]
    batch = ProcessorEncoder(policy.processor, family=policy.family)(prompts, [a_clip(4), a_clip(6)])
    completions = random_completions(policy, 2, 2, 3)
    policy.completion_logps(batch, completions).sum().backward()
    with torch.no_grad():
        for parameter in policy.network.parameters():
            if parameter.grad is not None:
                parameter -= 0.01 * parameter.grad
        trained = policy.completion_logps(batch, completions)
    policy.export(str(tmp_path / "out"))

    before, after = weights(folder), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    same = {"rtol": 0, "atol": 0, "equal_nan": True}
    changed = {name for name in before if not torch.allclose(before[name], after[name], **same)}
    assert "thinker.lm_head.weight" in changed
    assert {name.partition(".")[0] for name in changed} == {"thinker"}
    whole = AutoModelForMultimodalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(whole.thinker.lm_head.weight, policy.network.lm_head.weight)
    again = Policy(str(tmp_path / "out"), dtype="float32")
    assert float((again.completion_logps(batch, completions) - trained).abs().max()) < 1e-6


def test_an_ear_that_hears_nothing_is_not_trained(folder: str) -> None:
    """Nor adapted; with sound it is, but for a table that Qwen2.5-Omni does not read."""
    for sound in (False, True):
        policy = Policy(folder, dtype="float32", family=Omni(sound=sound)).load()
        frozen = {name for name, p in policy.network.named_parameters() if not p.requires_grad}
        ear = {f"model.audio_tower.{name}" for name, _ in policy.network.model.audio_tower.named_parameters()}
        assert frozen == (ear & {"model.audio_tower.audio_bos_eos_token.weight"} if sound else ear)
    adapted = Policy(folder, dtype="float32", lora={"r": 4, "target_modules": "all-linear"}).load()
    names = {name for name, p in adapted.network.named_parameters() if p.requires_grad}
    assert any(".visual." in name for name in names)
    assert not any(".audio_tower." in name for name in names)


def test_an_adapter_is_of_the_thinker(folder: str, tmp_path: Path) -> None:
    lora = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False}
    policy = Policy(folder, dtype="float32", lora=lora, freeze_vision=True).load()
    batch = ProcessorEncoder(policy.processor, family=policy.family)(
        [VideoPrompt(id="a", video="clip", question="what")], [a_clip(4)]
    )
    completions = random_completions(policy, 1, 2, 3)
    adapted = policy.completion_logps(batch, completions)
    assert float((policy.completion_logps(batch, completions, reference=True) - adapted).abs().max()) > 1e-3
    policy.export(str(tmp_path / "adapter"))
    policy.export(str(tmp_path / "merged"), merge=True)
    for name in ("adapter", "merged"):
        again = Policy(str(tmp_path / name), dtype="float32")
        assert float((again.completion_logps(batch, completions) - adapted).abs().max()) < 1e-5
    assert weights(folder).keys() == weights(tmp_path / "merged").keys()


def test_what_is_said_of_the_times_of_frames(folder: str) -> None:
    """Frames two seconds apart, two in a grid: four seconds a grid, at 25 positions a second."""
    policy = Policy(folder, dtype="float32").load()
    batch = ProcessorEncoder(policy.processor, family=policy.family)(
        [VideoPrompt(id="a", video="clip", question="what")], [a_clip(6, spacing=2.0)]
    )
    assert batch.mm_inputs["video_second_per_grid"].tolist() == [4.0]
    assert not policy.family.asks_decoder
    at = policy.prompt_positions(batch)[0, 0][batch.input_ids[0] == policy.placeholder_ids[1]]
    assert (at.unique() - at.min()).tolist() == [0, 100, 200]


def test_sound(folder: str, shared_videos: Path) -> None:
    """Two clips of one file: log-probs and rollout as one by one; another sound is heard; gradients reach the ear."""
    policy = Policy(folder, dtype="float32", family=Omni(sound=True)).load()
    spans = [(0.0, 3.0), (2.0, 8.0)]
    batch = heard(policy, shared_videos, *spans)
    singles = [heard(policy, shared_videos, span) for span in spans[:1]]
    assert batch.mm_inputs["audio_feature_lengths"].tolist()[0] == singles[0].mm_inputs["audio_feature_lengths"].item()
    completions = random_completions(policy, 2, 2, 3)
    logps = policy.completion_logps(batch, completions)
    alone = policy.completion_logps(singles[0], completions.of_prompts(torch.tensor([0])))
    keep = completions.mask[:1]
    assert float((logps[:1] - alone)[keep].abs().max()) < 1e-4
    logps.sum().backward()
    ear = policy.network.model.audio_tower
    assert max(float(p.grad.abs().max()) for p in ear.parameters() if p.grad is not None) > 0

    sampled = [
        generate(policy, one, 2, SamplingParams(max_new_tokens=3, temperature=0.0)) for one in (batch, singles[0])
    ]
    assert sampled[0].texts[0] == sampled[1].texts[0]
    policy.last.positions.forget()
    batch.mm_inputs["input_features"].mul_(-1)
    assert float((policy.completion_logps(batch, completions) - logps).detach().abs().max()) > 1e-3


def test_a_clip_without_sound_is_named(tmp_path: Path, shared_videos: Path) -> None:
    policy = Policy(tiny_model("qwen2_5_omni", str(tmp_path)), family=Omni(sound=True))
    video = str(shared_videos / "testsrc2_vp9.webm")
    prompt = VideoPrompt(id="a", video=video, question="what")
    with pytest.raises(VideoError, match=r"testsrc2_vp9\.webm: has no sound that can be decoded"):
        ProcessorEncoder(policy.processor, family=policy.family)([prompt], [decode_clip(prompt, UniformSampling(4))])


def test_any_other_family_is_itself(tiny_model: str) -> None:
    assert type(Policy(tiny_model).family) is Family
