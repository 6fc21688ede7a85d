"""Conversations of text, images and videos as rows: parts and marks in their order, files by name or from lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.io import write_png

from orlaif.data.collator import Collator
from orlaif.data.datasets import JsonlDataset
from orlaif.data.formats import ChatMessages, LLaVAConversations
from orlaif.data.preferences import PreferenceJsonl, TRLPreferences
from orlaif.data.sampling import PixelBudget, UniformSampling
from orlaif.data.seen import decode_seen
from orlaif.prompt import assistant, user
from orlaif.training.preference_sampling import preference_row
from orlaif.types import (
    CandidateGroup,
    Image,
    Media,
    Picture,
    Prompt,
    PromptBatch,
    Text,
    Turn,
    Video,
    VideoError,
    VideoPrompt,
)


def read(kind: Any, folder: Path, *rows: Any, **settings: Any) -> list[Prompt]:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = kind(str(path), "/m", **settings)
    dataset.load()
    return [dataset[i] for i in range(len(dataset))]


def said(*content: Any) -> dict[str, Any]:
    """A user's message: texts, and ``image a`` or ``video a`` as parts with a path."""
    kinds = ("image", "video")
    words = [one.split() for one in content]
    parts = [
        {"type": w[0], "path": w[1]} if w[0] in kinds else {"type": "text", "text": one}
        for w, one in zip(words, content, strict=True)
    ]
    return {"role": "user", "content": parts}


ANSWER = {"role": "assistant", "content": "a cat"}


@pytest.mark.parametrize("kind", [ChatMessages, JsonlDataset])
def test_parts_in_their_order(kind: Any, tmp_path: Path) -> None:
    rows = [
        {"id": "1", "messages": [said("video v.mp4", "what is this ?"), ANSWER]},
        {"id": "2", "messages": [said("what is this ?", "video v.mp4")]},
        {"id": "3", "messages": [said("Here", "image a.png", "and here", "video v.mp4", "which is it ?")]},
        {"id": "4", "messages": [said("what is a cat ?"), ANSWER, said("and", "a dog ?")]},
    ]
    first, behind, mixed, text = read(kind, tmp_path, *rows)
    assert first == VideoPrompt(id="1", video="/m/v.mp4", question="what is this ?", answer="a cat")
    assert first.turns == ()
    assert (behind.video, behind.turns) == ("/m/v.mp4", (user("what is this ?", Video("/m/v.mp4")),))
    which = Text("which is it ?")
    parts = (Text("Here"), Image("/m/a.png"), Text("and here"), Video("/m/v.mp4"), which)
    assert mixed.conversation() == (Turn("user", parts),)
    assert (mixed.video, mixed.question, mixed.shows) == ("", "Here and here which is it ?", "1 image and 1 video")
    assert text == Prompt(id="4", question="and a dog ?", history=(("what is a cat ?", "a cat"),))


def test_own_rows_of_messages_have_labels(tmp_path: Path) -> None:
    row = {
        "id": "1",
        "messages": [said("image a.png", "which ?")],
        "answer": "B",
        "options": ["A", "B"],
        "category": "c",
        "tags": {"k": "v"},
    }
    (prompt,) = read(JsonlDataset, tmp_path, row)
    assert (prompt.answer, prompt.options, prompt.category, prompt.tags) == ("B", ("A", "B"), "c", {"k": "v"})


def test_a_segment_of_a_part(tmp_path: Path) -> None:
    part = {"type": "video", "path": "v.mp4", "start_s": 1, "end_s": 2.5}
    content = [part, {"type": "video", "path": "w.mp4"}, {"type": "text", "text": "which ?"}]
    (prompt,) = read(ChatMessages, tmp_path, {"id": "1", "messages": [{"role": "user", "content": content}]})
    assert prompt.media == (Video("/m/v.mp4", 1, 2.5), Video("/m/w.mp4"))


@pytest.mark.parametrize("value", [[{"type": "image"}, {"type": "text", "text": "which ?"}], "<image>which ?"])
def test_files_from_lists(value: Any, tmp_path: Path) -> None:
    """Parts without a file, and marks in a text, take the next file of the row's lists."""
    row = {"id": "1", "messages": [{"role": "user", "content": value}], "images": ["a.png"]}
    (prompt,) = read(ChatMessages, tmp_path, row)
    assert prompt.conversation() == (user(Image("/m/a.png"), "which ?"),)


