"""NVDEC: clips decoded on the GPU, their pixels beside the CPU's, and how many a second."""

from __future__ import annotations

import importlib.util
import statistics
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.notebook import MissingError, Notebook
from benchmarks.harness import ROOT, seconds, spread
from orlaif.data.video import UniformSampling, decode_clip

FRAMES = 32
#: Decoders of different make differ in rounding and in how they scale colours: grey values, on average.
GREY = 2.0


def run(notebook: Notebook) -> None:
    """Every clip of the folder that was given, each for itself: one that cannot be decoded does not cost the others."""
    try:
        paths = videos(notebook)
    except MissingError as reason:
        notebook.leave_out("clips", str(reason))
        return
    for path in paths:
        notebook.measure(path.name, lambda path=path: clip(path), 5)  # type: ignore[misc]
        row = notebook.entries.get(path.name)
        if row is not None and not row["mean_difference"] <= GREY:
            notebook.fail(path.name, f"{row['mean_difference']:.2f} grey values off the CPU's; at most {GREY}")


def videos(notebook: Notebook) -> list[Path]:
    """The clips: of ``--videos``, or of the folder beside the checkout; raises MissingError where there are none."""
    if importlib.util.find_spec("torchcodec") is None:
        raise MissingError("no torchcodec")
    if not notebook.cuda:
        raise MissingError("no CUDA GPU")
    given = notebook.options.get("videos")
    for folder in (Path(given),) if given else (ROOT / "shared/videos", ROOT.parent / "shared/videos"):
        if found := sorted(folder.glob("*.mp4")):
            return found
    raise MissingError(f"no videos in {given or 'shared/videos'}")


def clip(path: Path) -> dict[str, Any]:
    """Difference of pixels, and milliseconds on either."""
    sampling = UniformSampling(FRAMES)
    pictures = [decode_clip(str(path), sampling, device=device).frames for device in ("cpu", "cuda")]
    difference = (pictures[0].float() - pictures[1].float().cpu()).abs()
    row: dict[str, Any] = {"shape": list(pictures[0].shape), "mean_difference": float(difference.mean())}
    row["largest_difference"] = float(difference.max())
    row["frames_alike"] = statistics.fmean((difference.flatten(1).mean(-1) <= GREY).float().tolist())
    for device in ("cpu", "cuda"):

        def decode(device: str = device) -> torch.Tensor:
            return decode_clip(str(path), sampling, device=device).frames

        row[device] = spread([seconds(decode, device == "cuda") for _ in range(5)])
    return row
