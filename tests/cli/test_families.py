"""``orlaif families``: a line for each family, whatever becomes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orlaif.cli.families import HEADINGS, main


def test_selected_families_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--family", "qwen3_vl", "hyperclovax_vision_v2", "gemma4", "--format", "json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["about"].startswith("transformers ")
    rows = {row["family"]: row for row in said["families"]}
    assert list(rows) == ["qwen3_vl", "hyperclovax_vision_v2", "gemma4"]
    plain = {"loads": True, "layout": "shared", "rollout": "shared", "fused_head": "exact"}
    assert {name: rows["qwen3_vl"][name] for name in plain} == plain
    assert rows["qwen3_vl"]["reason"].startswith("log-probs equal the model's own to ")
    assert rows["hyperclovax_vision_v2"]["fused_head"] == "exact, scale 2"
    assert rows["gemma4"]["fused_head"] == "exact, soft cap 30"
    assert rows["gemma4"]["rollout"] == "own"


def test_a_family_that_fails_is_a_line_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from orlaif import tiny

    made = tiny.tiny_model

    def broken(model_type: str, folder: Path, **more: Any) -> str:
        if model_type == "smolvlm":
            raise RuntimeError("no such thing\nat all")
        return made(model_type, folder, **more)

    monkeypatch.setattr(tiny, "tiny_model", broken)
    assert main(["--family", "smolvlm", "qwen3_vl", "--format", "markdown"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"| {' | '.join(HEADINGS)} |"
    assert lines[2] == "| smolvlm | no |  |  |  | no such thing at all |"
    assert lines[3].startswith("| qwen3_vl | yes | shared | shared | exact | log-probs equal")


def test_columns_of_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--family", "qwen3_vl"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["family", "loads", "layout", "rollout", "fused", "head", "reason"]
    assert lines[1].index("log-probs") == lines[0].index("reason")


def test_a_family_that_transformers_does_not_have() -> None:
    with pytest.raises(
        ValueError, match="--family is 'qwen3_vll', which is no video family here; did you mean 'qwen3_vl'"
    ):
        main(["--family", "qwen3_vll"])
