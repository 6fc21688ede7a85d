"""``orlaif check-data --config recipe.yaml``: everything that can be wrong with a recipe's data, before a run meets it.

Every row of every data file is read, and all that is broken is listed by file, line and field; then the videos of a
sample of rows are decoded as the run would. Exits with 1 where anything is wrong.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from orlaif.cli.recipe import read_recipe
from orlaif.data.datamodule import VideoDataModule
from orlaif.data.video import decode_clip, require_ffmpeg
from orlaif.types import VideoError, VideoPrompt


def check_data(data: VideoDataModule, sample: int | None, seed: int = 0) -> tuple[list[str], list[str]]:
    """Read and try the data of a recipe.

    Args:
        data: the recipe's DataModule.
        sample: videos of each data set to decode, drawn by ``seed``; None decodes all.
        seed: of the draw.

    Returns:
        A line of counts per data set, and a line for everything that is wrong.
    """
    require_ffmpeg()
    report: list[str] = []
    wrong: list[str] = []
    seen: set[int] = set()
    for name, dataset in data.datasets.items():
        if dataset is None or id(dataset) in seen:
            continue
        seen.add(id(dataset))
        dataset.prepare()
        problems = dataset.problems()
        wrong += problems
        unread = problems and dataset.num_rows is not None and not _has_rows(dataset)
        prompts: list[VideoPrompt] = [] if unread else dataset.all_rows()
        tried = prompts if sample is None or sample >= len(prompts) else random.Random(seed).sample(prompts, sample)
        with ThreadPoolExecutor(data.decode_threads) as pool:
            bad = [error for error in pool.map(lambda prompt: _tried(prompt, data), tried) if error is not None]
        wrong += bad
        answers = sum(prompt.answer is not None for prompt in prompts)
        videos = len({prompt.video for prompt in prompts})
        report.append(
            f"{name}: {len(prompts)} questions about {videos} videos, {answers} with an answer; {len(problems)} broken "
            f"rows; {len(tried)} clips decoded, {len(bad)} bad"
        )
    return report, wrong


def _has_rows(dataset: object) -> bool:
    return bool(getattr(dataset, "_prompts", None))


def _tried(prompt: VideoPrompt, data: VideoDataModule) -> str | None:
    try:
        decode_clip(prompt, data.sampling, data.decode_device, data.budget)
    except VideoError as error:
        return f"{prompt.id}: {error}"
    return None


def main(arguments: Sequence[str]) -> int:
    """The subcommand; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="orlaif check-data",
        description="Read all data of a recipe, decode a sample of its videos, and list what is wrong. Further "
        "arguments are those of the recipe, such as --data.init_args.train.init_args.path.",
    )
    parser.add_argument("--sample", default="100", help="videos of each data set to decode: a number, or 'all'")
    known, rest = parser.parse_known_args(arguments)
    if known.sample != "all" and not known.sample.isdigit():
        raise ValueError(f"--sample is {known.sample!r}; it must be a number, or 'all'")
    data = read_recipe(rest).datamodule
    if not isinstance(data, VideoDataModule):
        raise ValueError(f"data is a {type(data).__name__}; check-data knows orlaif.VideoDataModule")
    report, wrong = check_data(data, None if known.sample == "all" else int(known.sample))
    for line in [*report, *wrong]:
        print(line)
    print(f"{len(wrong)} problems" if wrong else "no problems")
    return int(bool(wrong))
