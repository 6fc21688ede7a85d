"""The completions board: every text can be read to its end, whatever its length and script."""

from __future__ import annotations

import pytest
import torch
from PIL import Image, ImageFont

from orlaif.training.callbacks import board_text as text_file
from orlaif.training.callbacks.board import board_rows, board_text, draw_board
from orlaif.training.callbacks.board_text import _font_of, _fonts, _has, _runs, wrapped
from orlaif.types import VideoClip, VideoPrompt

LONG = (
    "She takes the knife from the counter, walks to the sink, washes it and dries it with a towel, and then again. " * 3
)
CLIP = VideoClip(
    frames=torch.full((2, 3, 96, 128), 128, dtype=torch.uint8),
    pts_s=torch.tensor([0.0, 1.0], dtype=torch.float64),
    duration_s=2.0,
    path="a.mp4",
)


def board(*answers: str, question: str = "what ?", reference: str | None = None, id: str = "p") -> Image.Image:
    prompt = VideoPrompt(id=id, video="a.mp4", question=question, answer=reference)
    size = len(answers)
    return draw_board(prompt, CLIP, answers, torch.arange(size), torch.zeros(size), torch.full((size,), 4))


@pytest.mark.parametrize("where", ["answer", "question", "reference", "id"])
def test_the_end_of_a_long_text_is_drawn(where: str) -> None:
    first, second = (
        board(LONG + end) if where == "answer" else board("red", **{where: LONG + end})  # type: ignore[arg-type]
        for end in ("puts it back", "throws it away")
    )
    assert first.tobytes() != second.tobytes()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("红色的汽车", "蓝色的飞机"),
        ("зелёный", "красный"),
        ("أحمر", "أزرق"),
        ("लाल", "नीला"),
        ("빨강", "파랑"),
        ("🐕", "🐈"),
        ("a\nb", "a b"),
        ("x" * 500 + "y", "x" * 500 + "z"),
        ("a\u200bb", "ab"),
    ],
)
def test_two_different_answers_look_different(one: str, other: str) -> None:
    assert board(one).tobytes() != board(other).tobytes()


def test_no_line_is_wider_than_its_place() -> None:
    """Ink ends before the right edge, and the last line of text stands above the lower one."""
    picture = board(LONG, "w" * 700, "红" * 400)
    ink = torch.frombuffer(bytearray(picture.convert("L").tobytes()), dtype=torch.uint8)
    ink = ink.view(picture.height, picture.width) < 200
    assert not bool(ink[:, -3:].any())
    assert not bool(ink[-4:].any())


def test_words_from_right_to_left_are_in_their_order() -> None:
    """The first word of an Arabic line stands at its right, where one font has all of the line."""
    line = "\u0627\u0628 \u0645\u0645\u0645\u0645 ok"
    if not any(all(_has(font, character) for character in line) for font in _fonts()):
        pytest.skip("no font of this machine has Arabic")
    assert [run for _, run in _runs(line)] == [line]
    assert [run for _, run in _runs("ab")] == ["ab"]


def test_a_script_without_a_font_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With Pillow's own font alone, which has neither Chinese nor Korean nor emoji."""
    monkeypatch.setattr(text_file, "_fonts", lambda: (ImageFont.load_default(size=14),))
    monkeypatch.setattr(text_file, "_TOLD", set())
    _font_of.cache_clear()
    try:
        assert wrapped("红色 汽车", 1000) == ["\\u7ea2\\u8272 \\u6c7d\\u8f66"]
        assert wrapped("빨강", 1000) == ["\\ube68\\uac15"]
        assert wrapped("🐕🐈", 1000) == ["\\U0001f415\\U0001f408"]
    finally:
        _font_of.cache_clear()
    said = [record.getMessage() for record in caplog.records]
    assert [one.split("Debian's ")[1].split()[0] for one in said] == ["fonts-noto-cjk"] * 2 + ["fonts-symbola"]


def test_lines_of_a_text() -> None:
    assert wrapped("one two", 1000) == ["one two"]
    assert wrapped("one\ntwo", 1000) == ["one", "two"]
    lines = wrapped(LONG, 300)
    assert len(lines) > 5
    assert "".join(lines) == LONG
    cut = wrapped("a\n" * 100 + "the end", 300)
    assert cut[30] == "... 41 lines more ..."
    assert cut[-1] == "the end"


def test_the_same_as_text_best_first() -> None:
    ranks, advantages = torch.tensor([1, -1, 0]), torch.tensor([-0.5, 0.0, 0.5])
    rows = board_rows(("a|b", "none", "红色\nsecond line"), ranks, advantages, torch.tensor([3, 1, 2]))
    assert [row[0] for row in rows] == ["0", "1", "-"]
    text = board_text(VideoPrompt(id="p", video="a.mp4", question="what *is* it ?", answer="red"), rows)
    assert "| 0 | +0.500 | 2 | 红色 ⏎ second line |" in text
    assert "| 1 | -0.500 | 3 | a&#124;b |" in text
    assert "what &#42;is&#42; it ?" in text
