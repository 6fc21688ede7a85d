"""Runs that look like real ones, for pictures of the page: questions on two clips, answers of which better ones grow
common, a judge that may prefer long answers, and curves.

Nothing here was trained: the numbers are drawn, by a fixed seed.
"""

from __future__ import annotations

import math
import random
import re
from pathlib import Path
from typing import Any

import torch

from orlaif.evaluation.text_metrics import is_correct
from orlaif.oracles.prompting import LISTWISE_INSTRUCTIONS, Ballot
from orlaif.types import CandidateGroup, VideoClip, VideoPrompt
from tests.view.runs import answer, group, run

STEPS, PER_STEP, GROUP = 60, 4, 6
NASA, BARS = "nasa_13013.mp4", "av1_video.mkv"

#: Clip, seconds from and to, task, question, reference answer or None, answers from best to worst.
QUESTIONS: list[tuple[str, float, float, str, str, str | None, list[str]]] = [
    (
        NASA,
        4.0,
        8.0,
        "attribute",
        "What is the person on the lift wearing?",
        None,
        [
            "A white cleanroom suit that covers body and head.",
            "A white protective suit.",
            "The person is wearing white clothes, a pair of sunglasses, and what could be a helmet of some kind.",
            "A red jacket.",
            "I cannot see a person.",
        ],
    ),
    (
        NASA,
        0.5,
        4.0,
        "attribute",
        "What colour is the lift?",
        "red",
        ["red", "Red.", "It is orange, or perhaps red, which is hard to say in this light.", "yellow", "black"],
    ),
    (
        NASA,
        4.0,
        8.0,
        "object",
        "What is behind the person?",
        None,
        [
            "The gold segments of a large hexagonal mirror.",
            "A wall of golden hexagonal panels.",
            "There is a large structure behind the person that is made of many panels and that reflects the light.",
            "A window.",
            "A building.",
        ],
    ),
    (
        NASA,
        0.5,
        12.5,
        "motion",
        "Does the camera show the mirror from afar before or after the close-up?",
        None,
        ["Both before and after it.", "Before it, and again at the end.", "Before.", "After.", "There is no close-up."],
    ),
    (
        NASA,
        0.5,
        12.5,
        "count",
        "How many people are on the lift?",
        "one",
        ["one", "One person.", "There is one person on the lift, who is holding a device.", "two", "three"],
    ),
    (
        NASA,
        8.0,
        12.5,
        "motion",
        "Which way does the lift move?",
        None,
        [
            "Slowly up, towards the mirror.",
            "It rises.",
            "Along the mirror.",
            "Down.",
            "It stands still.",
        ],
    ),
    (
        BARS,
        0.2,
        4.6,
        "attribute",
        "Which colour is the bar left of magenta?",
        "cyan",
        ["cyan", "Cyan.", "The bar to the left of the magenta one is light blue.", "blue", "green"],
    ),
    (
        BARS,
        0.2,
        4.6,
        "count",
        "Which number does the counter show at the end?",
        "4",
        ["4", "Four.", "The counter on the right shows the number 4 at the end of the clip.", "5", "8"],
    ),
]
TOKEN = re.compile(r"\s?\S+?(?=\s|$|[.,])|[.,]")


def believable(folder: Path, videos: Path, seed: int, loves_length: bool) -> Path:
    """A run's folder, with samples and TensorBoard events.

    Args:
        folder: of the run.
        videos: the folder of the clips.
        seed: of all that is drawn.
        loves_length: whether the judge ranks longer answers better now and then.
    """
    draw = random.Random(seed)
    groups = []
    for i in range(STEPS * PER_STEP):
        step, which = i // PER_STEP, i % (4 * len(QUESTIONS))
        question = QUESTIONS[which % len(QUESTIONS)]
        groups.append(_group(step, f"clip-{which:03d}", question, videos, draw, loves_length))
    run(folder, groups)
    _curves(folder, draw, loves_length)
    return folder


