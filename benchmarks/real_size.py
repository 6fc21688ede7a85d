"""Two whole steps of a recipe on models of real size with random weights, on a CPU: memory and seconds beside the plan.

    OMP_NUM_THREADS=1 python -m benchmarks.real_size --size qwen2.5-vl-3b --size qwen3-vl-2b

`orlaif fit` and `orlaif plan` are given the same recipe with the same overrides, as a user would type them: videos are
decoded, answers sampled (of random weights, and so of full length) and ranked at random. Memory is counted two ways:
tensors that are alive, as the plan counts them, and the process's own pages. A model is written to the scratch folder
(7.5 GB for a 3B) and deleted behind its run; ``--plan`` renews what the plan says and runs nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer

from benchmarks.by_stage import ByStage, current_stage
from benchmarks.harness import ROOT, about, forget_peak, installed, status
from benchmarks.models import SIZES, build, write_model
from benchmarks.rlaif import Stages
from orlaif import OracleRLAIF, VideoDataModule
from orlaif.cli.plan.estimate import Estimate
from orlaif.cli.plan.hardware import hardware
from orlaif.cli.plan.recipe_sizes import setup_of, video_tokens
from orlaif.cli.plan.seconds import Seconds
from orlaif.cli.recipe import read_recipe

RECIPE = "recipes/rlaif_qwen2_5_vl_3b_lora_1x80gb.yaml"
RESULT = ROOT / "benchmarks" / "results" / "real_size_cpu.json"
VIDEOS = ROOT.parent / "shared" / "videos"
#: 480 x 270 for 13 s, and 640 x 360 for 5 s.
CLIPS = ("nasa_13013.mp4", "av1_video.mkv")
#: What a user with a CPU, short clips and little time would set; all else is the recipe's.
OVERRIDES = (
    "--model.init_args.oracle=orlaif.oracles.RandomOracle",
    "--model.init_args.rollout.init_args.group_size=4",
    "--model.init_args.rollout.init_args.sampling.max_new_tokens=32",
    "--data.init_args.sampling.init_args.num_frames=8",
    "--data.init_args.batch_size=1",
    "--data.init_args.val=null",
    "--trainer.accelerator=cpu",
    "--trainer.max_steps=2",
    "--trainer.val_check_interval=null",
)


class Watch(Callback):
    """Counts bytes in the first step and seconds in the others, and writes them where it was told.

    Seconds of the processor are those that a machine of its own would take; others may be at work beside it.

    Args:
        path: of the JSON.
    """

    def __init__(self, path: str) -> None:
        self.path, self.stages = path, Stages()
        self.resident: dict[str, int] = defaultdict(int)
        self.seconds: dict[str, float] = defaultdict(float)
        self.core_seconds: list[dict[str, float]] = []
        self.ends: list[float] = []
        self._done = threading.Event()

    def _look(self) -> None:
        before = time.process_time()
        while not self._done.wait(0.03):
            name, now = current_stage(), time.process_time()
            self.seconds[name] += now - before
            self.resident[name] = max(self.resident[name], status("VmRSS"))
            before = now

    def setup(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Before the model is loaded."""
        self.before = forget_peak()
        threading.Thread(target=self._look, daemon=True).start()

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """The model is there, whole, and nothing else yet."""
        self.load_s = dict(self.seconds)
        network = pl_module.policy.network
        standing = [*network.parameters(), *network.buffers()]
        self.weights = sum(t.numel() * t.element_size() for t in {id(t): t for t in standing}.values())
        self.live = ByStage(standing)
        self.live.__enter__()

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """From here on are steps."""
        self.ends = [time.perf_counter()]
        self.seconds = defaultdict(float)

    def on_train_batch_end(self, trainer: Trainer, *arguments: Any) -> None:
        """Keep the seconds of its stages; behind the first step, count no more, for that takes time."""
        self.stages.on_train_batch_end(trainer, *arguments)
        self.ends.append(time.perf_counter())
        self.core_seconds.append(dict(self.seconds))
        self.seconds = defaultdict(float)
        if len(self.core_seconds) == trainer.accumulate_grad_batches:
            self.live.__exit__(None, None, None)

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        """Write."""
        self._done.set()
        counted = trainer.accumulate_grad_batches
        found = {
            "load_core_s": self.load_s,
            "batches_s": self.stages.seconds[counted:],
            "batches_core_s": self.core_seconds[counted:],
            "batches_wall_s": [b - a for a, b in zip(self.ends, self.ends[1:], strict=False)][counted:],
            "tokens": float(trainer.callback_metrics["train/num_tokens"]),
            "answer_tokens": float(trainer.callback_metrics["train/completions/mean_length"]),
            "weight_bytes": self.weights,
            "live_bytes": {name: peak + self.weights for name, peak in self.live.peaks.items()},
            "process_bytes_before": self.before,
            "process_bytes": dict(self.resident),
            "process_peak_bytes": status("VmHWM"),
        }
        Path(self.path).write_text(json.dumps(found, indent=1), encoding="utf-8")


