"""Functions of the lmms-eval tasks of this folder; files and scores as in ``orlaif test``."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from orlaif.data.rows import find_video
from orlaif.evaluation.text_metrics import is_correct, token_f1


def _joined(folder: str, questions: Any) -> Any:
    """Questions with the answers of ``<folder>/test_a.json``, joined by ``question_id``."""
    with open(os.path.join(folder, "test_a.json"), encoding="utf-8") as file:
        answers = {str(row["question_id"]): row for row in json.load(file)}
    missing = [row["question_id"] for row in questions if str(row["question_id"]) not in answers]
    if missing:
        sys.exit(f"{folder}/test_a.json has no answer to {len(missing)} questions, such as {missing[0]!r}")
    return questions.map(lambda row: {"answer": str(answers[str(row["question_id"])]["answer"])})


def _video(folder: str, row: dict[str, Any]) -> list[str]:
    path = find_video(os.path.join(folder, "videos"), row["video_name"])
    if not os.path.isfile(path):
        sys.exit(f"{path}: no such video")
    return [path]


def msvd_answers(questions: Any) -> Any:
    """Of MSVD-QA."""
    return _joined("data/msvd", questions)


def msrvtt_answers(questions: Any) -> Any:
    """Of MSRVTT-QA."""
    return _joined("data/msrvtt", questions)


def msvd_video(row: dict[str, Any]) -> list[str]:
    """Of MSVD-QA."""
    return _video("data/msvd", row)


def msrvtt_video(row: dict[str, Any]) -> list[str]:
    """Of MSRVTT-QA."""
    return _video("data/msrvtt", row)


def question(row: dict[str, Any], lmms_eval_specific_kwargs: dict[str, str] | None = None) -> str:
    """As the task's configuration words it."""
    words = lmms_eval_specific_kwargs or {}
    return f"{words.get('pre_prompt', '')}{row['question']}{words.get('post_prompt', '')}"


def answer(row: dict[str, Any]) -> str:
    """The reference."""
    return row["answer"]


def scores(row: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Exact match after SQuAD's normalisation, and F1 of words."""
    said = results[0]
    return {"exact_match": float(is_correct(said, row["answer"])), "token_f1": token_f1(said, row["answer"])}