def _group(
    step: int, name: str, asked: tuple[Any, ...], videos: Path, draw: random.Random, loves_length: bool
) -> dict[str, Any]:
    clip, start, end, task, question, reference, texts = asked
    learnt = step / STEPS
    weights = [math.exp((2.5 * learnt - 0.7) * -place) for place in range(len(texts))]
    chosen = draw.choices(range(len(texts)), weights, k=GROUP)
    by_length = loves_length and draw.random() < 0.25 + 0.5 * learnt
    alike = {one: 0 if reference and is_correct(texts[one], reference) else one for one in chosen}
    worth = {one: -len(texts[one]) if by_length else alike[one] for one in chosen}
    levels = sorted(set(worth.values()))
    ranks = [levels.index(worth[one]) for one in chosen]
    order = sorted(worth, key=lambda one: worth[one])
    mean = sum(ranks) / GROUP
    answers = []
    for one, rank in zip(chosen, ranks, strict=True):
        tokens = TOKEN.findall(texts[one])
        logps = [-draw.expovariate(1.2 + 2 * learnt) for _ in tokens]
        drift = [value + draw.gauss(0, 0.004) for value in logps]
        more = {"advantage": (mean - rank) / 5, "kl": abs(draw.gauss(0.12, 0.05)) * learnt, "trainer_logps": drift}
        answers.append(answer(texts[one], rank, tokens=tokens, logps=logps, **more))
    times = [start + (end - start) * k / 7 for k in range(8)]
    failed = draw.random() < 0.02
    if failed:
        answers = [one | {"rank": -1, "advantage": 0.0} for one in answers]
    made = group(
        step,
        name,
        *answers,
        reference=reference,
        seen=[{"path": str(videos / clip), "times_s": times}],
        seconds={"rollout": draw.gauss(3.1, 0.2), "oracle": draw.gauss(1.4, 0.3)},
        failure="the judge's reply is no order of all candidates: 'Candidate A is the best.'" if failed else None,
        exchanges=[_exchange(question, [texts[one] for one in chosen], order, texts, failed)],
    )
    made["prompt"] |= {"question": question, "category": task}
    return made


def _exchange(question: str, answers: list[str], order: list[int], texts: list[str], failed: bool) -> dict[str, str]:
    clip = VideoClip(
        frames=torch.zeros(2, 3, 4, 4, dtype=torch.uint8), pts_s=torch.arange(2).double(), duration_s=1.0, path="a.mp4"
    )
    candidates = CandidateGroup(
        prompt=VideoPrompt(id="p", video="a.mp4", question=question), clip=clip, answers=tuple(answers)
    )
    shown = tuple(dict.fromkeys(answers))
    ballot = Ballot(group=candidates, texts=shown, places=tuple(shown.index(one) for one in answers))
    letters = ", ".join(f'"{ballot.labels[shown.index(texts[one])]}"' for one in order)
    replied = "Candidate A is the best." if failed else f'{{"ranking": [{letters}]}}'
    return {"asked": f"{LISTWISE_INSTRUCTIONS}\n\n{ballot.asked()}", "replied": replied}


def _curves(folder: Path, draw: random.Random, loves_length: bool) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as board:  # type: ignore[no-untyped-call]
        for step in range(STEPS):
            learnt = step / STEPS
            values = {
                "train/kl": 0.14 * learnt**1.3 * (1 + 0.1 * draw.gauss(0, 1)),
                "train/entropy": 1.1 - 0.6 * learnt + draw.gauss(0, 0.03),
                "train/completions/mean_length": 7 + (4 if loves_length else -1) * learnt + draw.gauss(0, 0.3),
                "oracle/zero_signal_rate": max(0.0, 0.08 + 0.2 * learnt + draw.gauss(0, 0.04)),
                "oracle/tie_rate": 0.18 + 0.15 * learnt + draw.gauss(0, 0.02),
                "oracle/length_tau": (0.45 if loves_length else 0.05) * learnt + draw.gauss(0, 0.05),
                "oracle/position_tau": draw.gauss(0, 0.04),
                "train/grad_norm": 0.4 + draw.expovariate(8),
                "train/lr": 1e-5 * min(1.0, 0.1 + 0.9 * step / 20),
            }
            if step % 10 == 0:
                values["val/win_rate"] = 0.5 + (0.16 if loves_length else 0.24) * learnt**0.6 + draw.gauss(0, 0.01)
            for name, value in values.items():
                board.add_scalar(name, value, step)  # type: ignore[no-untyped-call]