def words(folder: Path) -> list[str]:
    """What `orlaif fit` and `orlaif plan` are given alike.

    Args:
        folder: with the model and the questions.
    """
    return [
        f"--config={RECIPE}",
        f"--run_dir={folder / 'run'}",
        f"--model.init_args.policy.init_args.path={folder / 'model'}",
        f"--data.init_args.train.init_args.path={folder / 'train.jsonl'}",
        *OVERRIDES,
    ]


def measure(size: str, scratch: Path) -> dict[str, Any]:
    """Write the model, run two steps, and delete it.

    Args:
        size: of the model (``benchmarks.models``).
        scratch: folder for it.
    """
    folder = scratch / size
    rows = [{"id": f"q{i}", "video": str(VIDEOS / CLIPS[i % 2]), "question": "what is this"} for i in range(4)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "model" / "config.json").is_file():
            write_model(str(folder / "model"), size, "cpu")
        text = "".join(json.dumps({**row, "answer": "this"}) + "\n" for row in rows)
        (folder / "train.jsonl").write_text(text, encoding="utf-8")
        watch = f"--trainer.callbacks+={json.dumps(_watch(folder))}"
        subprocess.run([sys.executable, "-m", "orlaif", "fit", *words(folder), watch], cwd=ROOT, check=True)
        found: dict[str, Any] = json.loads((folder / "found.json").read_text(encoding="utf-8"))
        return found
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def planned(size: str, scratch: Path) -> dict[str, Any]:
    """What `orlaif plan` says of the same words: memory for the larger clip, seconds for both alike.

    Args:
        size: of the model.
        scratch: folder for its config and processor.
    """
    folder = scratch / f"{size}-config"
    _, config, processor = build(size)
    config.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    device, found = hardware("cpu"), []
    for height, width, seconds in ((270, 480, 13.0), (360, 640, 5.0)):
        recipe = read_recipe(words(folder))
        module, data = recipe.model, recipe.datamodule
        assert isinstance(module, OracleRLAIF)
        assert isinstance(data, VideoDataModule)
        tokens = video_tokens(module.policy, data, height, width, seconds)
        setup = setup_of(module, data, recipe.trainer_settings, 1, tokens, text_tokens=3, answer_tokens=0)
        estimate = Estimate(module.policy, module.optimizer)
        found.append((estimate.plan(replace(setup, host_overhead=0)), Seconds(estimate, device).of_step(setup)))
    (_, short), (plan, long) = found
    return {
        "device": device.said,
        "standing": plan.standing,
        "phases": plan.phases,
        "total": plan.total,
        "seconds": {name: (short[name] + long[name]) / 2 for name in long},
    }


def _watch(folder: Path) -> dict[str, Any]:
    return {"class_path": "benchmarks.real_size.Watch", "init_args": {"path": str(folder / "found.json")}}


def main() -> None:
    """Measure the sizes that are named, and write what was found beside what was there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), action="append", required=True)
    parser.add_argument("--scratch", default=os.path.join(tempfile.gettempdir(), "orlaif-real-size"))
    parser.add_argument("--plan", action="store_true", help="only what the plan says")
    parser.add_argument("--output", default=str(RESULT))
    given = parser.parse_args()
    output = Path(given.output)
    for size in given.size:
        report = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {"sizes": {}}
        if not given.plan:
            report |= {**about(False), "versions": installed("torch", "transformers", "peft", "lightning")}
            report |= {"threads": torch.get_num_threads(), "recipe": RECIPE, "overrides": OVERRIDES}
            report["sizes"][size] = {"measured": measure(size, Path(given.scratch))}
        report["sizes"][size]["planned"] = planned(size, Path(given.scratch))
        output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
