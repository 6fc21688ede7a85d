"""Whether two checkouts train alike, to the bit: ``python tools/compare_checkouts.py OLD NEW``.

For a move that must not change behaviour. In each checkout, with this interpreter, a few steps of supervised
fine-tuning and of Oracle-RLAIF (whole, with LoRA, in microbatches with several updates) run on a tiny model and the
same rendered clips, made once by OLD. Weights must then be equal to the bit, and metrics too, but for times. Exits with
1 and says what differs first. CPU only; under a minute for each checkout.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

STEPS = 3
#: Where the embedded model and data set live, in the order in which they have moved.
SHAPES = ("orlaif.demo.shapes", "orlaif.data.shapes")
HOMES = {"make_tiny_model": ("orlaif.demo.tiny", "orlaif.tiny"), "ShapesDataset": SHAPES, "words": SHAPES}
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"]}
RUNS: dict[str, dict[str, Any]] = {
    "sft": {},
    "rlaif": {},
    "rlaif, LoRA, refreshed reference": {"policy": {"lora": LORA}, "model": {"reference": {"refresh": "epoch"}}},
    "rlaif, microbatches, two updates": {"model": {"microbatch": 2, "num_updates": 2}},
    "rlaif, duplicated prompts": {"policy": {"prefix": "duplicate"}},
}


def find(name: str) -> Any:
    """The embedded model's or data set's maker, in whichever module this checkout has it."""
    for home in HOMES[name]:
        try:
            return getattr(importlib.import_module(home), name)
        except ImportError:
            continue
    raise ImportError(f"{name} is in none of {', '.join(HOMES[name])}")


def prepare(folder: Path) -> None:
    """Render clips and save a tiny model, for both checkouts."""
    dataset = find("ShapesDataset")(root=str(folder / "shapes"), split="train", size=24)
    dataset.prepare()
    find("make_tiny_model")(str(folder / "model"), find("words")(), seed=0)


def train(folder: Path, name: str, output: Path) -> None:
    """One run of :data:`STEPS` steps; its metrics and weights go to ``output``."""
    import torch
    from lightning import Callback, Trainer, seed_everything

    from orlaif import OracleRLAIF, SupervisedFineTuning, VideoDataModule
    from orlaif.data.video import UniformSampling
    from orlaif.losses import GRPORankLoss
    from orlaif.oracles import ReferenceAnswerOracle
    from orlaif.policy import Policy
    from orlaif.rollout import Rollout, SamplingParams

    log: list[dict[str, float]] = []

    class Recorder(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
            log.append({key: value for key, value in metrics.items() if "time/" not in key})

    settings = RUNS[name]
    seed_everything(7, verbose=False)
    policy = Policy(str(folder / "model"), dtype="float32", **settings.get("policy", {}))
    if name == "sft":
        module: Any = SupervisedFineTuning(policy, lambda params: torch.optim.AdamW(params, lr=1e-3))
    else:
        options = dict(settings.get("model", {}))
        if "reference" in options:
            reference = importlib.import_module(OracleRLAIF.__module__).Reference
            options["reference"] = reference(**options["reference"])
        module = OracleRLAIF(
            policy,
            ReferenceAnswerOracle(),
            Rollout(group_size=4, sampling=SamplingParams(max_new_tokens=4)),
            loss=GRPORankLoss(kl_coef=0.05),
            optimizer=lambda params: torch.optim.AdamW(params, lr=1e-3),
            **options,
        )
    dataset = find("ShapesDataset")(root=str(folder / "shapes"), split="train", size=24)
    data = VideoDataModule(train=dataset, sampling=UniformSampling(4), batch_size=4, seed=0)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=STEPS,
        logger=False,
        callbacks=[Recorder()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
        default_root_dir=str(output.parent),
    )
    trainer.fit(module, data)
    torch.save({"metrics": log, "weights": dict(policy.network.state_dict())}, output)


def compare(old: Path, new: Path) -> str | None:
    """What differs first between two recorded runs, or None."""
    import torch

    a, b = (torch.load(path, weights_only=True) for path in (old, new))
    if a["metrics"] != b["metrics"]:
        for step, (first, second) in enumerate(zip(a["metrics"], b["metrics"], strict=False)):
            for key in sorted(first.keys() | second.keys()):
                if first.get(key) != second.get(key):
                    return f"batch {step}, {key}: {first.get(key)!r} and {second.get(key)!r}"
        return f"{len(a['metrics'])} and {len(b['metrics'])} batches"
    if a["weights"].keys() != b["weights"].keys():
        return f"weights of other names: {sorted(a['weights'].keys() ^ b['weights'].keys())[:3]}"
    different = [name for name, value in a["weights"].items() if not torch.equal(value, b["weights"][name])]
    return f"{len(different)} weights, first {different[0]}" if different else None


def main() -> int:
    """Compare two checkouts; or, called by itself in one of them, make one part of the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        outputs: dict[str, list[Path]] = {}
        for number, checkout in enumerate((arguments.old.resolve(), arguments.new.resolve())):
            paths = os.pathsep.join([str(checkout), str(checkout / "kernels")])
            environment = {**os.environ, "PYTHONPATH": paths, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}

            def call(*words: str, where: Path = checkout, env: dict[str, str] = environment) -> None:
                subprocess.run([sys.executable, __file__, "--part", *words], check=True, cwd=where, env=env)

            if number == 0:
                call("prepare", json.dumps({"folder": name}))
            for place, run in enumerate(RUNS):
                output = folder / f"{place}-{number}" / "run.pt"
                output.parent.mkdir()
                call("train", json.dumps({"folder": name, "name": run, "output": str(output)}))
                outputs.setdefault(run, []).append(output)
        failed = False
        for run, (old, new) in outputs.items():
            difference = compare(old, new)
            failed |= difference is not None
            print(f"{run}: {'equal to the bit' if difference is None else difference}")
        return int(failed)


def part(verb: str, settings: dict[str, str]) -> None:
    """One part of the comparison, in a process that sees one checkout."""
    if verb == "prepare":
        prepare(Path(settings["folder"]))
    else:
        train(Path(settings["folder"]), settings["name"], Path(settings["output"]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--part"]:
        part(sys.argv[2], json.loads(sys.argv[3]))
    else:
        raise SystemExit(main())
