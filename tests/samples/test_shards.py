"""Shards: killed at any byte, of several attempts and processes, bounded, hostile texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orlaif.samples import ShardWriter, read_groups
from orlaif.samples.shards import next_attempt, shards_in


def group(step: int, name: str = "a", **more: Any) -> dict[str, Any]:
    return {"step": step, "epoch": 0, "batch": step, "name": name, **more}


def names(folder: Path) -> list[tuple[int, str]]:
    return [(one["step"], one["name"]) for one in read_groups(folder)]


def wrote(folder: Path, attempt: int, process: int, groups: list[dict[str, Any]], limit_bytes: int = 10**6) -> None:
    writer = ShardWriter(folder, attempt, process, limit_bytes)
    for one in groups:
        writer.write([one])
    writer.close()


def test_cut_off_at_any_byte_the_whole_lines_are_read(tmp_path: Path) -> None:
    wrote(tmp_path, 1, 0, [group(0), group(1, "b \n c"), group(2)])
    (file,) = tmp_path.iterdir()
    data = file.read_bytes()
    lines = data.count(b"\n")
    assert lines == 4  # a line break within a text makes no line
    for end in range(len(data) + 1):
        file.write_bytes(data[:end])
        assert len(names(tmp_path)) == max(0, data[:end].count(b"\n") - 1)


def test_what_a_later_attempt_does_again_replaces_what_was_kept(tmp_path: Path) -> None:
    """Killed behind step 3, gone on from a checkpoint at 2, on one process instead of two."""
    wrote(tmp_path, 1, 0, [group(step, "first") for step in range(4)])
    wrote(tmp_path, 1, 1, [group(step, "other") for step in range(4)])
    assert next_attempt(tmp_path) == 2
    wrote(tmp_path, 2, 0, [group(2, "again")])
    assert sorted(names(tmp_path)) == [(0, "first"), (0, "other"), (1, "first"), (1, "other"), (2, "again")]


def test_an_attempt_that_kept_nothing_replaces_nothing(tmp_path: Path) -> None:
    wrote(tmp_path, 1, 0, [group(0)])
    (tmp_path / "a002-p0-000001.jsonl").write_bytes(b'{"orlaif_sam')
    assert names(tmp_path) == [(0, "a")]
    assert next_attempt(tmp_path) == 3


def test_the_oldest_go_at_the_limit(tmp_path: Path) -> None:
    text = "x" * 500
    wrote(tmp_path, 1, 0, [group(step, text) for step in range(100)], limit_bytes=16_000)
    wrote(tmp_path, 2, 0, [group(step, text) for step in range(100, 200)], limit_bytes=16_000)
    wrote(tmp_path, 2, 1, [group(0, "another process keeps its own")], limit_bytes=16_000)
    held = sum(path.stat().st_size for path in tmp_path.glob("*-p0-*"))
    assert 12_000 < held <= 16_000
    steps = [step for step, name in names(tmp_path) if name == text]
    assert steps == list(range(steps[0], 200))
    assert shards_in(tmp_path)[0].process == 1 or shards_in(tmp_path)[0].attempt == 2


def test_hostile_texts_and_numbers_come_back(tmp_path: Path) -> None:
    texts = [
        "\ud800 alone",
        "\x00\x1b[31m",
        "<script>alert(1)</script>",
        "\u2028\r\n",
        "\u202eright to left",
        "y" * 100_000,
    ]
    given = [group(i, text, logps=[-0.5, float("nan"), float("-inf")]) for i, text in enumerate(texts)]
    wrote(tmp_path, 1, 0, given)
    found = list(read_groups(tmp_path))
    assert [one["name"] for one in found] == texts
    assert found[0]["logps"] == [-0.5, None, None]
    for line in next(tmp_path.iterdir()).read_bytes().split(b"\n")[:-1]:
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_another_version_and_other_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no shard")
    assert names(tmp_path) == names(tmp_path / "missing") == []
    (tmp_path / "a001-p0-000001.jsonl").write_text('{"orlaif_samples":2}\n')
    with pytest.raises(ValueError, match="another version"):
        names(tmp_path)
    with pytest.raises(ValueError, match="limit_bytes is 0"):
        ShardWriter(tmp_path, 1, 0, 0)
