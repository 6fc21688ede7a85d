"""Every format that others publish, by hand to its schema, and its broken forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orlaif.data.benchmarks import OpenEndedQA, VideoChatGPT, VideoMME, read_subtitles
from orlaif.data.datasets import JsonlDataset, RowDataset
from orlaif.data.formats import ChatMessages, LLaVAConversations, VLMRLAIFInstructions, VLMRLAIFPrompts
from orlaif.data.preferences import VLMRLAIFRewards

TALK = [
    {"from": "human", "value": "<video>\nWho runs?"},
    {"from": "gpt", "value": "a dog"},
    {"from": "human", "value": "Where?"},
    {"from": "gpt", "value": "in a park"},
]
LLAVA = {"id": "c", "video": "msvd/v1", "conversations": TALK}
IMAGES = ["v_x/01.jpg", "v_x/02.jpg", "v_x/03.jpg"]
SFT = {"id": "s", "src_data": "anet", "conversations": TALK[:2], "images": IMAGES}
REWARD = {
    **SFT,
    "conversations": TALK[:1],
    "output_1": {"from": "gpt", "value": "a cat"},
    "output_2": {"from": "gpt", "value": "a dog"},
    "preference": 2,
}
RL = {**SFT, "uid": 17, "conversations": TALK[:1]}
VIDEO_PART = {"type": "video", "path": "b.mp4"}
CHAT = {
    "id": "m",
    "messages": [
        {"role": "user", "content": [VIDEO_PART, {"type": "text", "text": "Who?"}]},
        {"role": "assistant", "content": "a dog"},
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": [{"type": "text", "text": "in a park"}]},
    ],
}
MME = {
    "video_id": "001",
    "duration": "short",
    "domain": "Knowledge",
    "sub_category": "Humanity & History",
    "url": "https://example.org/watch?v=AbC",
    "videoID": "AbC",
    "question_id": "001-1",
    "task_type": "OCR Problems",
    "question": "What does the sign say?",
    "options": ["A. Stop.", "B. Go.", "C. Yield.", "D. Exit."],
    "answer": "B",
}
NESTED = {
    **{name: MME[name] for name in ("video_id", "duration", "domain", "sub_category")},
    "missing": [],
    "questions": [
        {name: MME[name] for name in ("question_id", "task_type", "question", "options", "answer")} | {"response": ""},
        {**{name: MME[name] for name in ("task_type", "question", "options")}, "question_id": "001-2", "answer": "D"},
    ],
}
QUESTION = {"video_name": "abc", "question": "is it raining", "question_id": "v_abc_1"}
ANSWER = {"answer": "no", "type": 3, "question_id": "v_abc_1"}


def written(folder: Path, *rows: Any, name: str = "data.jsonl") -> str:
    path = folder / name
    if name.endswith(".parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif name.endswith(".json"):
        path.write_text(json.dumps(list(rows), indent=1))
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


ENDINGS = pytest.mark.parametrize("name", ["data.jsonl", "data.json", "data.parquet"])


@ENDINGS
def test_our_own_in_every_kind_of_file(tmp_path: Path, name: str) -> None:
    row = {"id": "1", "video": "a.mp4", "question": "q?", "frames": ["a/1.jpg", "a/2.jpg"], "frames_fps": 2.0}
    full = {**row, "id": "2", "history": [["q", "a"]], "options": ["x", "y"], "answer": "x", "start_s": 0.5}
    dataset = JsonlDataset(written(tmp_path, full, row, name=name))
    second, first = dataset.prompts
    assert first.frames == (str(tmp_path / "a/1.jpg"), str(tmp_path / "a/2.jpg"))
    assert (first.frames_fps, first.history, first.options) == (2.0, (), None)
    assert (second.history, second.options, second.start_s) == ((("q", "a"),), ("x", "y"), 0.5)


@ENDINGS
def test_llava_conversations(tmp_path: Path, name: str) -> None:
    first, second = LLaVAConversations(written(tmp_path, LLAVA, name=name), video_root="/v").prompts
    assert (first.id, first.question, first.answer, first.history) == ("c", "Who runs?", "a dog", ())
    assert first.video == "/v/msvd/v1"
    assert (second.id, second.question, second.answer) == ("c#2", "Where?", "in a park")
    assert second.history == (("Who runs?", "a dog"),)


@ENDINGS
def test_vlm_rlaif(tmp_path: Path, name: str) -> None:
    (sft,) = VLMRLAIFInstructions(written(tmp_path, SFT, name=name), fps=0.5).prompts
    assert sft.frames == tuple(str(tmp_path / image) for image in IMAGES)
    assert (sft.id, sft.video, sft.frames_fps, sft.answer) == ("s", str(tmp_path / "v_x"), 0.5, "a dog")
    (reward,) = VLMRLAIFRewards(written(tmp_path, REWARD, name=name)).prompts
    assert (reward.question, reward.answers, reward.ranks) == ("Who runs?", ("a cat", "a dog"), (1, 0))  # type: ignore[attr-defined]
    assert reward.frames == sft.frames
    (prompt,) = VLMRLAIFPrompts(written(tmp_path, RL, name=name)).prompts
    assert (prompt.id, prompt.question, prompt.answer, prompt.frames) == ("17", "Who runs?", None, sft.frames)


@ENDINGS
def test_chat_messages(tmp_path: Path, name: str) -> None:
    plain = {"id": "n", "messages": [{"role": "user", "content": CHAT["messages"][0]["content"]}]}  # type: ignore[index]
    rows = (CHAT, plain) if name != "data.parquet" else (plain,)  # Arrow has no column of texts and lists
    *first, last = ChatMessages(written(tmp_path, *rows, name=name)).prompts
    assert (last.id, last.question, last.answer, last.video) == ("n", "Who?", None, str(tmp_path / "b.mp4"))
    for prompt in first:
        assert (prompt.question, prompt.answer, prompt.history) == ("Where?", "in a park", (("Who?", "a dog"),))


@ENDINGS
def test_video_mme(tmp_path: Path, name: str) -> None:
    (tmp_path / "AbC.mp4").touch()
    (prompt,) = VideoMME(written(tmp_path, MME, name=name)).prompts
    assert (prompt.id, prompt.video, prompt.answer) == ("001-1", str(tmp_path / "AbC.mp4"), "B")
    assert prompt.options == ("A. Stop.", "B. Go.", "C. Yield.", "D. Exit.")
    assert prompt.tags == {name: MME[name] for name in ("duration", "domain", "sub_category", "task_type")}
    assert prompt.question.endswith(
        "What does the sign say?\nA. Stop.\nB. Go.\nC. Yield.\nD. Exit.\nThe best answer is:"
    )
    first, second = VideoMME(written(tmp_path, NESTED, name="nested.json")).prompts
    assert (first.id, first.answer, first.question) == ("001-1", "B", prompt.question)
    assert (second.id, second.answer, second.tags) == ("001-2", "D", prompt.tags)


def test_subtitles_go_before_the_question(tmp_path: Path) -> None:
    folder = tmp_path / "srt"
    folder.mkdir()
    srt = "1\n00:00:01,500 --> 00:00:02,000\n<b>Hello</b>\nthere\n\n2\n01:00:03.250 --> 01:00:04.000\nBye\n"
    (folder / "AbC.srt").write_text(srt)
    assert read_subtitles(str(folder / "AbC.srt")) == [(1.5, "Hello there"), (3603.25, "Bye")]
    other = {**MME, "question_id": "002-1", "videoID": "none"}
    path = written(tmp_path, MME, other)
    with_, without = VideoMME(path, subtitles=str(folder)).prompts
    assert with_.question.startswith("This video's subtitles are listed below:\nHello there\nBye\nSelect")
    assert without.question.startswith("Select")
    with pytest.raises(ValueError, match=r"VideoMME.subtitles is '/nowhere'; it must be a folder"):
        VideoMME(path, subtitles="/nowhere").load()


@ENDINGS
def test_open_ended_qa_joins_by_question_id(tmp_path: Path, name: str) -> None:
    (tmp_path / "v_abc.mkv").touch()
    answers = written(tmp_path, {**ANSWER, "question_id": "2", "answer": "yes"}, ANSWER, name=f"a_{name}")
    questions = written(tmp_path, QUESTION, {**QUESTION, "question_id": "2"}, name=name)
    first, second = OpenEndedQA(questions, answers, prefix="v_", instruction="Answer briefly.").prompts
    assert (first.id, first.answer, first.category) == ("v_abc_1", "no", "3")
    assert (first.video, first.question) == (str(tmp_path / "v_abc.mkv"), "is it raining Answer briefly.")
    assert second.answer == "yes"


def test_video_chatgpt(tmp_path: Path) -> None:
    generic = written(tmp_path, {"video_name": "v1", "Q": "What?", "A": "a dog"}, name="generic.json")
    pairs = written(tmp_path, {"video_name": "v1", "Q1": "One?", "Q2": "Two?", "A": "a dog"}, name="pairs.json")
    prompts = VideoChatGPT(generic=generic, consistency=pairs).prompts
    assert [(p.id, p.question, p.tags["file"]) for p in prompts] == [
        ("generic-1", "What?", "generic"),
        ("consistency-1/1", "One?", "consistency"),
        ("consistency-1/2", "Two?", "consistency"),
    ]
    with pytest.raises(ValueError, match="one file or more"):
        VideoChatGPT()


def without(row: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != name}


def said(*turns: dict[str, str]) -> dict[str, Any]:
    return {**LLAVA, "conversations": list(turns)}


def chat(*messages: Any) -> dict[str, Any]:
    return {"id": "m", "messages": list(messages)}


BROKEN: list[tuple[type[RowDataset], Any, str]] = [
    (LLaVAConversations, without(LLAVA, "video"), "field 'video' is None"),
    (LLaVAConversations, without(LLAVA, "id"), "field 'id' is None"),
    (LLaVAConversations, {**LLAVA, "conversations": []}, "field 'conversations' is []; it must be a list of turns"),
    (LLaVAConversations, said(*TALK[:1]), "ends with a question"),
    (LLaVAConversations, said(*TALK[1:3]), "turn 1 is .* it must be from 'human'"),
    (LLaVAConversations, said({"from": "human", "value": "<video>"}, TALK[1]), "turn 1 has no text"),
    (VLMRLAIFInstructions, without(SFT, "images"), "field 'images' is None"),
    (VLMRLAIFInstructions, {**SFT, "images": IMAGES[:1]}, "must be a list of 2 or more texts"),
    (VLMRLAIFRewards, {**REWARD, "preference": 0}, "field 'preference' is 0; it must be 1 or 2"),
    (VLMRLAIFRewards, without(REWARD, "output_2"), "field 'output_2' is None"),
    (VLMRLAIFRewards, {**REWARD, "output_1": {"from": "gpt"}}, "field 'output_1': field 'value' is None"),
    (VLMRLAIFPrompts, {**RL, "uid": None}, "field 'uid' is None"),
    (ChatMessages, chat(), "field 'messages' is []"),
    (ChatMessages, chat({"role": "system", "content": "x"}), "say it as data.system_prompt"),
    (ChatMessages, chat({"role": "assistant", "content": "x"}), "message 1 is of role 'assistant'"),
    (ChatMessages, chat({"role": "user", "content": [VIDEO_PART]}), "message 1 has no text"),
    (VideoMME, {**MME, "answer": "E"}, "field 'answer' is 'E'; it must be the letter of one of the options"),
    (VideoMME, {**MME, "options": ["A. x"]}, "field 'options' is"),
    (VideoMME, {**MME, "duration": "tiny"}, "field 'duration' is 'tiny'"),
    (VideoMME, without(MME, "task_type"), "field 'task_type' is None"),
    (VideoMME, {**NESTED, "questions": [{**NESTED["questions"][0], "answer": ""}]}, "question 1: field 'answer' is ''"),  # type: ignore[dict-item]
    (VideoMME, {**NESTED, "questions": 3}, "field 'questions' is 3"),
    (VideoMME, {**MME, "start_s": 4.0}, "field 'start_s' is 4.0; this format has no use for it"),
]


@pytest.mark.parametrize(("kind", "row", "message"), BROKEN)
@pytest.mark.parametrize("name", ["data.jsonl", "data.json"])
def test_a_broken_row_is_named(tmp_path: Path, kind: Any, row: Any, message: str, name: str) -> None:
    place = "line 1" if name == "data.jsonl" else "row 1"
    message = message.replace("[]", r"\[\]")
    with pytest.raises(ValueError, match=rf"{name}, {place}\b.*{message}"):
        kind(written(tmp_path, row, name=name)).load()


def test_questions_and_answers_that_do_not_meet(tmp_path: Path) -> None:
    questions = written(tmp_path, QUESTION, {**QUESTION, "question_id": "2"}, name="q.json")
    answers = written(tmp_path, ANSWER, {**ANSWER, "question_id": "3"}, name="a.json")
    dataset = OpenEndedQA(questions, answers)
    with pytest.raises(ValueError, match=r"q.json, row 2: field 'question_id' is '2'; .*a.json has no answer to it"):
        dataset.load()
    assert len(dataset.problems()) == 2
    assert "no question for 1 answers, such as question_id '3'" in dataset.problems()[1]
    twice = written(tmp_path, ANSWER, ANSWER, name="b.json")
    with pytest.raises(ValueError, match=r"b.json, row 2: id 'v_abc_1' was used before"):
        OpenEndedQA(questions, twice).load()


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    cut = tmp_path / "cut.json"
    cut.write_text('[{"id": "1",\n "video": ')
    with pytest.raises(ValueError, match=r"cut.json, line 2: not valid JSON"):
        JsonlDataset(str(cut)).load()
    text = tmp_path / "bad.parquet"
    text.write_text("this is no Parquet")
    with pytest.raises(ValueError, match=r"bad.parquet: not a readable Parquet file"):
        JsonlDataset(str(text)).load()
    whole = Path(written(tmp_path, {"id": "1", "video": "a", "question": "q"}, name="half.parquet"))
    whole.write_bytes(whole.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"half.parquet: not a readable Parquet file"):
        JsonlDataset(str(whole)).load()
    (tmp_path / "number.json").write_text("3")
    with pytest.raises(ValueError, match="it must hold a list of rows, found int"):
        JsonlDataset(str(tmp_path / "number.json")).load()


def test_every_broken_row_is_found_and_the_good_ones_stay(tmp_path: Path) -> None:
    good = {"id": "1", "video": "a.mp4", "question": "q?"}
    path = tmp_path / "d.jsonl"
    rows = [json.dumps(good), "{", json.dumps({**good, "id": "2", "question": ""}), json.dumps(good)]
    path.write_text("\n".join([*rows, json.dumps({**good, "id": "3"})]))
    dataset = JsonlDataset(str(path))
    problems = dataset.problems()
    assert [problem.removeprefix(f"{path}, ")[:6] for problem in problems] == ["line 2", "line 3", "line 4"]
    assert "id '1' was used before, on line 1" in problems[2]
    assert [prompt.id for prompt in dataset.prompts] == ["1", "3"]


def test_a_data_file_behind_a_url() -> None:
    import fsspec

    with fsspec.open("memory://data/rows.jsonl", "w") as file:
        file.write('{"id": "1", "video": "a.mp4", "question": "q?"}\n')
    (prompt,) = JsonlDataset("memory://data/rows.jsonl").prompts
    assert prompt.video == "memory://data/a.mp4"
    with pytest.raises(ValueError, match=r"memory://data/none.jsonl: cannot be opened"):
        JsonlDataset("memory://data/none.jsonl").load()
