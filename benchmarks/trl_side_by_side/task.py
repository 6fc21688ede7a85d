"""The task: five letters in reverse order. Rows, the reward, and how a model is read: greedily."""

from __future__ import annotations

import json
import random
import statistics
from pathlib import Path
from typing import Any

import torch

LETTERS, LENGTH = "abcdefgh", 5
SIZES = {"train": 2048, "test": 500}
NEW_TOKENS = LENGTH + 1


def questions(split: str, seed: int) -> list[tuple[str, str]]:
    """Question and answer; no test question is a training question."""
    rng, seen = random.Random(f"reverse/{seed}"), set[str]()
    found: dict[str, list[tuple[str, str]]] = {}
    for name, size in SIZES.items():
        found[name] = []
        while len(found[name]) < size:
            letters = [rng.choice(LETTERS) for _ in range(LENGTH)]
            if (question := " ".join(letters)) not in seen:
                seen.add(question)
                found[name].append((f"reverse {question}", " ".join(reversed(letters))))
    return found[split]


def reward(answer: str, reference: str) -> float:
    """Share of places that are right; 0 for an answer of another length."""
    said, right = answer.split(), reference.split()
    return sum(a == b for a, b in zip(said, right, strict=True)) / len(right) if len(said) == len(right) else 0.0


def score(group: Any) -> list[float]:
    """The reward of each answer of a group, for ``ScoreOracle``."""
    return [reward(answer, group.prompt.answer) for answer in group.answers]


def data(folder: Path, seed: int) -> None:
    """Rows of both splits, as orlaif reads them."""
    for split in SIZES:
        rows = [
            {"id": f"{split}{i}", "messages": [{"role": "user", "content": asked}], "answer": answer}
            for i, (asked, answer) in enumerate(questions(split, seed))
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@torch.no_grad()
def read(export: Path, seed: int) -> dict[str, float]:
    """Mean reward and share of wholly right answers, greedy, on the test questions."""
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(export)
    model: Any = AutoModelForImageTextToText.from_pretrained(export, dtype=torch.float32).eval()
    asked = questions("test", seed)
    chats = [[{"role": "user", "content": question}] for question, _ in asked]
    inputs = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    ids = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    texts = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    rewards = [reward(text, answer) for text, (_, answer) in zip(texts, asked, strict=True)]
    return {"reward": statistics.fmean(rewards), "accuracy": statistics.fmean(value == 1 for value in rewards)}
