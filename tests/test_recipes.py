"""Every recipe is one that a user can run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from orlaif import VideoDataModule, plan
from orlaif.cli import read_recipe
from orlaif.evaluated import Evaluated
from tests.configs import MILLIONS, write_config
from tests.conftest import REPO

RECIPES = sorted([*(REPO / "recipes").glob("*.yaml"), *(REPO / "recipes" / "evaluation").glob("*.yaml")])
PLANNED = [recipe for recipe in RECIPES if "orlaif plan" in recipe.read_text()]


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


@pytest.mark.parametrize("recipe", PLANNED, ids=lambda p: p.stem)
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
    adapter = "lora" in text
    millions = float(re.search(r"parameters   ([\d,.]+) M", shown)[1].replace(",", ""))  # type: ignore[index]
    assert MILLIONS[path[1]] <= millions <= MILLIONS[path[1]] * (1.05 if adapter else 1.0) + 0.1
    print(shown)


def test_planned_recipes_are_all_that_the_project_promises() -> None:
    names = " ".join(recipe.name for recipe in PLANNED)
    for word in ("paper_4x80gb", "3b_lora_1x", "7b_lora_1x", "qwen3_vl_8b_full_8x", "sft_", "ranker_", "scalar_"):
        assert word in names
