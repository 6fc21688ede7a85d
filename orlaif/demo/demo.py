"""The demo: warm start, Oracle-RLAIF, and what it gained, on the embedded data set. ``make demo`` runs it.

It runs the same recipes through the same command line as a user would, and prints each command.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from orlaif.demo.shapes import SIZES, ShapesDataset, words
from orlaif.stages import stage as under_way

POLICY_PATH = "--model.init_args.policy.init_args.path"


def quiet() -> None:
    """Leave the screen to what matters: Lightning's tips and warnings about this demo's tiny sizes go."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


@dataclass
class Demo:
    """The stages of the demo in one folder, each timed.

    Args:
        seed: of data, model and training.
        output: folder of the runs.
        recipes: folder of the recipes.
        think: answers in tags, behind thoughts.
    """

    seed: int
    output: str
    recipes: str = "recipes"
    think: bool = False
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds spent inside to ``seconds[stage]``."""
        start = time.perf_counter()
        with under_way(stage.replace("_", " ")):
            yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    def path(self, *parts: str) -> str:
        """A path below the demo's folder."""
        return os.path.join(self.output, *parts)

    def orlaif(
        self, subcommand: str, recipe: str, run: str, start: str, extra: Sequence[str] = (), splits: Sequence[str] = ()
    ) -> Any:
        """Print and run ``orlaif <subcommand>``, whose recipe has ``splits`` (all three); returns the finished CLI."""
        from orlaif.cli.recipe import run as run_cli

        arguments = [subcommand, "--config", os.path.join(self.recipes, recipe), f"--seed_everything={self.seed}"]
        arguments += [f"--run_dir={self.path(run)}", f"{POLICY_PATH}={start}"]
        for split in splits or ("train", "val", "test"):
            dataset = f"--data.init_args.{split}.init_args"
            arguments += [f"{dataset}.root={self.path('data')}", f"{dataset}.seed={self.seed}"]
        print(f"\n$ orlaif {' '.join([*arguments, *extra])}", flush=True)
        return run_cli([*arguments, *extra])

    def prepare(self) -> None:
        """Render the clips and make the model."""
        from orlaif.demo.tiny import TAGS, make_tiny_model

        with self.timed("render"):
            for split in SIZES:
                ShapesDataset(self.path("data"), split, self.seed).prepare()
        with self.timed("model"):
            make_tiny_model(self.path("model"), words(), seed=self.seed, tags=TAGS if self.think else ())

    def fit(self, recipe: str, run: str, start: str, extra: Sequence[str] = ()) -> str:
        """Train; returns the folder of the exported model."""
        shutil.rmtree(self.path(run), ignore_errors=True)
        self.orlaif("fit", recipe, run, start, extra)
        return self.path(run, "export")

    def test(self, recipe: str, run: str) -> dict[str, float]:
        """Greedy accuracy of a run's export on the test split, overall and by kind of question."""
        cli = self.orlaif("test", recipe, run, self.path(run, "export"))
        return {name: float(value) for name, value in cli.trainer.callback_metrics.items()}


def show(demo: Demo) -> None:
    """Run the stages, and print what they gained."""
    warm_start = "demo_think_sft.yaml" if demo.think else "demo_sft.yaml"
    recipe = "demo_think.yaml" if demo.think else "demo_rlaif.yaml"

    demo.prepare()
    with demo.timed("warm_start"):
        demo.fit(warm_start, "sft", demo.path("model"))
    with demo.timed("test"):
        before = demo.test(warm_start, "sft")
    with demo.timed("rlaif"):
        demo.fit(recipe, "rlaif", demo.path("sft", "export"))
    with demo.timed("test"):
        after = demo.test(recipe, "rlaif")

    total = "test/accuracy"
    gain = after[total] - before[total]
    summary = {
        "seed": demo.seed,
        "accuracy_warm_start": before[total],
        "accuracy_rlaif": after[total],
        "gain": gain,
        "test_questions": SIZES["test"],
        "by_kind_warm_start": {k.removeprefix(f"{total}/"): v for k, v in before.items() if k.startswith(f"{total}/")},
        "by_kind_rlaif": {k.removeprefix(f"{total}/"): v for k, v in after.items() if k.startswith(f"{total}/")},
        "seconds_by_stage": {name: round(value, 1) for name, value in demo.seconds.items()},
    }
    with open(demo.path("summary.json"), "w", encoding="utf-8") as file:
        json.dump(summary, file, indent=2)

    print(f"\nTest accuracy on {SIZES['test']} questions, greedy, seed {demo.seed}\n")
    print(f"{'':12}{'warm start':>12}{'RLAIF':>10}{'gain':>10}")
    for name in [*sorted(name for name in before if name.startswith(f"{total}/")), total]:
        kind = "all" if name == total else name.removeprefix(f"{total}/")
        print(f"{kind:12}{before[name]:>12.1%}{after[name]:>10.1%}{100 * (after[name] - before[name]):>+9.1f}p")
    stages = "   ".join(f"{name} {value:.0f} s" for name, value in demo.seconds.items())
    print(f"\nTime: {stages}   together {sum(demo.seconds.values()):.0f} s")
    print(f"Side by side, with intervals: .venv/bin/orlaif compare {demo.path('sft')} {demo.path('rlaif')}")
    print(f"Curves and the completions board: .venv/bin/tensorboard --logdir {demo.output}")
    print(
        f"Models: {demo.path('sft', 'export')} and {demo.path('rlaif', 'export')}; figures: {demo.path('summary.json')}"
    )
