from __future__ import annotations

import json
from pathlib import Path

import pytest

from orlaif.data.datasets import JsonlDataset

GOOD = {"id": "1", "video": "a.mp4", "question": "what?"}


def write(path: Path, *rows: object) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def test_rows_become_prompts(tmp_path: Path) -> None:
    full = {
        **GOOD,
        "id": "2",
        "video": "/v/b.mp4",
        "answer": "red",
        "options": ["red", "blue"],
        "start_s": 1,
        "end_s": 2.5,
    }
    dataset = JsonlDataset(write(tmp_path / "d.jsonl", GOOD, "", full))
    assert len(dataset) == 2
    assert dataset[0].video == str(tmp_path / "a.mp4")
    assert dataset[0].answer is None
    assert (dataset[1].video, dataset[1].options, dataset[1].end_s) == ("/v/b.mp4", ("red", "blue"), 2.5)
    assert JsonlDataset(dataset.path, video_root="/media")[0].video == "/media/a.mp4"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**GOOD, "anwser": "red"}, "line 2: unknown field 'anwser'; known are id, video, question, answer"),
        ({**GOOD, "question": "  "}, "line 2: field 'question' is '  '; it must be a text that is not empty"),
        ({"id": "2", "question": "q"}, "line 2: field 'video' is missing"),
        ({**GOOD, "id": 2}, "line 2: field 'id' is 2; it must be a text"),
        ({**GOOD, "options": ["red"]}, "line 2: field 'options' is"),
        ({**GOOD, "start_s": "1"}, "line 2: field 'start_s' is '1'; it must be a number of seconds"),
        ({**GOOD, "id": "2", "start_s": 3, "end_s": 2}, "line 2: VideoPrompt.end_s is 2"),
        ('{"id": "2",', "line 2: not valid JSON"),
        ([1, 2], "line 2: a row must be a JSON object, found list"),
        (GOOD, "line 2: id '1' was used before, on line 1"),
    ],
)
def test_a_broken_row_is_named_by_file_line_and_field(row: object, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", GOOD, row)
    with pytest.raises(ValueError, match=message.replace("(", r"\(")) as raised:
        JsonlDataset(path).load()
    assert str(raised.value).startswith(path)


def test_missing_and_empty_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        JsonlDataset(str(tmp_path / "x.jsonl")).load()
    with pytest.raises(ValueError, match="no rows"):
        JsonlDataset(write(tmp_path / "e.jsonl", "")).load()
