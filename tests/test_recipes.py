"""Every recipe is one that a user can run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.published import MILLIONS
from orlaif import VideoDataModule
from orlaif.cli import plan
from orlaif.cli.recipe import read_recipe
from orlaif.evaluation.loop import Evaluated
from orlaif.rollout import ImportanceCorrection, VLLMRollout
from tests.configs import write_config
from tests.conftest import REPO
from tests.families import FAMILIES

RECIPES = sorted([*(REPO / "recipes").glob("*.yaml"), *(REPO / "recipes" / "evaluation").glob("*.yaml")])
PLANNED = [recipe for recipe in RECIPES if "orlaif plan" in recipe.read_text()]
#: Planned one at a time: recurrent layers take a minute, and the 2B differs from the 4B in its sizes alone.
LONG = ("rlaif_qwen3_5_2b_lora_1x24gb", "rlaif_qwen3_5_4b_lora_1x24gb", "rlaif_qwen3_vl_4b_lora_1x24gb")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_instantiates(recipe: Path, tmp_path: Path) -> None:
    """Without weights or data: neither is touched before the run starts."""
    cli = read_recipe(["--config", str(recipe), f"--run_dir={tmp_path}"])
    assert isinstance(cli.model, Evaluated)
    assert isinstance(cli.datamodule, VideoDataModule)
    assert cli.model.policy.model is None
    assert cli.trainer_settings["default_root_dir"] == str(tmp_path)
    command = "test" if "evaluation" in recipe.parts else "fit"
    assert f"orlaif {command} --config {recipe.relative_to(REPO)}" in recipe.read_text()


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(p, marks=pytest.mark.slow if p.stem in LONG else (), id=p.stem) for p in PLANNED],
)
def test_every_recipe_for_real_models_fits_its_hardware(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the plan of its header, on the meta device."""
    text = recipe.read_text()
    found = re.search(r"orlaif plan --config (\S+) --gpus (\d+) --gpu-memory (\S+)", text)
    path = re.search(r"path: (Qwen/\S+)", text)
    assert found
    assert path
    assert found[1] == f"recipes/{recipe.name}"
    devices = re.search(r"\n  devices: (\d+)", text)
    assert devices
    assert devices[1] == found[2]
    config = write_config(path[1], tmp_path)
    arguments = ["--config", str(recipe), f"--model.init_args.policy.init_args.path={config}"]
    assert plan.main([*arguments, "--gpus", found[2], "--gpu-memory", found[3]]) == 0
    shown = capsys.readouterr().out
    assert ("not counted: the model of PreferenceRanker" in shown) == ("PreferenceRanker\n" in text)
    adapter = "lora" in text
    millions = float(re.search(r"parameters   ([\d,.]+) M", shown)[1].replace(",", ""))  # type: ignore[index]
    assert MILLIONS[path[1]] <= millions <= MILLIONS[path[1]] * (1.05 if adapter else 1.0) + 0.1
    print(shown)


def test_an_engine_beside_the_model_has_its_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(REPO / "recipes" / "rlaif_qwen2_5_vl_3b_lora_1x80gb.yaml")
    arguments = [
        "--config",
        recipe,
        "--gpu-memory",
        "80GB",
        "--model.init_args.rollout=orlaif.rollout.vllm.VLLMRollout",
    ]
    config = write_config("Qwen/Qwen2.5-VL-3B-Instruct", tmp_path)
    assert plan.main([*arguments, f"--model.init_args.policy.init_args.path={config}"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"the sampler's engine +24\.00\n", shown)
    assert "KV cache" not in shown
    beside = float(re.search(r"peak +([\d.]+)", shown)[1])  # type: ignore[index]

    asleep = "--model.init_args.rollout.init_args.sleep_level=1"
    assert plan.main([*arguments, asleep, f"--model.init_args.policy.init_args.path={config}"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"the sampler's engine +24\.00\n", shown)  # while it samples
    assert float(re.search(r"peak +([\d.]+)", shown)[1]) < beside - 5  # type: ignore[index]


def test_vllm_is_laid_over_a_recipe() -> None:
    """It keeps what the recipe says of sampling; the recipe's adapter is one that vLLM takes."""
    base = str(REPO / "recipes" / "rlaif_qwen2_5_vl_7b_lora_1x80gb.yaml")
    module = read_recipe(["--config", base, "--config", str(REPO / "recipes" / "rollouts" / "vllm.yaml")]).model
    rollout = module.rollout
    assert isinstance(rollout, VLLMRollout)
    assert (rollout.lora, rollout.sleep_level, rollout.sampling.max_new_tokens) == ("adapter", 1, 128)
    assert rollout.correction == ImportanceCorrection()
    assert module.policy.freeze_vision


def test_planned_recipes_are_all_that_the_project_promises() -> None:
    names = " ".join(recipe.name for recipe in PLANNED)
    for word in ("paper_4x80gb", "3b_lora_1x", "7b_lora_1x", "qwen3_vl_8b_full_8x", "sft_", "ranker_", "scalar_"):
        assert word in names


@pytest.mark.parametrize(
    ("recipe", "model", "memory", "remedy"),
    [
        ("rlaif_qwen3_vl_8b_full_8x80gb_fsdp2", "Qwen/Qwen3-VL-8B-Instruct", 40, "policy.sharding.cpu_offload"),
        ("rlaif_qwen2_5_vl_3b_lora_1x80gb", "Qwen/Qwen2.5-VL-3B-Instruct", 10, "policy.quantization"),
    ],
)
def test_what_does_not_fit_is_told_what_would(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: str, model: str, memory: int, remedy: str
) -> None:
    """Each suggestion takes less than the one before, and the last one fits."""
    arguments = ["--config", str(REPO / "recipes" / f"{recipe}.yaml"), "--gpus", "2", "--gpu-memory", f"{memory}GB"]
    arguments.append(f"--model.init_args.policy.init_args.path={write_config(model, tmp_path)}")
    assert plan.main(arguments) == 1
    shown = capsys.readouterr().out
    peak = float(re.search(r"^peak\s+([\d.]+)", shown, re.MULTILINE)[1])  # type: ignore[index]
    assert "does not fit" in shown
    sizes = [float(size) for size in re.findall(r": ([\d.]+) GB$", shown, re.MULTILINE)]
    assert peak > memory
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] <= memory
    assert all(size > memory for size in sizes[:-1])
    assert remedy in shown


def test_a_plan_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    recipe = str(REPO / "recipes" / "rlaif_qwen2_5_vl_3b_lora_1x80gb.yaml")
    for wrong, message in (
        (["--gpu-memory", "much"], "--gpu-memory is 'much'; it must be a size such as 80GB"),
        (["--gpus", "0"], "--gpus is 0; it must be 1 or more"),
        (["--video", "large"], "--video is 'large'; it must be height x width"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            plan.main(["--config", recipe, *wrong])
    FAMILIES["smolvlm"](str(tmp_path))
    for path in tmp_path.iterdir():
        if path.name != "config.json":  # a checkpoint's own processor would say how long a prompt is
            path.unlink()
    arguments = ["--config", recipe, f"--model.init_args.policy.init_args.path={tmp_path}"]
    with pytest.raises(ValueError, match=r"--prompt-tokens is missing: .*; this is smolvlm"):
        plan.main(arguments)
    assert plan.main([*arguments, "--prompt-tokens", "800"]) == 0
