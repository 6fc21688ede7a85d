"""The words of ``orlaif plan`` that are no recipe's, and what they may be."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence

from orlaif.arguments import HelperParser, UsageError
from orlaif.cli.plan.hardware import GPUS
from orlaif.cli.plan.sizes import GB

_LEAST = {
    "gpus": (1, ""),
    "prompt_tokens": (1, ""),
    "text_tokens": (0, ""),
    "answer_tokens": (1, ""),
    "answers": (2, ", for a ranker compares them"),
}


def size_in_bytes(text: str) -> float:
    """``80GB``, ``40 GiB`` or a number of GB; raises UsageError for anything else."""
    size = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(GiB|GB|G)?\s*", text, re.IGNORECASE)
    if size is None or float(size[1]) <= 0 or math.isinf(float(size[1])):
        raise UsageError(f"--gpu-memory is {text!r}; it must be a size such as 80GB or 40GiB")
    return float(size[1]) * (2**30 if (size[2] or "").lower() == "gib" else GB)


def _parser() -> HelperParser:
    parser = HelperParser(
        prog="orlaif plan",
        description="Memory of a recipe's step on each GPU and of the host, from the model's config alone, and what "
        "would make it fit. "
        "Further arguments are those of the recipe.",
    )
    parser.add_argument("--gpus", type=int, help="processes, one GPU each; by default trainer.devices x num_nodes")
    parser.add_argument("--gpu-memory", default="80GB", help="of each, such as 80GB or 40GiB")
    parser.add_argument("--video", default="360x640", help="height x width of a typical video, before data.budget")
    parser.add_argument("--video-seconds", type=float, default=30.0, help="its length, for FpsSampling")
    parser.add_argument(
        "--prompt-tokens",
        type=int,
        help="tokens that the video becomes, where it is not the recipe's own number; pixels and the tower's patches "
        "go with them",
    )
    parser.add_argument("--text-tokens", type=int, default=64, help="tokens of a question with the chat template")
    parser.add_argument("--answer-tokens", type=int, default=64, help="tokens of an answer that is read from data")
    parser.add_argument("--answers", type=int, default=2, help="answers of a group that a ranker is trained on")
    parser.add_argument("--gpu", help=f"predicts seconds of a step on it: {', '.join(GPUS)}, or cpu")
    return parser


def read(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """What is asked for, with ``memory`` in bytes, ``height`` and ``width`` as numbers too, and the recipe's words.

    Raises:
        UsageError: a value that its flag cannot have.
    """
    asked, rest = _parser().parse_known_args(arguments)
    asked.memory = size_in_bytes(asked.gpu_memory)
    for name, (least, why) in _LEAST.items():
        value = getattr(asked, name)
        if value is not None and value < least:
            raise UsageError(f"--{name.replace('_', '-')} is {value}; it must be {least} or more{why}")
    if not (math.isfinite(asked.video_seconds) and asked.video_seconds > 0):
        raise UsageError(f"--video-seconds is {asked.video_seconds:g}; it must be more than 0")
    sides = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", asked.video)
    if sides is None:
        raise UsageError(f"--video is {asked.video!r}; it must be height x width, such as 360x640")
    asked.height, asked.width = int(sides[1]), int(sides[2])
    return asked, rest
