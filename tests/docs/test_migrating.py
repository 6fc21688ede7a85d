"""The page for those who come from elsewhere names what is there: our keys, and TRL's of the installed version."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from trl import GRPOConfig

from orlaif.data.datasets import JsonlDataset
from orlaif.data.formats import ChatMessages
from tests.conftest import REPO
from tests.docs.keys import CLASSES, takes

ROWS = [
    [cell.strip() for cell in line[1:-1].split("|")]
    for line in (REPO / "docs" / "reference" / "migrating.md").read_text().splitlines()
    if line.startswith("| `")
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_our_keys_are_there(row: list[str]) -> None:
    assert len(row) == 5
    inside = ""
    for key in re.findall(r"`([\w.]+)[^`]*`", row[0].split(" (")[0]):
        if key.startswith("orlaif") or not re.fullmatch(r"[a-z_.]+", key):
            continue
        whole = key if "." in key or key in CLASSES or not inside else f"{inside}.{key}"
        where, _, name = whole.rpartition(".")
        assert takes(where, name), f"{where or 'OracleRLAIF'} takes no {name}"
        inside = where


def test_trls_keys_are_there() -> None:
    known = {field.name for field in dataclasses.fields(GRPOConfig)} | {"model", "reward_funcs", "peft_config"}
    named = {
        key
        for row in ROWS
        for key in re.findall(r"`([a-z_]+)[^`]*`", row[1])
        if not row[1].startswith("accelerate") or key == "deepspeed"
    }
    assert len(named) > 20
    assert sorted(named - known) == []


ASKED, SAID = "Which way?", {"role": "assistant", "content": "left"}
MARKED = {"role": "user", "content": f"<video>{ASKED}"}
PARTS = {"role": "user", "content": [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": ASKED}]}


@pytest.mark.parametrize(
    ("reads", "row"),
    [
        pytest.param(ChatMessages, {"messages": [PARTS, SAID]}, id="TRL"),
        pytest.param(ChatMessages, {"messages": [MARKED, SAID], "videos": ["a.mp4"]}, id="ms-swift"),
        pytest.param(
            JsonlDataset, {"id": "q", "messages": [MARKED], "videos": ["a.mp4"], "answer": "left"}, id="renamed"
        ),
        pytest.param(JsonlDataset, {"id": "q", "messages": [PARTS], "answer": "left"}, id="TRL's prompt, renamed"),
    ],
)
def test_their_rows_are_read(reads: Any, row: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    (prompt,) = reads(str(tmp_path / "rows.jsonl"))
    assert (prompt.question, prompt.answer, Path(prompt.video).name) == (ASKED, "left", "a.mp4")


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"messages": [MARKED], "videos": ["a.mp4"], "solution": "left"}, "solution"),
        ({"problem": f"<video>{ASKED}", "videos": ["a.mp4"], "answer": "left"}, "problem"),
        ({"prompt": [PARTS], "answer": "left"}, "prompt"),
    ],
)
def test_a_column_to_be_renamed_is_named(row: dict[str, Any], named: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"id": "q", **row}) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=f"'{named}'"):
        list(JsonlDataset(str(tmp_path / "rows.jsonl")))
