"""Which option is meant: what chat models say, and what says nothing."""

from __future__ import annotations

import time

import pytest

from orlaif.evaluation.choices import choice, final_answer, same_choice

OPTIONS = ["a cat", "a dog", "a red car", "two birds"]
#: Each names the second.
B = [
    "The answer is 'B'",
    "B The animal barks.",
    "Neither A, C nor D, so B",
    "It can't be A or C, so it's B",
    "Eliminating A, C and D leaves B",
    "The answer isn't A, it's B",
    "\\boxed{\\textbf{(B)} a dog}",
    "[[B]]",
    "B.a dog",
    "**B**",
    "The correct answer is B",
    "The correct answer is (B).",
    "<answer>B</answer>",
    "<think>It is not A.</think> <answer>B</answer>",
    "B\nThe animal barks.",
    "B because it barks",
    "B because it is not a cat",
    "\\boxed{B}",
    "(B)",
    "B.",
    "Option B: a dog",
    "Answer: b",
    "b",
    "(b)",
    "b.",
    "Answer: B",
    "The answer is B.",
    "Option B.",
    "a dog",
    "B. a dog",
    "It is a dog.",
    "B) a dog",
    "[B]",
    "B: a dog",
    "B - a dog",
    "B, because it barks",
    "B (a dog)",
    "The answer is: B",
    "The best answer is **B**.",
    "**Answer:** B",
    "**Answer: B. a dog**",
    "Final answer: B",
    "Final Answer: (B)",
    "I choose B",
    "I would go with B.",
    "I'd say B",
    "My answer is B",
    "I think it's B",
    "It is B",
    "It must be B.",
    "Probably B",
    "Option B is correct.",
    "option b",
    "The right option is B",
    "Correct option: B",
    "Ans: B",
    "Ans. B",
    "B is correct",
    "B is the correct answer.",
    "B is the best option because a dog barks",
    "答案是B",
    "答案：B",
    "选B",
    "Not A, B",
    "A? Not A. The answer is B.",
    "A? Not A. B.",
    "It is not A but B",
    "The answer is not A but B.",
    "B, not A",
    "B rather than A",
    "B instead of C",
    "B because A is wrong",
    "A is wrong, so B",
    "Option A is wrong; option B is right.",
    "It's not a cat, it's a dog",
    "A is incorrect. The answer is B.",
    "The video shows a dog, so the answer is B.",
    "Looking at the video, the animal barks. Therefore, the answer is B",
    "The answer is \\boxed{\\text{B}}",
    "$\\boxed{B}$",
    "`B`",
    "*B*",
    '"B"',
    "'B'",
    "Answer:\n\nB",
    "The answer is option B",
    "The correct choice is B: a dog",
    "Ｂ",
    "<think>maybe A or C</think>B",
    "A: a cat\nB: a dog\nC: a red car\nThe answer is B",
    "Let me see.\nB",
    "The animal is a dog.",
    "A dog.",
    "DOG",
    "It barks, so (B).",
    "So, B.",
    "Sure! The answer is B.",
    "B!",
    "B it is",
    "The answer would be B",
    "The answer should be (B) a dog",
    "The answer to the question is B",
    "I pick option B",
    "I'm going with B",
    "Based on the video, the correct answer is:\n\n**B. a dog**",
    "The answer is a dog",
    "neither A nor C, but B",
    "Definitely B",
    "Answer - B",
    "Answer = B",
    "A cat is not in the video; the answer is B",
    "B, since it barks",
    "B and nothing else",
    "Selected: B",
    "B. The dog barks at the car.",
    "It is B because A is wrong and C is never shown",
    "Choice B",
    "the letter B",
    "Answer is B",
    "b because it barks",
    "Not a cat but a dog",
    "There is a dog, not a cat",
    "The answer is “B”",
    "B</s>",
    "B<|im_end|>",
    "> B",
    "# B",
    "- B",
    "1. B",
    "The correct answer is option (B).",
    "ANSWER: B",
    "Answer:B",
    "The answer is B: the dog barks.",
    "Out of the options, B fits best.",
    "My choice is B",
    "Correct answer: B. a dog",
    "A, C and D are wrong, so B",
    "A and C are wrong. B",
    "A, C, and D are incorrect. B",
    "Eliminating A, C, and D, we are left with B.",
    "By process of elimination, B.",
    "Options:\n(A) a cat\n(B) a dog\n(C) a red car\nCorrect: (B)",
    "(A) a cat (B) a dog (C) a red car. Answer: (B)",
    "A. a cat\nB. a dog\nC. a red car\n\nB",
    "A. a cat\nB. a dog\nC. a red car\nI think it's B.",
    "The options are A, B, C and D. I choose B.",
    "A or B? I'd say B.",
    "Between A and B, B is better.",
    "I was torn between A and B but B is correct",
    "- A: wrong\n- B: correct\n- C: wrong",
    "A: not correct\nB: correct",
    "A. a cat ✗\nB. a dog ✓",
    "A ✗\nB ✓",
    "A ✗ B ✓ C ✗",
    "(A) ❌ (B) ✅ (C) ❌",
    "A: ✗, B: ✔️, C: ✗",
    "A. a cat ✗ B. a dog ✓ C. a red car ✗",
    "Incorrect: A\nCorrect: B",
    "_B_",
    "It has to be B.",
    "Must be B",
    "Yes, B.",
    "A cat is not visible, but a dog is.",
    "The answer that best fits is B.",
    "The option that best describes the video is B.",
    "B best describes the video.",
    "Only B matches what is shown.",
    "B only",
    "∴ B",
    "B\nA and C don't appear.",
    "The dog is not moving.",
    "<B>",
    "Answer: <B>",
    "B ✅",
    "✅ B",
    "✔ B",
    "B。",
    "选项B",
    "答案:B。",
    "B I think",
    "Final Answer: **B**",
    "**Answer:** B. a dog",
    "The answer: (B) a dog.",
    "{B}",
    "Answer → B",
    "The correct choice is option B: a dog",
    "The right answer should be B",
    "So the answer must be (B).",
    "Hence, B.",
    "B is the best choice",
    "It's B",
    "Definitely B!",
    "（B）",
    "Letter B",
    "a  dog",
    "```\nB\n```",
    "{'answer': 'B'}",
    "B | a dog",
    "Reason: it barks. Answer: B",
    "My pick: B",
    "Not A, not C, not D: B",
    "a dog (B)",
    "Response: B",
    "The best option:(B) a dog",
    "Best Option: (B",
]
#: Each names none, or more than one.
UNCLEAR = [
    "Vitamin A",
    "A ✓ B ✓ C ✗",
    "A ✓\nB ✓\nC ✗",
    "A ✓ B ✓",
    "A ✓ B",
    "A ✗ C ✗",
    "✗ A ✓ B ✗ C",
    "A ✗ B ✓ C",
    "A x B v C x",
    "The B team wins",
    "It could be B, or it could be C",
    "The answer is 42",
    "An A-list actor",
    "Both",
    "None of them",
    "A dog barks at a red car",
    "A cat and a dog",
    "E",
    "I",
    "A or B",
    "A and B",
    "A, B",
    "B/C",
    "B & C",
    "A B",
    "Either B or C",
    "Both A and B",
    "neither A nor B",
    "not B",
    "It is not B",
    "B is wrong",
    "The answer is A. No wait, the answer is B.",
    "The answer is A or B",
    "maybe B or C",
    "",
    "?",
    "I don't know",
    "The answer is E",
    "E. a dog",
    "B. a cat",
    "<think>B",
    "\\boxed{A} or \\boxed{B}",
    "<answer>A</answer><answer>B</answer>",
    "It is not a dog",
    "There is no dog",
    "A man walks in",
    "A plan is made",
    "Anything but B",
    "All but B",
    "He takes vitamin B every day",
    "A sits",
    "B. or C.",
    "none of the above",
    "All of the above",
    "The dog and the cat",
    "BB",
    "Bad",
    "AB",
    "cat dog",
    "I see a bird",
    "hmm",
    "B or maybe C",
    "B, or C",
    "A\nB",
    "B? C?",
    "A. a cat\nB. a dog\nC. a red car\nD. two birds",
    "The options are A, B, C and D",
    "Options A and B are both right",
    "I can't tell",
    "B is not correct",
    "C isn't right",
    "A cat, no, a dog",
    "B, no, C",
    "B. No, C.",
    "B - no wait, C",
    "Not A or B",
    "The answer is A or B. Either would do",
    "A and B are both plausible",
    "Either B or C is correct.",
    "A and B are wrong",
    "must be B or C",
    "Incorrect: B",
    "A cat is not visible.",
    "A best man stands",
    "not only B",
]


