"""The page for those who come from elsewhere names what is there: our keys, and TRL's of the installed version."""

from __future__ import annotations

import dataclasses
import re

import pytest
from trl import GRPOConfig

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
