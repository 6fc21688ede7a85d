"""The demo of temporal grounding: warm start on rough labels, Oracle-RLAIF by tIoU, and mIoU before and after.

``python -m orlaif.demo --grounding`` runs the recipes ``demo_grounding*.yaml`` by the command line, as a user would.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

from orlaif.demo.demo import Demo
from orlaif.demo.events import EventsDataset, best_constant, make_events_model
from orlaif.demo.shapes import SIZES

NO_BAR = "--trainer.enable_progress_bar=false"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What the demo gained.

    Args:
        seed: of data, model and training.
        test_clips: how many clips the figures are of.
        constant: the one answer that would be best without a look at any clip.
        constant_miou: its mIoU on the test clips.
        before: ``miou``, ``r@0.3``, ``r@0.5``, ``r@0.7`` and ``unreadable_rate`` of the warm start, greedy, 0 to 1.
        after: the same behind Oracle-RLAIF.
        seconds_by_stage: wall time of each stage.
        core_seconds_by_stage: time of this process on the cores, likewise.
    """

    seed: int
    test_clips: int
    constant: str
    constant_miou: float
    before: dict[str, float]
    after: dict[str, float]
    seconds_by_stage: dict[str, float]
    core_seconds_by_stage: dict[str, float]


@dataclass
class GroundingDemo(Demo):
    """The stages of the grounding demo in one folder, each timed by the clock and in this process's seconds of cores.

    The clock's seconds say little of a machine that does other things beside.
    """

    core_seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds spent inside to ``seconds[stage]``, and those of cores to ``core_seconds[stage]``."""
        start = time.process_time()
        with super().timed(stage):
            yield
        self.core_seconds[stage] = self.core_seconds.get(stage, 0.0) + time.process_time() - start

    def prepare(self) -> None:
        """Render the clips and make the model."""
        with self.timed("render"):
            for split in SIZES:
                EventsDataset(self.path("data"), split, self.seed).prepare()
        with self.timed("model"):
            make_events_model(self.path("model"), seed=self.seed)

    def test(self, recipe: str, run: str) -> dict[str, float]:
        """mIoU, R@0.3, 0.5, 0.7 and the share of unreadable answers of a run's export on the test split, greedy."""
        export = self.path(run, "export")
        cli = self.orlaif("test", recipe, f"{run}_test", export, [NO_BAR], splits=("test",))
        return {name.removeprefix("test/"): float(value) for name, value in cli.trainer.callback_metrics.items()}

    def run(self) -> Summary:
        """All stages; what it returns lies in ``summary.json`` as well."""
        self.prepare()
        with self.timed("warm_start"):
            self.fit("demo_grounding_sft.yaml", "sft", self.path("model"), [NO_BAR])
        with self.timed("test"):
            before = self.test("evaluation/demo_grounding.yaml", "sft")
        with self.timed("rlaif"):
            self.fit("demo_grounding.yaml", "rlaif", self.path("sft", "export"), [NO_BAR])
        with self.timed("test"):
            after = self.test("evaluation/demo_grounding.yaml", "rlaif")
        test = EventsDataset(self.path("data"), "test", self.seed)
        constant, miou = best_constant([test[k].answer or "" for k in range(len(test))])
        summary = Summary(
            seed=self.seed,
            test_clips=len(test),
            constant=constant,
            constant_miou=miou,
            before=before,
            after=after,
            seconds_by_stage={name: round(value, 1) for name, value in self.seconds.items()},
            core_seconds_by_stage={name: round(value, 1) for name, value in self.core_seconds.items()},
        )
        with open(self.path("summary.json"), "w", encoding="utf-8") as file:
            json.dump(asdict(summary), file, indent=2)
        return summary


def show(demo: GroundingDemo) -> None:
    """Run the stages, and print what they gained."""
    summary = demo.run()
    before, after = summary.before, summary.after
    print(f"\nTest mIoU on {summary.test_clips} clips, greedy, seed {demo.seed}\n")
    print(f"best answer without a look: {summary.constant_miou:.3f} ({summary.constant})")
    print(f"{'':12}{'warm start':>12}{'RLAIF':>10}{'gain':>10}")
    for name in ("miou", "r@0.3", "r@0.5", "r@0.7", "unreadable_rate"):
        print(f"{name:16}{before[name]:>8.3f}{after[name]:>10.3f}{after[name] - before[name]:>+10.3f}")
    stages = "   ".join(f"{name} {value:.0f} s" for name, value in demo.seconds.items())
    print(f"\nTime: {stages}   together {sum(demo.seconds.values()):.0f} s")
    print(f"Figures: {demo.path('summary.json')}; answers: {demo.path('rlaif_test')}")
