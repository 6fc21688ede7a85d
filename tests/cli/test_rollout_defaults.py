"""A rollout that is laid over a recipe's has its own defaults, whichever way it is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_mistakes import REPO, printed

BASE = ["fit", "--config", str(REPO / "recipes" / "demo_rlaif.yaml")]
ROLLOUT = "--model.init_args.rollout"
VLLM = "orlaif.rollout.VLLMRollout"


def overlay(folder: Path, **init_args: Any) -> list[str]:
    path = folder / "overlay.yaml"
    rollout = {"class_path": VLLM, "init_args": init_args}
    path.write_text(json.dumps({"model": {"init_args": {"rollout": rollout}}}))
    return ["--config", str(path)]


@pytest.mark.parametrize("way", ["word", "class_path", "file"])
def test_what_the_recipe_does_not_say_is_the_classs_default(
    way: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    named = {"word": [f"{ROLLOUT}={VLLM}"], "class_path": [f"{ROLLOUT}.class_path={VLLM}"], "file": overlay(tmp_path)}
    read = printed(capsys, *BASE, *named[way])["model"]["init_args"]["rollout"]
    assert read["class_path"] == VLLM
    assert read["init_args"]["importance_cap"] == 2.0
    assert read["init_args"]["correction"] is None
    assert read["init_args"]["gpu_memory_utilization"] == 0.3
    assert read["init_args"]["group_size"] == 8  # the recipe's
    assert read["init_args"]["sampling"]["max_new_tokens"] == 4


def test_what_is_said_of_a_correction_is_kept(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def said(*words: str) -> Any:
        return printed(capsys, *BASE, *words)["model"]["init_args"]["rollout"]["init_args"]

    assert said(*overlay(tmp_path, correction={"kind": "mask", "low": 0.5}))["correction"]["high"] == 2.0
    assert said(*overlay(tmp_path, correction={"high": None}))["correction"]["high"] is None
    assert said(*overlay(tmp_path, importance_cap=None))["importance_cap"] is None
    assert said(f"{ROLLOUT}={VLLM}", f"{ROLLOUT}.init_args.importance_cap=3")["importance_cap"] == 3.0
    assert said(f"{ROLLOUT}.init_args.correction.level=sequence")["correction"]["level"] == "sequence"
