"""The embedded data set: short clips of coloured shapes, as real H.264 files, with questions about them.

Five kinds of question, in equal parts, each with four answers in equal parts:

    color      one shape                            what color is the circle ?
    shape      one shape                            what shape is it ?
    direction  a shape crosses the picture          which way does it move ?
    order      a second shape appears half way      which color came first ?
    count      one to four shapes                   how many shapes are there ?

Everything is drawn from ``random.Random(f"{seed}/{split}/{index}")``, so clip k of a split is the same on every machine
whatever the size of the split. Files are written under a temporary name and renamed, the index last: an interrupted
rendering goes on where it stopped, and a finished one is never repeated.
"""

from __future__ import annotations

import json
import os
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import Tensor

from orlaif.data.datasets import JsonlDataset
from orlaif.data.video import require_ffmpeg
from orlaif.types import Prompt

RENDERING = 1  # raise it whenever the same seed would give other clips or questions

COLORS = {"red": (230, 50, 45), "green": (50, 190, 70), "blue": (60, 90, 235), "yellow": (240, 220, 60)}
SHAPES = ("circle", "square", "triangle", "cross")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
COUNTS = ("one", "two", "three", "four")
OPTIONS = {
    "color": tuple(COLORS),
    "shape": SHAPES,
    "direction": tuple(DIRECTIONS),
    "order": tuple(COLORS),
    "count": COUNTS,
}
KINDS = tuple(OPTIONS)
QUESTIONS = {
    "color": "what color is the {shape} ?",
    "shape": "what shape is it ?",
    "direction": "which way does it move ?",
    "order": "which color came first ?",
    "count": "how many shapes are there ?",
}
#: What a model that reasons should find out first, by kind of question, in words of the questions.
THOUGHTS = {"color": "color", "shape": "shape", "direction": "way", "order": "first color", "count": "how many"}
SIZES = {"train": 3200, "validation": 100, "test": 500}
SIDE, FRAMES, FPS = 48, 8, 4.0
RADIUS = {"color": (13, 16), "shape": (18, 21), "direction": (9, 11), "order": (11, 11), "count": (10, 10)}  # pixels


def words() -> tuple[str, ...]:
    """Every word that questions and answers are made of, sorted."""
    texts = [q.format(shape=" ") for q in QUESTIONS.values()] + [word for group in OPTIONS.values() for word in group]
    return tuple(sorted({word for text in texts for word in text.split()}))


def covered(shape: str, x: float, y: float, radius: float, side: int = SIDE) -> Tensor:
    """Which pixels bool[side, side] a shape covers, centre and radius in pixels."""
    grid = torch.arange(side, dtype=torch.float32) + 0.5
    dx, dy = grid[None, :] - x, grid[:, None] - y
    if shape == "circle":
        return dx.square() + dy.square() <= radius**2
    if shape == "square":
        return (dx.abs() <= 0.85 * radius) & (dy.abs() <= 0.85 * radius)
    if shape == "triangle":
        return (dy <= 0.8 * radius) & (dx.abs() <= (dy + radius) * 0.6)
    arm = 0.33 * radius
    return ((dx.abs() <= arm) & (dy.abs() <= radius)) | ((dy.abs() <= arm) & (dx.abs() <= radius))


def draw(frame: Tensor, shape: str, color: str, x: float, y: float, radius: float) -> None:
    """Paint one shape into a frame u8[3, SIDE, SIDE], centre and radius in pixels."""
    frame[:, covered(shape, x, y, radius)] = torch.tensor(COLORS[color], dtype=torch.uint8)[:, None]


