"""Clips of one shape that moves and then does something, as H.264 files, and rows of the project's own format.

A clip has eight frames, two a second; recipes read four of them (``UniformSampling``), of seconds 0.5, 1.5, 2.5 and
3.5: one on the way, two where it led, one of what follows. All values of a fact are equally likely, and facts are
independent of each other. Clip ``index`` of a split is a function of the two and the seed.
"""

from __future__ import annotations

import json
import os
import random

import torch
from torch import Tensor

from benchmarks.pretrained.facts import FORMS, WORDS, sentence
from orlaif.demo.shapes import DIRECTIONS, covered, encode

SIDE, FRAMES, FPS = 64, 8, 2.0
MOVING = 3  # frames until the shape is where it goes
FOLLOWS = 6  # the first frame of what it does then
QUESTION = "What happens in the video?"
COLORS = {
    "red": (225, 45, 40),
    "green": (45, 185, 65),
    "blue": (55, 85, 235),
    "yellow": (240, 220, 60),
    "purple": (160, 50, 190),
    "white": (245, 245, 245),
}
#: Clips of each split: the warm start's, RLAIF's, those that a ranker learns from, and those nobody learns from.
SIZES = {"sft": 3200, "rl": 800, "ranker": 400, "val": 48, "test": 240}
_GROWN = {"grows": 1.7, "shrinks": 0.45}


def paint(frame: Tensor, color: str, shape: str, x: float, y: float, radius: float) -> None:
    """One shape into a frame u8[3, SIDE, SIDE], centre and radius in pixels."""
    frame[:, covered(shape, x, y, radius, SIDE)] = torch.tensor(COLORS[color], dtype=torch.uint8)[:, None]


def render(facts: dict[str, str], rng: random.Random) -> Tensor:
    """A clip u8[FRAMES, 3, SIDE, SIDE] of which these facts are true; the rest is drawn from ``rng``."""
    frames = torch.full((FRAMES, 3, SIDE, SIDE), rng.randrange(0, 50), dtype=torch.uint8)
    sx, sy = DIRECTIONS[facts["way"]]
    radius, across, middle = rng.uniform(8, 11), rng.uniform(-8, 8), rng.uniform(-2, 2)
    for k, frame in enumerate(frames):
        along, size = 40 * (min(k, MOVING) / MOVING - 0.5), radius
        if k >= FOLLOWS:
            if facts["then"] == "vanishes":
                continue
            size *= _GROWN.get(facts["then"], 1.0)
            if facts["then"] == "goes back":
                along -= 12 * (k - FOLLOWS + 1)
        along += middle
        x = SIDE / 2 + (sx * along if sx else across)
        y = SIDE / 2 + (sy * along if sy else across)
        paint(frame, facts["color"], facts["shape"], x, y, size)
    return frames


def write_split(folder: str, split: str, seed: int = 0, size: int | None = None) -> str:
    """Render a split where it is missing; the path of its JSONL."""
    size = SIZES[split] if size is None else size
    path = os.path.join(folder, f"{split}.jsonl")
    if os.path.exists(path):
        return path
    os.makedirs(os.path.join(folder, split), exist_ok=True)

    def row(index: int) -> dict[str, str]:
        rng = random.Random(f"{seed}/{split}/{index}")
        facts = {fact: rng.choice(list(values)) for fact, values in WORDS.items()}
        video = f"{split}/{index:05d}.mp4"
        frames, clip = render(facts, rng), os.path.join(folder, video)
        if not os.path.exists(clip):
            encode(frames, clip, FPS)
        answer = sentence(facts, rng.randrange(len(FORMS)))
        return {"id": f"{split}-{index:05d}", "video": video, "question": QUESTION, "answer": answer}

    rows = [row(index) for index in range(size)]
    with open(f"{path}.partial", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(one) + "\n" for one in rows)
    os.replace(f"{path}.partial", path)
    return path
