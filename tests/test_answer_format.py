"""What of a completion is the answer: every case that is decided, by literal texts."""

from __future__ import annotations

import os
import time

import pytest

from orlaif.answer_format import (
    BoxedAnswer,
    FunctionAnswer,
    LastLine,
    PatternAnswer,
    Read,
    TaggedAnswer,
    WholeAnswer,
    named_format,
    shown,
)

TAGGED = [
    ("<think>it is round</think><answer>red</answer>", Read("red", "it is round", True)),
    ("\n<think> a </think>\n\n<answer> red </answer>\n", Read("red", "a", True)),
    ("<think></think><answer>red</answer>", Read("red", "", True)),  # no thought is a thought
    ("red", Read(None, None, False)),  # no tag
    ("", Read(None, None, False)),
    ("<answer>red</answer>", Read("red", None, False)),  # thoughts missing
    ("it is round</think><answer>red</answer>", Read("red", "it is round", False)),  # not opened
    ("<think>it is round", Read(None, "it is round", False)),  # cut off in thoughts
    ("<think>maybe <answer>red</answer>", Read(None, "maybe <answer>red</answer>", False)),
    ("<think>a</think><answer>red", Read(None, "a", False)),  # cut off in the answer
    ("<think>a</think><answer> </answer>", Read(None, "a", False)),  # empty
    ("<think>a</think><answer>red</answer><answer>blue</answer>", Read("blue", "a", False)),  # the last
    ("<think>a</think><answer>red</answer><answer>blue", Read("red", "a", False)),  # the last closed one
    ("<think>a</think><answer>it is <answer>red</answer></answer>", Read("red", "a", False)),  # the innermost
    ("<think>say <answer>blue</answer>?</think><answer>red</answer>", Read("red", "say <answer>blue</answer>?", False)),
    ("<think>then </think> b</think><answer>red</answer>", Read("red", "then </think> b", False)),
    ("<think>a</think><answer>red</answer></think>", Read(None, "a</think><answer>red</answer>", False)),
    ("<think>a</think>So: <answer>red</answer>", Read("red", "a", False)),  # words outside
    ("<think>a</think><answer>red</answer> I am sure", Read("red", "a", False)),
    ("<answer>red</answer><think>a</think>", Read(None, "<answer>red</answer><think>a", False)),  # the wrong way round
    ("<think>a</think><ANSWER>red</ANSWER>", Read(None, "a", False)),
]


@pytest.mark.parametrize(("text", "read"), TAGGED)
def test_tags(text: str, read: Read) -> None:
    assert named_format("think_answer").read(text) == read


def test_tags_of_other_names() -> None:
    mine = TaggedAnswer(answer="final", thoughts=None)
    assert mine.read("<final>2</final>") == Read("2", None, True)
    assert mine.read("so <final>2</final>") == Read("2", None, False)
    opened = TaggedAnswer(opened_by_prompt=True)
    assert opened.read("round</think><answer>red</answer>") == Read("red", "round", True)
    assert opened.read("round <answer>red</answer>") == Read(None, "round <answer>red</answer>", False)
    with pytest.raises(ValueError, match=r"answer_format.answer is '<a>'; it must be a tag's name"):
        TaggedAnswer(answer="<a>")
    with pytest.raises(ValueError, match=r"answer_format.thoughts is 'answer', the answer's tag"):
        TaggedAnswer(thoughts="answer")


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (r"so \boxed{B}.", Read("B", "so", True)),
        (r"\boxed{\frac{1}{2}}", Read(r"\frac{1}{2}", None, True)),
        (r"\boxed{A} no, \boxed {B}", Read("B", r"\boxed{A} no,", False)),
        (r"\boxed{a \boxed{b}}", Read("b", r"\boxed{a", False)),
        (r"\boxed{A}, or \boxed{B", Read("A", None, False)),
        (r"\boxed{\}B}", Read(r"\}B", None, True)),
        (r"\boxed{ }", Read(None, None, False)),
        (r"\boxed{B", Read(None, r"\boxed{B", False)),
        ("B", Read(None, "B", False)),
    ],
)
def test_boxes(text: str, read: Read) -> None:
    assert BoxedAnswer().read(text) == read


def test_many_open_boxes_take_no_long_time() -> None:
    start = time.perf_counter()
    assert BoxedAnswer().read(r"\boxed{A}" + r"\boxed{" * 20000).answer == "A"
    assert time.perf_counter() - start < 5.0  # quadratic it took minutes


def test_the_last_line() -> None:
    assert LastLine().read("first\n\nit is round \n red \n\n") == Read("red", "first\n\nit is round", True)
    assert LastLine().read("red") == Read("red", None, True)
    assert LastLine().read(" \n") == Read(None, None, False)


def test_the_whole_text_is_left_as_it_is() -> None:
    assert WholeAnswer().read(" <think>a</think> ") == Read(" <think>a</think> ", None, True)
    assert WholeAnswer().read("") == Read("", None, True)


def test_a_pattern() -> None:
    first = PatternAnswer(r"(?i)answer: *(\w+)")
    assert first.read("Answer: red") == Read("red", None, True)
    assert first.read("answer: red, answer: blue") == Read("blue", None, False)
    assert first.read("red") == Read(None, None, False)
    named = PatternAnswer(r"(?s)(?P<thoughts>.*)(=)>(?P<answer>.*)")
    assert named.read("round=> red ") == Read("red", "round", True)
    assert named.read("round=> ") == Read(None, "round", False)
    assert PatternAnswer(r"(?P<thoughts>\w+) (\w+)").read("round red") == Read("red", "round", True)
    for without in ("red", "(?P<thoughts>red)"):
        with pytest.raises(ValueError, match=r"answer_format.pattern is '.*red\)?'; it must have a group"):
            PatternAnswer(without)
    with pytest.raises(ValueError, match=r"answer_format.pattern is '\(', no regular expression"):
        PatternAnswer("(")


def _raises(text: str) -> str:
    raise KeyError("boom")


def test_a_function_of_ones_own() -> None:
    mine = FunctionAnswer(lambda text: text.removeprefix("A: ") if text.startswith("A: ") else None)
    assert mine.read("A: red") == Read("red", None, True)
    assert mine.read("red") == Read(None, None, False)
    with pytest.raises(ValueError, match=r"answer_format.function gave 3; it must give a text"):
        FunctionAnswer(lambda text: 3).read("red")  # type: ignore[arg-type,return-value]
    with pytest.raises(
        ValueError, match=r"function tests\.test_answer_format\._raises raised KeyError \('boom'\) on 'red'; it must"
    ):
        FunctionAnswer(_raises).read("red")
    for wrong in (os.getcwd, 3, lambda text, more: text):
        with pytest.raises(ValueError, match=r"answer_format.function cannot be called with a text: "):
            FunctionAnswer(wrong)  # type: ignore[arg-type]


def test_names() -> None:
    assert isinstance(named_format("whole"), WholeAnswer)
    assert (
        repr(named_format("think_answer")) == "TaggedAnswer(answer='answer', thoughts='think', opened_by_prompt=False)"
    )
    with pytest.raises(ValueError, match=r"policy.answer_format is 'tags'; it must be one of whole, think_answer, "):
        named_format("tags")


def test_what_a_judge_sees() -> None:
    texts = ("<think>a</think><answer>red</answer>", "red")
    reads = [TaggedAnswer().read(text) for text in texts]
    assert shown("answer", texts, reads) == ("red", "")
    assert shown("thoughts", texts, reads) == ("a", "")
    assert shown("both", texts, reads) == texts
