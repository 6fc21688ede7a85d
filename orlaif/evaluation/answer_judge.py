"""What a judge of tasks is asked: whether an answer that no rule can grade is right, and what a caption answers.

The protocols are MMVU's (``utils/eval_utils.py`` of yale-nlp/MMVU: find the final answer, compare it with the correct
one; the very same thing in other words is right) and TempCompass's (``eval_captioning.py`` of llyx97/TempCompass: a
language model that reads the caption alone answers a multiple-choice question about the video, or none of its choices).
The words and the form of the replies are orlaif's own, so that figures are comparable among its results, by one judge.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from orlaif.evaluation.choices import choice
from orlaif.evaluation.grader import comparison, read_object
from orlaif.evaluation.quoting import QUOTED_NOTE, quoted
from orlaif.evaluation.suite import Record

ANSWER_INSTRUCTIONS = (
    "You mark answers to questions about videos. Look for the final answer in what was predicted, and compare it with "
    "the correct answer. It is right if it says the very same thing, be it in other words; something similar, more "
    "general or undecided is not right, and neither is a prediction without a final answer. Where the question has "
    "options, it is right if it chooses the correct one and no other. Reply with one JSON object and nothing else, "
    'such as {"answer": "a dog", "correct": true}: "answer" is the final answer as you found it, "correct" is true or '
    "false."
)
CAPTION_INSTRUCTIONS = (
    "You answer a multiple-choice question about a video of which you know a caption only. Choose the option that the "
    "caption tells to be true; if it is true of no option, or says too little to choose by, choose none. Reply with "
    'one JSON object and nothing else, such as {"reason": "it says that a dog runs", "answer": "B"}: "answer" is the '
    'letter of the option, or "none".'
)


def read_correct(reply: str) -> dict[str, Any]:
    """``answer`` and ``correct`` of a reply; raises ValueError where it does not say whether the answer is right."""
    said = read_object(reply)
    correct = said.get("correct")
    if isinstance(correct, str) and correct.strip().lower() in ("true", "false"):
        correct = correct.strip().lower() == "true"
    if not isinstance(correct, bool):
        raise ValueError(f"'correct' is {said.get('correct')!r}; it must be true or false")
    return {"answer": str(said.get("answer", "")), "correct": correct}


def reads_choice(options: Sequence[str], answer: str) -> Callable[[str], dict[str, Any]]:
    """A reader of ``answer`` and ``correct``: which option a reply names, or none, and whether it is ``answer``."""

    def read(reply: str) -> dict[str, Any]:
        said = str(read_object(reply).get("answer")).strip()
        place = None if said.strip(".").lower() == "none" else choice(said, options)
        if place is None and said.strip(".").lower() != "none":
            raise ValueError(f"'answer' is {said!r}; it must be the letter of an option, or none")
        return {"answer": said, "correct": place is not None and place == choice(answer, options)}

    return read


def asked_about(record: Record) -> tuple[str, str, Callable[[str], dict[str, Any]]]:
    """Instructions, question and reader for a record: of a caption where it has a tag ``probe``, else of an answer."""
    if (probe := record.get("tags", {}).get("probe")) is not None:
        shown = f"The caption, {QUOTED_NOTE}: {quoted(record['prediction'])}\nThe question:\n{probe}"
        return CAPTION_INSTRUCTIONS, shown, reads_choice(record["options"], record["answer"])
    return ANSWER_INSTRUCTIONS, comparison(record["question"], record["answer"], record["prediction"]), read_correct
