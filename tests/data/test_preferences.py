"""Formats of compared answers, by hand, and their broken forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orlaif.data.preferences import LLaVAHoundPreferences, PreferenceJsonl, TRLPreferences

OWN = {"id": "1", "video": "a.mp4", "question": "q?", "answers": ["x", "y", "z"], "ranks": [1, 0, 1]}
HOUND = {"id": "h", "video": "msvd/v1", "prompt": "<video>\nWho runs?", "answer": "dog", "chosen": "a", "rejected": "b"}
HOUND |= {"chosen_score": 5, "rejected_score": 2}
PART = {"type": "video", "path": "b.mp4"}
TRL = {
    "prompt": [{"role": "user", "content": [PART, {"type": "text", "text": "Who?"}]}],
    "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "a dog"}]}],
    "rejected": [{"role": "assistant", "content": "a cat"}],
}


def written(folder: Path, *rows: Any) -> str:
    path = folder / "data.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def test_our_own(tmp_path: Path) -> None:
    (prompt,) = PreferenceJsonl(written(tmp_path, OWN)).prompts
    assert (prompt.answers, prompt.ranks) == (("x", "y", "z"), (1, 0, 1))  # type: ignore[attr-defined]
    assert prompt.video == str(tmp_path / "a.mp4")


def test_llava_hound(tmp_path: Path) -> None:
    (tmp_path / "msvd").mkdir()
    (tmp_path / "msvd" / "v1.mkv").touch()
    (prompt,) = LLaVAHoundPreferences(written(tmp_path, HOUND)).prompts
    assert prompt.video == str(tmp_path / "msvd" / "v1.mkv")
    assert prompt.question == "Who runs?"
    assert (prompt.answers, prompt.ranks) == (("a", "b"), (0, 1))  # type: ignore[attr-defined]


def test_trl(tmp_path: Path) -> None:
    plain = {"prompt": "Who?", "video": "c.mp4", "chosen": "x", "rejected": "y", "id": "mine"}
    first, second = TRLPreferences(written(tmp_path, TRL, plain), video_root="/videos").prompts
    assert (first.id, first.video, first.question) == ("1", "/videos/b.mp4", "Who?")
    assert first.answers == ("a dog", "a cat")  # type: ignore[attr-defined]
    assert (second.id, second.video, second.question) == ("mine", "/videos/c.mp4", "Who?")


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        (PreferenceJsonl, {**OWN, "ranks": [0, 1]}, "expected one for each of 3 answers"),
        (PreferenceJsonl, {**OWN, "ranks": [0, 1, "2"]}, "field 'ranks' is"),
        (PreferenceJsonl, {**OWN, "answers": "x"}, "field 'answers' is 'x'"),
        (PreferenceJsonl, {**OWN, "question": ""}, "field 'question' is ''"),
        (PreferenceJsonl, {**OWN, "what": 1}, "unknown field 'what'"),
        (PreferenceJsonl, [1], "must be a JSON object, found list"),
        (LLaVAHoundPreferences, {**HOUND, "chosen": None}, "field 'chosen' is None"),
        (LLaVAHoundPreferences, {**HOUND, "prompt": "<video>"}, "PreferencePrompt.question is empty"),
        (TRLPreferences, {**TRL, "prompt": "Who?"}, "0 videos or images in 'prompt' and 'video'"),
        (TRLPreferences, {**TRL, "video": "c.mp4"}, "2 videos"),
        (TRLPreferences, {**TRL, "chosen": []}, "field 'chosen' is"),
        (TRLPreferences, {**TRL, "rejected": [{"role": "assistant", "content": 3}]}, "whose content is 3"),
        (TRLPreferences, {**TRL, "prompt": [{"role": "user", "content": [PART]}]}, "message 1 has no text"),
    ],
)
def test_broken_rows_are_named_by_line_and_field(kind: Any, row: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"data.jsonl, line 1: .*{message}"):
        kind(written(tmp_path, row)).load()
