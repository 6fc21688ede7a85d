"""What `orlaif plan` is asked: its own words, and the sizes that they give a recipe's step."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orlaif.arguments import UsageError
from orlaif.cli.plan.arguments import read
from orlaif.cli.plan.hardware import hardware
from orlaif.cli.plan.passes import Passes
from orlaif.cli.plan.processes import check_shared, processes_of, strategy_of
from orlaif.cli.plan.recipe_sizes import prompt_sizes
from orlaif.cli.plan.sizes import Setup
from orlaif.cli.plan.unsaid import unsaid_sizes
from orlaif.data.sampling import UniformSampling
from orlaif.demo.tiny import make_tiny_model
from orlaif.policy import Policy
from tests.configs import write_config

NO_NUMBER = "which is no number (--gpus says how many)"
CLIP: Any = SimpleNamespace(sampling=UniformSampling(32), budget=None)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpus=0"], "--gpus is 0; it must be 1 or more"),
        (["--prompt-tokens=-4000"], "--prompt-tokens is -4000; it must be 1 or more"),
        (["--prompt-tokens=0"], "--prompt-tokens is 0; it must be 1 or more"),
        (["--text-tokens=-9000"], "--text-tokens is -9000; it must be 0 or more"),
        (["--answer-tokens=0"], "--answer-tokens is 0; it must be 1 or more"),
        (["--answers=1"], "--answers is 1; it must be 2 or more, for a ranker compares them"),
        (["--video=0x0"], "--video is '0x0'; it must be height x width, such as 360x640"),
        (["--video=large"], "--video is 'large'; it must be height x width, such as 360x640"),
        (["--video-seconds=-5"], "--video-seconds is -5; it must be more than 0"),
        (["--video-seconds=inf"], "--video-seconds is inf; it must be more than 0"),
        (["--gpu-memory=1.2.3GB"], "--gpu-memory is '1.2.3GB'; it must be a size such as 80GB or 40GiB"),
        (["--gpu-memory=0"], "--gpu-memory is '0'; it must be a size such as 80GB or 40GiB"),
    ],
)
def test_words_that_say_nothing_are_refused(words: list[str], said: str) -> None:
    """As a mistake of the command line, for which the exit status is 2."""
    with pytest.raises(UsageError) as error:
        read(words)
    assert str(error.value) == said


def test_words_that_are_understood() -> None:
    asked, rest = read(["--gpu-memory", "40 GiB", "--video=270x480", "--config=r.yaml", "--trainer.devices=2"])
    assert (asked.memory, asked.height, asked.width) == (40 * 2**30, 270, 480)
    assert rest == ["--config=r.yaml", "--trainer.devices=2"]
    assert read(["--gpu-memory=24"])[0].memory == 24e9


def test_a_gpu_that_nobody_knows_is_a_mistake_of_the_command_line() -> None:
    with pytest.raises(UsageError, match="--gpu is 'foo'; it must be one of a10, a100"):
        hardware("foo")


def test_pixels_and_patches_go_with_tokens(tmp_path: Path) -> None:
    """Of Qwen2.5-VL a token is four patches, of 3 x 2 x 14 x 14 numbers; a clip of 32 frames here has 4,784 tokens."""
    policy = Policy(write_config("Qwen/Qwen2.5-VL-3B-Instruct", tmp_path))
    assert prompt_sizes(policy, CLIP, 360, 640, 30.0, None) == ((4784, 19136, 1176, 0), 1.0, [])
    assert prompt_sizes(policy, CLIP, 360, 640, 30.0, 4784) == ((4784, 19136, 1176, 0), 1.0, [])
    sizes, longer, missing = prompt_sizes(policy, CLIP, 360, 640, 30.0, 100000)
    assert (sizes, missing) == ((100000, 400000, 1176, 0), [])
    assert longer == pytest.approx(20.9, rel=1e-3)


def test_patches_that_nothing_tells_are_said_to_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "smolvlm"}))
    policy = Policy(str(tmp_path))
    with pytest.raises(ValueError, match=r"^--prompt-tokens is missing: there is no processor .*; this is smolvlm"):
        prompt_sizes(policy, CLIP, 360, 640, 30.0, None)
    sizes, longer, missing = prompt_sizes(policy, CLIP, 360, 640, 30.0, 800)
    assert (sizes, longer) == ((800, 0, 0, 0), 1.0)
    assert missing[0].startswith("not counted: vision tower, pixels, for there is no processor beside the config")


@pytest.mark.parametrize(
    ("trainer", "asked", "number", "said"),
    [
        ({"devices": 4, "num_nodes": 2}, None, 8, "trainer.devices 4 x trainer.num_nodes 2"),
        ({"devices": "2"}, None, 2, "trainer.devices 2 x trainer.num_nodes 1"),
        ({"devices": [0, 3, 5]}, None, 3, "trainer.devices [0, 3, 5] x trainer.num_nodes 1"),
        (
            {"devices": "auto", "num_nodes": 2},
            None,
            1,
            "trainer.devices auto, which is no number (--gpus says how many)",
        ),
        ({"devices": -1}, None, 1, "trainer.devices -1, which is no number (--gpus says how many)"),
        ({"devices": 4}, 3, 3, "--gpus 3"),
    ],
)
def test_processes_are_the_trainers_unless_they_are_given(trainer: Any, asked: int, number: int, said: str) -> None:
    assert processes_of(trainer, asked) == (number, said)
    if number % 2:
        with pytest.raises(UsageError) as error:
            check_shared(2, number, said)
        assert str(error.value) == f"policy.sequence_parallel is 2, and {said} is no multiple of it"
    check_shared(number, number, said)


def test_strategies_of_which_no_plan_is_known_are_refused() -> None:
    policy: Any = SimpleNamespace(quantization=None)
    known = {"auto": "ddp", "ddp": "ddp", "ddp_find_unused_parameters_true": "ddp", "fsdp2": "fsdp2"}
    assert {name: strategy_of({"strategy": name}, 2, policy) for name in known} == known
    assert [strategy_of({"strategy": name}, 1, policy) for name in ("auto", "ddp", "fsdp2")] == ["one", "one", "fsdp2"]
    with pytest.raises(UsageError, match=r"trainer.strategy is 'fsdp'; it must be 'auto', 'ddp' or 'fsdp2'"):
        strategy_of({"strategy": "fsdp"}, 4, policy)
    policy.quantization = {"load_in_4bit": True}
    with pytest.raises(UsageError, match=r"cannot be sharded with FSDP2; use --trainer.strategy ddp"):
        strategy_of({"strategy": "fsdp2"}, 4, policy)


def test_a_process_samples_its_part_of_the_prompts_that_are_shared() -> None:
    """Of three prompts of 100 patches, two at most."""
    three = Setup(prompts=3, sharers=2, tower_sharers=2, samplers=2, patches=300)
    own = three.sampled_by_one
    assert (own.prompts, own.patches, own.tower_sharers) == (2, 200, 1)
    alone = Setup(prompts=3, sharers=2, tower_sharers=2, patches=300).sampled_by_one
    assert (alone.prompts, alone.patches, alone.tower_sharers) == (3, 300, 1)


def test_what_a_config_does_not_say_is_named(tmp_path: Path) -> None:
    make_tiny_model(str(tmp_path), ["word"])
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    assert unsaid_sizes(str(tmp_path), Policy(str(tmp_path)).config) == []
    del config["vision_config"], config["text_config"]["hidden_size"]
    path.write_text(json.dumps(config))
    policy = Policy(str(tmp_path))
    assert unsaid_sizes(str(tmp_path), policy.config) == ["hidden_size", "vision_config"]
    said = "whose config does not say hidden_size, vision_config; with those of model type .*ZeroDivisionError"
    passes = Passes.__new__(Passes)
    passes.policy, passes._memo = policy, {}
    with pytest.raises(ValueError, match=said):
        passes._once(("of no", "use"), lambda: 1 // 0)
