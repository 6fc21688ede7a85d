"""An export is complete or not there, and replaces nothing but an export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from orlaif.policy import Policy
from orlaif.policy.export import MARK, check_loads, check_target
from orlaif.policy.families import Family
from orlaif.policy.hub import processor_files

LORA = {"r": 4, "target_modules": ["q_proj"]}


def make(path: str, lora: Any = None) -> Policy:
    return Policy(path, lora=lora, dtype="float32", prefix="duplicate")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_export_that_fails_leaves_the_one_before(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    make(tiny_model).export(str(out))
    before = contents(out)

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("orlaif.policy.export.copy_processor", full)  # behind the weights
        with pytest.raises(OSError, match="No space"):
            make(tiny_model, LORA).export(str(out))
    assert contents(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    make(tiny_model, LORA).export(str(out))
    assert not (out / "model.safetensors").exists()
    assert json.loads((out / MARK).read_text())["kind"] == "adapter"


def test_what_a_killed_export_left_is_no_part_of_the_next(tiny_model: str, tmp_path: Path) -> None:
    left = tmp_path / "out.unfinished"
    left.mkdir()
    (left / "adapter_config.json").write_text("{")
    make(tiny_model).export(str(tmp_path / "out"))
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    assert not left.exists()


def test_a_folder_with_something_else_is_not_touched(tiny_model: str, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(ValueError, match=r"it holds files that no export wrote \(such as thesis.tex\)"):
        make(tiny_model).export(str(tmp_path))
    assert (tmp_path / "thesis.tex").read_text() == "years"
    with pytest.raises(ValueError, match="that is a file"):
        check_target(str(tmp_path / "thesis.tex"))


def test_the_start_of_a_run_is_not_replaced_by_its_end(tiny_model: str, tmp_path: Path) -> None:
    make(tiny_model).export(str(tmp_path / "out"))
    with pytest.raises(ValueError, match="where the run starts from"):
        make(str(tmp_path / "out"), LORA).export(str(tmp_path / "out"))
    make(str(tmp_path / "out"), LORA).export(str(tmp_path / "next"))


def test_an_export_without_a_weight_does_not_pass(tiny_model: str, tmp_path: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(tiny_model, dtype=torch.float32)
    weights = {name: value for name, value in model.state_dict().items() if "layers.1.mlp.up_proj" not in name}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ValueError, match=r"the export lacks model.language_model.layers.1.mlp.up_proj.weight"):
        check_loads(str(tmp_path), Family())


def test_files_that_a_processor_names_go_with_it(tmp_path: Path) -> None:
    (tmp_path / "processor_config.json").write_text(json.dumps({"video_processor": {"font": "times.bin"}}))
    (tmp_path / "additional_chat_templates").mkdir()
    for name in (
        *("times.bin", "other.bin", "tokenizer.json", "merges.txt", "config.json", "model.safetensors", "Roboto.ttf"),
        *("chat_template.jinja", "additional_chat_templates/tools.jinja"),
    ):
        (tmp_path / name).write_text("")
    assert processor_files(str(tmp_path)) == [
        "Roboto.ttf",
        "additional_chat_templates/tools.jinja",
        "chat_template.jinja",
        "merges.txt",
        "processor_config.json",
        "times.bin",
        "tokenizer.json",
    ]