def render(kind: str, answer: str, rng: random.Random) -> tuple[Tensor, str]:
    """One clip and its question.

    Args:
        kind: one of ``KINDS``.
        answer: one of ``OPTIONS[kind]``; the clip is made so that this is right.
        rng: where the rest is drawn from.

    Returns:
        frames u8[FRAMES, 3, SIDE, SIDE], and the question.
    """
    frames = torch.full((FRAMES, 3, SIDE, SIDE), rng.randrange(0, 60), dtype=torch.uint8)
    color, shape = rng.choice(list(COLORS)), rng.choice(SHAPES)
    if kind == "color":
        color = answer
    elif kind == "shape":
        shape = answer
    radius = rng.uniform(*RADIUS[kind])
    if kind in ("color", "shape"):
        slack = SIDE / 2 - radius
        x, y = (SIDE / 2 + rng.uniform(-slack, slack) for _ in range(2))
        for frame in frames:
            draw(frame, shape, color, x, y, radius)
    elif kind == "direction":
        sx, sy = DIRECTIONS[answer]
        across, way = SIDE / 2 + rng.uniform(-4, 4), SIDE - 2 * radius
        for k, frame in enumerate(frames):
            along = way * (k / (FRAMES - 1) - 0.5)
            x, y = (SIDE / 2 + sx * along if sx else across), (SIDE / 2 + sy * along if sy else across)
            draw(frame, shape, color, x, y, radius)
    elif kind == "order":
        second = rng.choice([c for c in COLORS if c != answer])
        left = rng.random() < 0.5
        for k, frame in enumerate(frames):
            for number, hue in enumerate((answer, second)):
                if k >= number * FRAMES // 2:
                    x = SIDE / 4 if (number == 0) == left else 3 * SIDE / 4
                    draw(frame, shape, hue, x, SIDE / 2, radius)
    else:
        cells = rng.sample([(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)], COUNTS.index(answer) + 1)
        for frame in frames:
            for cx, cy in cells:
                draw(frame, shape, color, cx * SIDE, cy * SIDE, radius)
    return frames, QUESTIONS[kind].format(shape=shape)


def encode(frames: Tensor, path: str, fps: float = FPS) -> None:
    """Write frames u8[F, 3, H, W] to an H.264 file, whole or not at all."""
    from torchcodec.encoders import VideoEncoder

    partial = f"{path}.{os.getpid()}.partial.mp4"
    encoder = VideoEncoder(frames, frame_rate=fps)
    # On frames this small x264's lookahead reads memory that nobody wrote: 2 of 100 files would differ from run to run.
    options = {"threads": 1, "x264-params": "rc-lookahead=0:sync-lookahead=0:mbtree=0"}
    encoder.to_file(partial, codec="libx264", pixel_format="yuv420p", crf=12, extra_options=options)
    os.replace(partial, path)


class ShapesDataset(JsonlDataset):
    """One split of the embedded data set, rendered on first use.

    Args:
        root: folder for the files; each seed has a folder below it.
        split: ``train``, ``validation`` or ``test``.
        seed: of the whole data set.
        size: clips of this split; by default 3200, 100 and 500.
        thoughts: answers are what a model that reasons should write, ``<think> way </think> <answer> left </answer>``.

    Raises:
        ValueError: an unknown split, or a size below 1.
    """

    def __init__(self, root: str, split: str, seed: int = 0, size: int | None = None, thoughts: bool = False) -> None:
        if split not in SIZES:
            raise ValueError(f"ShapesDataset.split is {split!r}; it must be one of {', '.join(SIZES)}")
        self.size = SIZES[split] if size is None else size
        if self.size < 1:
            raise ValueError(f"ShapesDataset.size is {size}; it must be 1 or more")
        self.split, self.thoughts = split, thoughts
        self.seed = seed
        self.folder = os.path.join(root, f"shapes-v{RENDERING}-seed{seed}")
        super().__init__(os.path.join(self.folder, f"{split}-{self.size}.jsonl"))

    def row(self, index: int) -> dict[str, object]:
        """Render clip ``index`` if its file is missing, and describe it."""
        kind = KINDS[index % len(KINDS)]
        answer = OPTIONS[kind][index // len(KINDS) % len(OPTIONS[kind])]
        video = f"{self.split}/{index:05d}.mp4"
        frames, question = render(kind, answer, random.Random(f"{self.seed}/{self.split}/{index}"))
        path = os.path.join(self.folder, video)
        if not os.path.exists(path):
            encode(frames, path)
        return {
            "id": f"{self.split}-{index:05d}",
            "video": video,
            "question": question,
            "answer": answer,
            "options": list(OPTIONS[kind]),
            "category": kind,
        }

    def __getitem__(self, index: int) -> Prompt:
        prompt = super().__getitem__(index)
        if not self.thoughts:
            return prompt
        thought = THOUGHTS[str(prompt.category)]
        return replace(prompt, answer=f"<think> {thought} </think> <answer> {prompt.answer} </answer>")

    def prepare(self) -> None:
        """Render what is missing; does nothing where the index is there."""
        if os.path.exists(self.path):
            return
        require_ffmpeg()
        os.makedirs(os.path.join(self.folder, self.split), exist_ok=True)
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            rows = list(pool.map(self.row, range(self.size)))
        partial = f"{self.path}.{os.getpid()}.partial"
        with open(partial, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        os.replace(partial, self.path)
