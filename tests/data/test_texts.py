"""What a data file says is read as it was written, or named: encodings, parts without use, tokens spelled in texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orlaif import VideoDataModule
from orlaif.data.benchmarks import read_subtitles
from orlaif.data.datasets import JsonlDataset, StreamingDataset
from orlaif.data.formats import ChatMessages, LLaVAConversations, VLMRLAIFPrompts
from orlaif.data.preferences import LLaVAHoundPreferences, PreferenceJsonl, TRLPreferences
from orlaif.policy import Policy
from orlaif.policy.encoding import ProcessorEncoder
from orlaif.types import KnowsSpecialTexts

GOOD = {"id": "1", "video": "a.mp4", "question": "café ?"}


def jsonl(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


# --------------------------------------------------------------------------------------------------------- encodings


@pytest.mark.parametrize("name", ["d.jsonl", "d.json"])
def test_encodings(name: str, tmp_path: Path) -> None:
    """UTF-8 with and without a mark is read; Latin-1 and UTF-16 are named, with the line where there is one."""
    text = json.dumps(GOOD, ensure_ascii=False)
    text = f"[\n{text}\n]" if name.endswith("json") else f"\n{text}\n"
    path = tmp_path / name
    for encoding in ("utf-8", "utf-8-sig"):
        path.write_bytes(text.encode(encoding))
        assert JsonlDataset(str(path))[0].question == "café ?"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"{name}, line 2: not UTF-8 \(byte 0xe9 at .*'.*café \?.*'"):
        JsonlDataset(str(path)).load()
    for encoding in ("utf-16", "utf-16-le", "utf-32"):
        path.write_bytes(text.encode(encoding))
        with pytest.raises(ValueError, match=rf"{name}: it is UTF-16 or UTF-32"):
            JsonlDataset(str(path)).load()


def test_every_kind_of_line_break_counts_one_line(tmp_path: Path) -> None:
    rows = [json.dumps({**GOOD, "id": str(i)}) for i in range(3)]
    for number, ending in enumerate(("\n", "\r\n", "\r")):
        path = tmp_path / f"{number}.jsonl"
        path.write_bytes(ending.join([*rows, "{"]).encode())
        dataset = JsonlDataset(str(path))
        (problem,) = dataset.problems()
        assert f"{number}.jsonl, line 4: not valid JSON" in problem
        assert len(dataset) == 3


def test_half_of_a_surrogate_pair_is_no_text(tmp_path: Path) -> None:
    """``\\ud83d`` alone, as an emoji that was cut; whole pairs, and a backslash before a u, are texts."""
    (tmp_path / "d.jsonl").write_text('{"id": "1", "video": "a", "question": "q \\ud83d\\ude00 \\\\ud83d"}\n')
    assert JsonlDataset(str(tmp_path / "d.jsonl"))[0].question == "q 😀 \\ud83d"
    for name, text in (
        ("d.jsonl", '{"id": "1", "video": "a", "question": "q", "options": ["x", "\\ud83d"]}'),
        ("d.json", '[{"id": "1", "video": "a", "question": "q", "options": ["x", "\\ud83d"]}]'),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=rf"{name}, \w+ 1: field 'options' has \\ud83d, half of a surrogate"):
            JsonlDataset(str(tmp_path / name)).load()


@pytest.mark.parametrize(("name", "form"), [("d.jsonl", "%s"), ("d.json", "[%s]")])
def test_a_nul_is_no_text(name: str, form: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(form % '{"id": "1", "video": "a", "question": "q \\u0000"}')
    with pytest.raises(ValueError, match=rf"{name}, \w+ 1: field 'question' has \\u0000, a NUL, which is no text"):
        JsonlDataset(str(tmp_path / name)).load()


def test_subtitles_that_are_not_utf_8_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.srt"
    path.write_bytes("1\r\n00:00:01,500 --> 00:00:02,000\r\ncafé\r\n".encode("utf-8-sig"))
    assert read_subtitles(str(path)) == [(1.5, "café")]
    path.write_bytes("1\n00:00:01,500 --> 00:00:02,000\ncafé\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a.srt, line 3: not UTF-8"):
        read_subtitles(str(path))


# ------------------------------------------------------------------------------------------------- what has no use


VIDEO, TEXT = {"type": "video", "path": "a.mp4"}, {"type": "text", "text": "what ?"}
ANSWER = {"role": "assistant", "content": "red"}


def chat(*parts: Any, answer: Any = ANSWER, **fields: Any) -> dict[str, Any]:
    return {"id": "m", "messages": [{"role": "user", "content": list(parts)}, answer], **fields}


def llava(question: str, answer: str = "red", **fields: Any) -> dict[str, Any]:
    said = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": "l", "video": "a.mp4", "conversations": said, **fields}


TRL = {"id": "t", "video": "a.mp4", "prompt": "what ?", "chosen": "x", "rejected": "y"}
ASKED = {"role": "user", "content": "what ?"}


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        (
            ChatMessages,
            chat({"type": "image"}, VIDEO, TEXT),
            "it must name one file, as path, image or url",
        ),
        (ChatMessages, chat({"type": "audio", "audio": "a.wav"}, VIDEO, TEXT), "part of type 'audio'"),
        (ChatMessages, chat({"type": "video_url", "video_url": {}}, TEXT), "part of type 'video_url'"),
        (ChatMessages, chat({**VIDEO, "video": "b.mp4"}, TEXT), "must name one file"),
        (ChatMessages, chat({**VIDEO, "fps": 2.0}, TEXT), "a video part, has 'fps': 2.0"),
        (ChatMessages, chat(VIDEO, TEXT, tools=[{"name": "zoom"}]), "field 'tools' is .* remove it"),
        (
            ChatMessages,
            chat(VIDEO, TEXT, images=["map.png"]),
            "field 'images' names 1, .* has 0 places",
        ),
        (ChatMessages, chat(VIDEO, TEXT, anwser="red"), "field 'anwser' is 'red'.* by one of id, messages"),
        (LLaVAConversations, llava("<video>\nQ?", fps=2), "field 'fps' is 2"),
        (LLaVAHoundPreferences, {**TRL, "choosen": "z"}, "field 'choosen' is 'z'"),
        (TRLPreferences, {**TRL, "completion": "z"}, "field 'completion' is 'z'"),
        (ChatMessages, chat(VIDEO, TEXT, answer={**ANSWER, "tool_calls": [1]}), "message 2 has 'tool_calls'"),
        (ChatMessages, chat(VIDEO, TEXT, answer={**ANSWER, "content": [VIDEO, TEXT]}), "message 2 has a video"),
        (LLaVAConversations, llava("<video>\n<video>\nWhich first?"), "turn 1 has two videos or more"),
        (LLaVAConversations, llava("What is <video> for?"), "has '<video>' within its text"),
        (LLaVAConversations, llava("<video>\nQ?", image="map.png"), "field 'image' names 1, .* has 0 places"),
        (LLaVAConversations, llava("<video>\nQ?", start_s=3.0), "field 'start_s' is 3.0"),
        (LLaVAHoundPreferences, {**TRL, "prompt": "What is <video> for?"}, "has '<video>' within its text"),
        (TRLPreferences, {**TRL, "images": ["x.png"]}, "field 'images' names 1, .* has 0 places"),
        (TRLPreferences, {**TRL, "prompt": [ASKED, ANSWER]}, "it must end with a question"),
        (TRLPreferences, {**TRL, "chosen": [ANSWER, ASKED]}, "a list of one message"),
        (TRLPreferences, {**TRL, "chosen": [ASKED]}, "of role 'user'"),
        (TRLPreferences, {**TRL, "chosen": [{**ANSWER, "content": [VIDEO, TEXT]}]}, "an answer is text"),
    ],
)
def test_what_an_adapter_has_no_use_for_is_refused(kind: Any, row: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"d.jsonl, line 1: .*{message}"):
        kind(jsonl(tmp_path / "d.jsonl", row)).load()


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('{"id": "1", "video": "a", "question": "q", "question": "r"}', "question"),
        ('{"id": "1", "video": "a", "question": "q", "tags": {"k": "x", "k": "x"}}', "k"),
    ],
)
def test_a_key_that_is_given_twice_is_refused(text: str, key: str, tmp_path: Path) -> None:
    good = '{"id": "0", "video": "a", "question": "q"}'
    (tmp_path / "d.jsonl").write_text(f"{good}\n{text}\n")
    (tmp_path / "d.json").write_text(f'{{"data": [{good}, {text}]}}')
    for name, place in (("d.jsonl", "line 2"), ("d.json", "row 2")):
        data = JsonlDataset(str(tmp_path / name))
        (problem,) = data.problems()
        assert problem.startswith(f"{tmp_path / name}, {place}: field {key!r} is given twice")
        assert [prompt.id for prompt in data.readable()] == ["0"]
    (tmp_path / "d.json").write_text(f'{{"data": [], "data": [{good}]}}')
    with pytest.raises(ValueError, match=r"d.json: field 'data' is given twice"):
        JsonlDataset(str(tmp_path / "d.json")).load()


def test_what_is_empty_or_only_describes_a_row_may_stay(tmp_path: Path) -> None:
    row = chat({**VIDEO, "text": None}, {**TEXT, "path": None}, images=[], source="web", num_turns=2)
    (prompt,) = ChatMessages(jsonl(tmp_path / "d.jsonl", row)).prompts
    assert (prompt.question, prompt.answer) == ("what ?", "red")


@pytest.mark.parametrize(
    "question", ["<video>\nWhich tag?", "Which tag?\n<video>", "<image>\nWhich tag?", "Which tag?"]
)
def test_a_tag_is_taken_away_only_where_it_stands_for_the_video(question: str, tmp_path: Path) -> None:
    (prompt,) = LLaVAConversations(jsonl(tmp_path / "d.jsonl", llava(question, "The <video> tag."))).prompts
    assert (prompt.question, prompt.answer) == ("Which tag?", "The <video> tag.")


def test_earlier_messages_of_trl_are_history(tmp_path: Path) -> None:
    row = {**TRL, "prompt": [ASKED, ANSWER, {"role": "user", "content": "where ?"}]}
    (prompt,) = TRLPreferences(jsonl(tmp_path / "d.jsonl", row)).prompts
    assert (prompt.question, prompt.history) == ("where ?", (("what ?", "red"),))


def test_a_row_of_vlm_rlaif_asks_one_question(tmp_path: Path) -> None:
    row = {"uid": 1, "images": ["v/1.jpg", "v/2.jpg"], "conversations": llava("q?")["conversations"] * 2}
    with pytest.raises(ValueError, match="has 4 turns; a row asks one question"):
        VLMRLAIFPrompts(jsonl(tmp_path / "d.jsonl", row)).load()


# ----------------------------------------------------------------------------------------------------- spelled tokens


SPELLED = "a <|video_pad|> b"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("question", SPELLED),
        ("answer", "<|im_end|>"),
        ("options", ["red", SPELLED]),
        ("history", [["q", SPELLED]]),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_row_that_spells_a_special_token_is_named(
    field: str, value: Any, stream: bool, policy: Policy, tmp_path: Path
) -> None:
    """By file, line and field, before anything is decoded; in a stream when it is read."""
    rows = [{**GOOD, "id": str(i), "question": "what ?"} for i in range(3)]
    rows[2][field] = value
    source = JsonlDataset(jsonl(tmp_path / "d.jsonl", *rows))
    module = VideoDataModule(
        train=StreamingDataset(source) if stream else source, encoder=ProcessorEncoder(policy.processor)
    )
    named = rf"d.jsonl, line 3: field '{field}' spells '<\|.*, which is no text"
    if stream:
        module.setup("fit")
        with pytest.raises(ValueError, match=named):
            list(StreamingDataset(source))
    else:
        with pytest.raises(ValueError, match=named):
            module.setup("fit")
    assert len(module.datasets["train"].problems()) == 1  # type: ignore[union-attr]


def test_preferences_that_spell_a_special_token(tmp_path: Path) -> None:
    row = {**GOOD, "answers": ["x", "</s>"], "ranks": [0, 1]}
    dataset = PreferenceJsonl(jsonl(tmp_path / "d.jsonl", row))
    dataset.load()
    dataset.forbid(frozenset({"</s>"}))
    with pytest.raises(ValueError, match=r"d.jsonl, line 1: field 'answers' spells '</s>'"):
        dataset.load()


def test_an_encoder_knows_its_special_texts(policy: Policy) -> None:
    encoder = ProcessorEncoder(policy.processor)
    assert isinstance(encoder, KnowsSpecialTexts)
    assert {"<|video_pad|>", "<|image_pad|>", "<|im_end|>", "<|im_start|>"} <= encoder.special_texts
    assert not any(word in encoder.special_texts for word in ("video", "what", "red"))