@pytest.mark.parametrize("answer", B)
def test_the_second_option_is_meant(answer: str) -> None:
    assert choice(answer, OPTIONS) == 1


@pytest.mark.parametrize("answer", UNCLEAR)
def test_what_is_unclear_is_not_guessed(answer: str) -> None:
    assert choice(answer, OPTIONS) is None


@pytest.mark.parametrize("answer", ["A", "a", "A.", "(A)", "A because it is a cat", "The answer is A", "A is correct"])
def test_the_letter_a_is_no_article(answer: str) -> None:
    assert choice(answer, OPTIONS) == 0
    assert choice(answer, ["he runs", "he sits"]) == 0


@pytest.mark.parametrize("answer", ["A cat sits", "A man walks in", "a cat sits", "A plan", "I see", "I think so"])
def test_an_article_is_no_letter(answer: str) -> None:
    assert choice(answer, [f"option number {i}" for i in range(9)]) is None


DENIED = [
    ("A: wrong. B: right.", 1),
    ("A: wrong. B: wrong. C: right. D: wrong.", 2),
    ("People may say A, yet B", 1),
    ("B seems implausible; C then", 2),
    ("B is what I first thought. It's C.", 2),
    ("B was my first thought. The answer is C.", 2),
    ("The correct answer would be C if there was a horse; there is none, so B", 1),
    ("The answer would be B if I had to guess", 1),
    ("Although A looks right, it's B", 1),
    ("I doubt it's B", None),
    ("There is no doubt it's B", 1),
    ("I would never choose B", None),
    ("I don't think it's B", None),
    ("I'm not sure, but I think B", 1),
    ("It is unlikely to be B", None),
    ("B. It's C.", None),
    ("The answer is A. Wait, actually it's B.", 1),
    ("The answer is B. Wait, actually no.", None),
    ("Answer B. Actually, the animal is brown.", 1),
    ("__B__", 1),
    ("Option 2", 1),
    ("The second option.", 1),
    ("Option 9", None),
]


