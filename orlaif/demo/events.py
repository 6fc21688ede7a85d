"""The embedded data set of grounding: clips of eight seconds in which a shape is there for one to three of them.

The question is "when is the circle there ?" and the answer "2 to 5", in whole seconds. A bar at the lower edge fills as
the clip runs, as a player's does: frames that show their own time are what grounding with numbers on frames lives on
(NumberIt, 2411.10332), and a model this small reads them sooner than the times between them. Length and start are drawn
so that no answer fits many clips: the best one that does not look has mIoU 0.28 (:func:`best_constant`).

Clips are drawn from ``random.Random(f"{seed}/{split}/{index}")`` and written as those of ``orlaif.demo.shapes``.
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from statistics import fmean

import torch
from torch import Tensor

from orlaif.demo.shapes import COLORS, SHAPES, SIDE, ShapesDataset, draw, encode
from orlaif.demo.tiny import make_tiny_model
from orlaif.evaluation.spans import span_iou
from orlaif.types import Prompt

EVENTS_RENDERING = 2  # raise it whenever the same seed would give other clips or questions
SECONDS, FRAMES_PER_SECOND, LENGTHS = 8, 2, (1, 2, 3)
BAR, BAR_COLOR = 4, 200  # pixels high; grey level
WORDS = ("when", "is", "the", *SHAPES, "there", "to")
#: What Qwen3-VL's processor writes before the two frames of each second, here a token each.
TIMES = tuple(f"<{second}.2 seconds>" for second in range(SECONDS))


def render_event(start: int, end: int, rng: random.Random) -> tuple[Tensor, str]:
    """One clip in which a shape is there from second ``start`` to ``end``.

    Returns:
        frames u8[SECONDS * FRAMES_PER_SECOND, 3, SIDE, SIDE], and the shape's name.
    """
    frames = torch.full((SECONDS * FRAMES_PER_SECOND, 3, SIDE, SIDE), rng.randrange(0, 60), dtype=torch.uint8)
    color, shape, radius = rng.choice(list(COLORS)), rng.choice(SHAPES), rng.uniform(13, 17)
    slack = SIDE / 2 - radius
    x, y = (SIDE / 2 + rng.uniform(-slack, slack) for _ in range(2))
    for frame in frames[start * FRAMES_PER_SECOND : end * FRAMES_PER_SECOND]:
        draw(frame, shape, color, x, y, radius)
    for k, frame in enumerate(frames):
        frame[:, -BAR:, : SIDE * (k // FRAMES_PER_SECOND + 1) // SECONDS] = BAR_COLOR
    return frames, shape


class EventsDataset(ShapesDataset):
    """One split of it, rendered on first use.

    Args:
        root: folder for the files; each seed has a folder below it.
        split: ``train``, ``validation`` or ``test``.
        seed: of the whole data set.
        size: clips of this split; by default 3200, 100 and 500.
        late_s: answers are those of someone who notes events late, by 0 to so many whole seconds, each as likely: both
            times of a clip by the same, and none past the clip's end.
    """

    def __init__(self, root: str, split: str, seed: int = 0, size: int | None = None, late_s: int = 0) -> None:
        super().__init__(root, split, seed, size)
        self.late_s = late_s
        self.folder = os.path.join(root, f"events-v{EVENTS_RENDERING}-seed{seed}")
        self.path = os.path.join(self.folder, f"{split}-{self.size}.jsonl")

    def row(self, index: int) -> dict[str, object]:
        """Render clip ``index`` if its file is missing, and describe it."""
        rng = random.Random(f"{self.seed}/{self.split}/{index}")
        length = rng.choice(LENGTHS)
        start = rng.randrange(SECONDS - length + 1)
        frames, shape = render_event(start, start + length, rng)
        video = f"{self.split}/{index:05d}.mp4"
        if not os.path.exists(path := os.path.join(self.folder, video)):
            encode(frames, path, fps=FRAMES_PER_SECOND)
        question = f"when is the {shape} there ?"
        answer = f"{start} to {start + length}"
        return {"id": f"{self.split}-{index:05d}", "video": video, "question": question, "answer": answer}

    def __getitem__(self, index: int) -> Prompt:
        prompt = super().__getitem__(index)
        if not self.late_s:
            return prompt
        late = random.Random(f"late/{self.seed}/{prompt.id}").randint(0, self.late_s)
        start, end = (int(time) + late for time in (prompt.answer or "").split(" to "))
        return replace(prompt, answer=f"{min(start, SECONDS - 1)} to {min(end, SECONDS)}")


def best_constant(answers: Sequence[str]) -> tuple[str, float]:
    """The best answer for a model that does not look, chosen in sight of the very answers that it is measured on.

    Args:
        answers: the right ones, such as ``2 to 5``.

    Returns:
        That answer, of all spans of whole seconds, and its mIoU.
    """
    spans = [f"{start} to {end}" for start, end in combinations(range(SECONDS + 1), 2)]
    known = {one: {right: span_iou(one, right) or 0.0 for right in set(answers)} for one in spans}
    return max(((one, fmean(known[one][right] for right in answers)) for one in spans), key=lambda found: found[1])


def make_events_model(folder: str, seed: int = 0) -> None:
    """Write a tiny model for it: one token for the picture of each second, one for each time that is written."""
    make_tiny_model(folder, WORDS, seed=seed, patch_size=SIDE // 2, tags=TIMES, initializer_range=0.08)


def main() -> None:
    """Write a tiny model for the embedded data set of grounding."""
    parser = argparse.ArgumentParser(prog="python -m orlaif.demo.events", description=main.__doc__)
    parser.add_argument("folder")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make_events_model(arguments.folder, arguments.seed)


if __name__ == "__main__":
    main()