def test_each_answer_of_the_assistant_is_trained_on_once(tmp_path: Path) -> None:
    """The words of the conversation, and for each whether some prompt has it as its answer: the assistant's alone."""
    second = {"role": "assistant", "content": "a dog"}
    row = {"id": "1", "messages": [said("video v.mp4", "what ?"), ANSWER, said("image a.png", "and this ?"), second]}
    prompts = read(ChatMessages, tmp_path, row, answers="all")
    assert [(p.id, p.question, p.answer) for p in prompts] == [
        ("1", "what ?", "a cat"),
        ("1#2", "and this ?", "a dog"),
    ]
    words = ["what ?", "a cat", "and this ?", "a dog"]
    assert [sum(p.answer == word for p in prompts) for word in words] == [0, 1, 0, 1]
    video, image = Video("/m/v.mp4"), Image("/m/a.png")
    assert prompts[1].conversation() == (user(video, "what ?"), assistant("a cat"), user(image, "and this ?"))
    (last,) = read(ChatMessages, tmp_path, row)
    assert (last.id, last.answer, last.conversation()) == ("1", "a dog", prompts[1].conversation())


def test_marks_of_llava(tmp_path: Path) -> None:
    rows = [
        {
            "id": "1",
            "images": ["a.png", "b.png"],
            "videos": ["v"],
            "conversations": [
                {"from": "human", "value": "<image>\nlike <image> or <video>?"},
                {"from": "gpt", "value": "b"},
            ],
        },
        {"id": "2", "image": "a.png", "conversations": [{"from": "human", "value": "<image>\nwhat"}, GPT]},
        {"id": "3", "images": [], "conversations": [{"from": "human", "value": "what"}, GPT]},
        {"id": "4", "video": "v.mp4", "conversations": [{"from": "human", "value": "<image>\nwhat"}, GPT]},
    ]
    mixed, image, text, video = read(LLaVAConversations, tmp_path, *rows)
    assert mixed.conversation() == (user(Image("/m/a.png"), "like", Image("/m/b.png"), "or", Video("/m/v"), "?"),)
    assert image.conversation() == (user(Image("/m/a.png"), "what"),)
    assert text == Prompt(id="3", question="what", answer="a cat")
    assert video == VideoPrompt(id="4", video="/m/v.mp4", question="what", answer="a cat")


