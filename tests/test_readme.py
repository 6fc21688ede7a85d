"""The examples of the README, run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch

from orlaif.cli.recipe import OrlaifCLI
from orlaif.data.datasets import JsonlDataset
from orlaif.types import CandidateGroup, VideoClip, VideoPrompt
from tests.conftest import REPO


def blocks(language: str, page: str = "README.md") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (REPO / page).read_text(), re.DOTALL)


def test_the_oracle_of_ones_own() -> None:
    (code,) = blocks("python")
    assert len(code.strip().splitlines()) <= 16
    scope: dict = {}
    exec(code, scope)
    frames = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    clip = VideoClip(frames=frames, pts_s=torch.tensor([0.0, 1.0], dtype=torch.float64), duration_s=2.0, path="a.mp4")
    prompt = VideoPrompt(id="1", video="a.mp4", question="q", answer="red")
    group = CandidateGroup(prompt=prompt, clip=clip, answers=("it is red", "blue", "red", "red"))
    assert scope["ShortAndRight"]().rank([group]).ranks.tolist() == [[1, 2, 0, 0]]


def test_the_kernels_first_example() -> None:
    (code,) = blocks("python", "kernels/README.md")
    assert len(code.strip().splitlines()) <= 12
    scope: dict = {}
    exec(code, scope)
    assert bool(scope["hidden"].grad.isfinite().all())
    assert float(scope["metrics"]["kl"]) == 0.0  # the reference is the policy itself


def test_the_recipe(tmp_path: Path) -> None:
    (recipe,) = blocks("yaml")
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe)
    cli = OrlaifCLI(["--config", str(path), f"--run_dir={tmp_path}"], run=False)
    assert cli.model.policy.lora == {"r": 16, "target_modules": "all-linear"}
    assert cli.trainer.accumulate_grad_batches == 4


def test_the_rows(tmp_path: Path) -> None:
    (rows,) = blocks("json")
    path = tmp_path / "rows.jsonl"
    path.write_text(rows)
    dataset = JsonlDataset(str(path))
    assert [prompt.answer for prompt in dataset.prompts] == [json.loads(row)["answer"] for row in rows.splitlines()]
    assert dataset[1].end_s == 20.5
