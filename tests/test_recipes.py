"""Every recipe is one that a user can run."""

from __future__ import annotations

from pathlib import Path

import pytest

from orlaif import VideoDataModule
from orlaif.cli import OrlaifCLI
from orlaif.evaluated import Evaluated
from tests.conftest import REPO

RECIPES = sorted([*(REPO / "recipes").glob("*.yaml"), *(REPO / "recipes" / "evaluation").glob("*.yaml")])


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_instantiates(recipe: Path, tmp_path: Path) -> None:
    """Without weights or data: neither is touched before the run starts."""
    cli = OrlaifCLI(["--config", str(recipe), f"--run_dir={tmp_path}"], run=False)
    assert isinstance(cli.model, Evaluated)
    assert isinstance(cli.datamodule, VideoDataModule)
    assert cli.model.policy.model is None
    assert cli.trainer.default_root_dir == str(tmp_path)
    command = "test" if "evaluation" in recipe.parts else "fit"
    assert f"orlaif {command} --config {recipe.relative_to(REPO)}" in recipe.read_text()
