"""The demo's questions as tensors: what a small policy sees of each, and which answer is right.

A clip is rendered as the demo renders it (no file is written or read), its first and its last frame are averaged to
``SIDE`` x ``SIDE`` cells, and that is all a policy sees of it, with the kind of the question.

Shapes: N questions, D values.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from orlaif.demo.shapes import COLORS, COUNTS, DIRECTIONS, KINDS, OPTIONS, SHAPES, render

FRAMES, SIDE = (0, 7), 8
#: Values of a clip.
VALUES = len(FRAMES) * 3 * SIDE * SIDE
#: Questions of each split; ``warm`` is the warm start's.
SIZES = {"warm": 3200, "train": 3200, "validation": 500, "test": 500}
#: What answers are written with. The first word ends an answer.
WORDS = ("<end>", "it", "is", *COLORS, *SHAPES, *DIRECTIONS, *COUNTS)
END = 0


@dataclass(frozen=True, kw_only=True)
class Questions:
    """N questions.

    Args:
        seen: f32[N, D], the clip.
        kind: i64[N], place in ``KINDS``.
        answer: i64[N], place of the right word in ``WORDS``.
        options: bool[N, V], the words that are of the right kind.
    """

    seen: Tensor
    kind: Tensor
    answer: Tensor
    options: Tensor

    def part(self, begin: int, end: int) -> Questions:
        """Questions ``begin`` to ``end`` of each of [R, N, ...]."""
        return Questions(**{name: value[:, begin:end] for name, value in vars(self).items()})


def make(seed: int, split: str) -> Questions:
    """The questions of a split, kinds and answers in equal parts, in an order drawn by the seed."""
    order = list(range(SIZES[split]))
    random.Random(f"ordinal/{seed}/{split}").shuffle(order)
    seen = torch.empty(len(order), VALUES)
    kinds, answers = [], []
    for row, index in zip(seen, order, strict=True):
        kind = KINDS[index % len(KINDS)]
        answer = OPTIONS[kind][index // len(KINDS) % len(OPTIONS[kind])]
        frames, _ = render(kind, answer, random.Random(f"ordinal/{seed}/{split}/{index}"))
        row.copy_(adaptive_avg_pool2d(frames[list(FRAMES)].float() / 255, SIDE).flatten())
        kinds.append(KINDS.index(kind))
        answers.append(WORDS.index(answer))
    of_kind = torch.zeros(len(KINDS), len(WORDS), dtype=torch.bool)
    for place, name in enumerate(KINDS):
        of_kind[place, [WORDS.index(word) for word in OPTIONS[name]]] = True
    asked = torch.tensor(kinds)
    return Questions(seen=seen, kind=asked, answer=torch.tensor(answers), options=of_kind[asked])


def kept(folder: Path, seed: int) -> dict[str, Questions]:
    """All splits of a seed, made once per folder."""
    path = folder / f"questions{seed}.pt"
    if not path.is_file():
        made = {split: vars(make(seed, split)) for split in SIZES}
        partial = path.with_suffix(".partial")
        torch.save(made, partial)
        partial.rename(path)
    return {split: Questions(**parts) for split, parts in torch.load(path, weights_only=True).items()}


def stacked(questions: list[Questions]) -> Questions:
    """The same split of R seeds as [R, N, ...]."""
    return Questions(**{name: torch.stack([getattr(q, name) for q in questions]) for name in vars(questions[0])})