GPT = {"from": "gpt", "value": "a cat"}


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        (
            LLaVAConversations,
            {"id": "1", "images": ["a", "b"], "conversations": [{"from": "human", "value": "<image>what"}, GPT]},
            "line 1: field 'images' names 2, and field 'conversations' has 1 places for images",
        ),
        (
            LLaVAConversations,
            {"id": "1", "images": ["a"], "conversations": [{"from": "human", "value": "<image><video>what"}, GPT]},
            "line 1: field 'videos' names 0, and field 'conversations' has 1 places for videos",
        ),
        (
            ChatMessages,
            {"id": "1", "images": ["a"], "messages": [said("what")]},
            "line 1: field 'images' names 1, and field 'messages' has 0 places for images",
        ),
        (ChatMessages, {"id": "1", "messages": [said("image a")]}, "line 1: field 'messages', message 1 has no text"),
        (
            ChatMessages,
            {"id": "1", "messages": [{"role": "user", "content": [{"type": "audio", "path": "a"}]}]},
            "has a part of type 'audio'; a prompt is made of text, images and videos",
        ),
        (
            ChatMessages,
            {"id": "1", "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "q"}]}]},
            "has the image {'type': 'image'}; it must name one file, as path, image or url",
        ),
        (JsonlDataset, {"id": "1", "messages": [said("q")], "question": "q"}, "field 'question' is unknown beside"),
        (JsonlDataset, {"id": "1", "messages": [said("q"), ANSWER], "answer": "b"}, "are two answers; give one"),
        (JsonlDataset, {"id": "1", "question": "q"}, "field 'video' is missing"),
        (
            ChatMessages,
            {"id": "1", "messages": [said("q"), {"role": "assistant", "content": said("image a", "b")["content"]}]},
            "message 2 has an image; only the user shows one",
        ),
    ],
)
def test_what_does_not_fit_is_named_by_line_and_field(kind: Any, row: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.jsonl") as error:
        read(kind, tmp_path, row)
    assert message in str(error.value)


def test_ranked_answers_to_a_prompt_of_parts_come_back_from_a_file(tmp_path: Path) -> None:
    turns = (user(Image("/m/a.png"), "or", Video("/m/v.mp4", 1.0, 2.0)),)
    group = CandidateGroup(prompt=Prompt(id="1", turns=turns), clip=Media(), answers=("x", "y"))
    row = preference_row(group, [1, 0], "/m")
    (prompt,) = read(PreferenceJsonl, tmp_path, row)
    assert (prompt.turns, vars(prompt)["ranks"]) == (turns, (1, 0))


def test_preferences_of_messages_with_images(tmp_path: Path) -> None:
    row = {"prompt": [said("image a.png", "q")], "chosen": "x", "rejected": "y"}
    (prompt,) = read(TRLPreferences, tmp_path, row)
    assert prompt.media == (Image("/m/a.png"),)


def test_images_are_decoded_and_bad_ones_named(tmp_path: Path) -> None:
    """In their order, within the budget of one frame; one that is none is left out like a bad video."""
    path, broken = str(tmp_path / "a.png"), str(tmp_path / "b.png")
    pixels = torch.arange(3 * 40 * 60, dtype=torch.int64).remainder(256).to(torch.uint8).view(3, 40, 60)
    write_png(pixels, path)
    Path(broken).write_text("no picture")
    good = Prompt(id="1", turns=(user(Image(path), Image(path), "q"),))
    seen = decode_seen(good, UniformSampling(4))
    assert [torch.equal(item.pixels, pixels) for item in seen.items if isinstance(item, Picture)] == [True, True]
    small = decode_seen(good, UniformSampling(4), budget=PixelBudget(per_clip=1200)).items[0]
    assert isinstance(small, Picture)
    assert list(small.pixels.shape) == [3, 28, 42]
    with pytest.raises(VideoError, match=r"b.png: cannot be decoded"):
        decode_seen(Prompt(id="2", turns=(user(Image(broken), "q"),)), UniformSampling(4))

    def encoder(prompts: Any, clips: Any) -> PromptBatch:
        ids = torch.ones(len(prompts), 2, dtype=torch.int64)
        return PromptBatch(prompts=tuple(prompts), clips=tuple(clips), input_ids=ids, attention_mask=ids, mm_inputs={})

    bad, text = Prompt(id="2", turns=(user(Image(broken), "q"),)), Prompt(id="3", question="q")
    delivery = Collator(encoder, UniformSampling(4), on_bad_video="skip")([good, bad, text])
    assert [prompt.id for prompt in delivery.batch.prompts] == ["1", "3"]
    assert [len(seen.items) for seen in delivery.batch.clips] == [2, 0]
    assert [error.path for error in delivery.skipped] == [broken]


def test_turns_and_the_short_form_say_it_once() -> None:
    with pytest.raises(ValueError, match=r"Prompt.question is 'x', and turns say 'y' .* by one of the two"):
        Prompt(id="1", question="x", turns=(user("y"),))
    with pytest.raises(ValueError, match="user and assistant take turns, the user first and last"):
        Prompt(id="1", turns=(user("y"), assistant("a")))
    with pytest.raises(ValueError, match=r"Prompt.video is empty"):
        Prompt(id="1", question="q", start_s=1.0)
    mixed = Prompt(id="1", turns=(user(Image("a"), "x"), assistant("b"), user(Image("c"), "y")))
    assert mixed.asking("z").conversation() == (user(Image("a"), Image("c"), "z"),)
    short = VideoPrompt(id="1", video="v", question="q", start_s=1.0)
    assert short.conversation() == (user(Video("v", 1.0), "q"),)
    assert short.asking("z") == Prompt(id="1", video="v", question="z")