@pytest.mark.parametrize(("answer", "expected"), DENIED)
def test_who_denies_or_overrules_a_letter_has_not_named_it(answer: str, expected: int | None) -> None:
    assert choice(answer, OPTIONS) == expected


LABELLED = ("A. a cat", "B. a dog", "C. a black cat", "D. none of these")


@pytest.mark.parametrize(
    ("answer", "options", "expected"),
    [
        ("B", LABELLED, 1),
        ("(b)", LABELLED, 1),
        ("Option C.", LABELLED, 2),
        ("a cat", LABELLED, 0),  # the text itself
        ("I see a black cat there", LABELLED, None),  # two texts stand in it
        ("The answer is a black cat.", LABELLED, 2),
        ("a dog or none of these", LABELLED, None),
        ("none of these", LABELLED, 3),
        ("B", ["B. second first", "A. first second"], 0),  # by the letter that the option carries
        ("Yes, there is no dog.", ["yes", "no"], 0),
        ("No, it is not.", ["yes", "no"], 1),
        ("no doubt, yes", ["yes", "no"], 0),
        ("No, yes", ["yes", "no"], None),
        ("No idea", ["yes", "no"], None),
        ("A: false", ["false", "true"], 0),
        ("Option 2", ["2", "1"], 0),
        ("It is not visible", ["visible", "not visible"], 1),
        ("There are two.", ["1", "2", "12"], 1),
        ("12 birds", ["1", "2", "12"], 2),
        ("2 or 3", ["1", "2", "3"], None),
        ("1.5", ["15", "1.5"], 1),  # a point is no punctuation there, a sign neither
        ("-3", ["3", "-3"], 1),
        ("它是红色的", ["红色", "蓝色"], 0),
        ("I", [f"o{i}" for i in range(9)], 8),
        ("J", [f"o{i}" for i in range(10)], 9),
    ],
)
def test_by_letter_or_text(answer: str, options: list[str], expected: int | None) -> None:
    assert choice(answer, options) == expected


def test_the_same_option_by_letter_or_text() -> None:
    assert same_choice("B", "a dog", LABELLED) == 1.0
    assert same_choice("a dog", "B", LABELLED) == 1.0
    assert same_choice("A", "B", LABELLED) == 0.0
    assert same_choice("a bird", "a bird", LABELLED) == 0.0  # the reference is none of the options


def test_what_an_answer_comes_down_to() -> None:
    assert final_answer("<think>A? No.</think>\n<answer> **B** </answer>") == "B"
    assert final_answer(r"So $\boxed{\text{a dog}}$.") == "a dog"
    assert final_answer("<think>It could be B") == ""


@pytest.mark.parametrize(
    "text", ["A, ", "answer ", "not A ", "the answer is (B) ", "<answer>", r"\boxed{", "A b ", "{"]
)
def test_a_long_answer_takes_no_long_time(text: str) -> None:
    """A policy may say anything: 8000 characters take a fraction of a second."""
    start = time.perf_counter()
    choice(text * (8000 // len(text)), OPTIONS)
    assert time.perf_counter() - start < 5.0
