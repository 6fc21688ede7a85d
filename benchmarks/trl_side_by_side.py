"""TRL's GRPOTrainer beside orlaif: one model, one text-only task, the same settings; accuracy and time of a step.

The task: five letters are to be said in reverse order; the reward is the share of places that are right. The model is
the demo's tiny Qwen3-VL, without any video, after a supervised warm start that is broken off early. From there both
train with plain scalar GRPO: group z-scores (``ZScore``; ``scale_rewards: group``), all tokens alike (``dapo``), the
same clip, KL coefficient, temperature, AdamW, schedule, gradient clip and number of prompts, answers and steps, in
float32.
Which prompts a step sees, and what is drawn from the policy, differs by each side's own random numbers. Two things are
left as each has them: TRL's KL gradient (``use_bias_correction_kl``, true by default), and the tokens that stand for
images and videos, which orlaif leaves out of its probabilities. Without these two the weights after two steps are equal
to float32's rounding (``tests/training/test_as_trl.py``).

Each run is a process of its own, orlaif and TRL in turn, on one thread. Both exports are read by one loop: greedy
answers to the same 500 test questions. A run that is there already is not made again. Writes JSON:

    .venv/bin/python -m benchmarks.trl_side_by_side [--seeds 0 1 2] [--output outputs/trl]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import Callback

from benchmarks.demo_controls import interval
from benchmarks.harness import about, installed

LETTERS, LENGTH = "abcdefgh", 5
SIZES = {"train": 2048, "test": 500}
PROMPTS, GROUP, STEPS, LR, KL, NEW_TOKENS = 16, 8, 60, 3e-4, 0.02, LENGTH + 1
SIDES = ("orlaif", "trl")


def questions(split: str, seed: int) -> list[tuple[str, str]]:
    """Question and answer; no test question is a training question."""
    rng, seen = random.Random(f"reverse/{seed}"), set[str]()
    found: dict[str, list[tuple[str, str]]] = {}
    for name, size in SIZES.items():
        found[name] = []
        while len(found[name]) < size:
            letters = [rng.choice(LETTERS) for _ in range(LENGTH)]
            if (question := " ".join(letters)) not in seen:
                seen.add(question)
                found[name].append((f"reverse {question}", " ".join(reversed(letters))))
    return found[split]


def reward(answer: str, reference: str) -> float:
    """Share of places that are right; 0 for an answer of another length."""
    said, right = answer.split(), reference.split()
    return sum(a == b for a, b in zip(said, right, strict=True)) / len(right) if len(said) == len(right) else 0.0


def score(group: Any) -> list[float]:
    """The reward of each answer of a group, for ``ScoreOracle``."""
    return [reward(answer, group.prompt.answer) for answer in group.answers]


def data(folder: Path, seed: int) -> None:
    """Rows of both splits, as orlaif reads them."""
    for split in SIZES:
        rows = [
            {"id": f"{split}{i}", "messages": [{"role": "user", "content": asked}], "answer": answer}
            for i, (asked, answer) in enumerate(questions(split, seed))
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def recipe(folder: Path, seed: int, stage: str, steps: int) -> str:
    """The recipe of the warm start (``sft``) or of orlaif's side, as a file."""
    policy = {"path": str(folder / ("model" if stage == "sft" else "sft/export")), "dtype": "float32"}
    model: dict[str, Any] = {
        "policy": {"class_path": "orlaif.policy.Policy", "init_args": policy},
        "optimizer": {
            "class_path": "torch.optim.AdamW",
            "init_args": {"lr": 3e-3 if stage == "sft" else LR, "weight_decay": 0.01},
        },
        "lr_scheduler": {
            "class_path": "torch.optim.lr_scheduler.LinearLR",
            "init_args": {"start_factor": 1.0, "end_factor": 0.0, "total_iters": steps},
        },
        "eval_max_new_tokens": NEW_TOKENS,
    }
    if stage == "rl":
        model |= {
            "oracle": {
                "class_path": "orlaif.oracles.ScoreOracle",
                "init_args": {"score": "benchmarks.trl_side_by_side.score"},
            },
            "rollout": {
                "class_path": "orlaif.rollout.Rollout",
                "init_args": {
                    "group_size": GROUP,
                    "sampling": {"max_new_tokens": NEW_TOKENS, "temperature": 1.0},
                },
            },
            "advantage": {"class_path": "orlaif.advantages.ZScore"},
            "loss": {"kl_coef": KL, "loss_type": "dapo"},
            "order_consistency_every_n_steps": 0,
        }
    rows = {"class_path": "orlaif.data.datasets.JsonlDataset", "init_args": {"path": str(folder / "train.jsonl")}}
    content = {
        "seed_everything": seed,
        "run_dir": str(folder / stage),
        "model": {
            "class_path": "orlaif.SupervisedFineTuning" if stage == "sft" else "orlaif.OracleRLAIF",
            "init_args": model,
        },
        "data": {
            "class_path": "orlaif.VideoDataModule",
            "init_args": {"train": rows, "batch_size": 32 if stage == "sft" else PROMPTS},
        },
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 100,
            "max_steps": steps,
            "gradient_clip_val": 1.0,
            "log_every_n_steps": 10,
            "enable_progress_bar": False,
            "enable_checkpointing": False,
            "callbacks": [
                {"class_path": "orlaif.training.callbacks.ExportHuggingFace"},
                {"class_path": "benchmarks.trl_side_by_side.Clock"},
            ],
        },
    }
    path = folder / f"{stage}.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return str(path)


class Clock(Callback):
    """Seconds of each training step, from one step's end to the next, beside the run's export."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """The step is over."""
        self.ends.append(time.perf_counter())

    def on_train_end(self, trainer: Any, *_: Any) -> None:
        """Write them down."""
        keep(Path(trainer.default_root_dir), self.ends)


def keep(folder: Path, ends: list[float]) -> None:
    """Seconds of each step but the first, as ``steps.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    seconds = [b - a for a, b in itertools.pairwise(ends)]
    (folder / "steps.json").write_text(json.dumps(seconds), encoding="utf-8")


def by_orlaif(folder: Path, seed: int, stage: str, steps: int) -> None:
    """Train, as the command line does."""
    from orlaif.cli.recipe import run

    run(["fit", "--config", recipe(folder, seed, stage, steps)])


def by_trl(folder: Path, seed: int, steps: int) -> None:
    """Train with TRL; its settings are those of :func:`recipe` by the table of docs/reference/migrating.md."""
    from datasets import Dataset
    from transformers import AutoModelForImageTextToText, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    ends: list[float] = []

    class TheirClock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    def rewards(completions: list[Any], answer: list[str], **_: Any) -> list[float | None]:
        return [reward(said[0]["content"], true) for said, true in zip(completions, answer, strict=True)]

    start = str(folder / "sft" / "export")
    rows = [
        {"prompt": [{"role": "user", "content": asked}], "answer": answer} for asked, answer in questions("train", seed)
    ]
    trainer = GRPOTrainer(
        model=AutoModelForImageTextToText.from_pretrained(start, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(start),
        reward_funcs=rewards,
        train_dataset=Dataset.from_list(rows),
        callbacks=[TheirClock()],
        args=GRPOConfig(
            output_dir=str(folder / "trl"),
            seed=seed,
            use_cpu=True,
            bf16=False,
            per_device_train_batch_size=PROMPTS * GROUP,
            num_generations=GROUP,
            max_completion_length=NEW_TOKENS,
            temperature=1.0,
            beta=KL,
            epsilon=0.2,
            loss_type="dapo",
            scale_rewards="group",
            learning_rate=LR,
            lr_scheduler_type="linear",
            warmup_steps=0,
            weight_decay=0.01,
            adam_epsilon=1e-8,
            max_grad_norm=1.0,
            max_steps=steps,
            gradient_checkpointing=False,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
    )
    trainer.train()
    trainer.save_model(str(folder / "trl" / "export"))
    keep(folder / "trl", ends)


@torch.no_grad()
def read(export: Path, seed: int) -> dict[str, float]:
    """Mean reward and share of wholly right answers, greedy, on the test questions."""
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(export)
    model: Any = AutoModelForImageTextToText.from_pretrained(export, dtype=torch.float32).eval()
    asked = questions("test", seed)
    chats = [[{"role": "user", "content": question}] for question, _ in asked]
    inputs = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    ids = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    texts = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    rewards = [reward(text, answer) for text, (_, answer) in zip(texts, asked, strict=True)]
    return {"reward": statistics.fmean(rewards), "accuracy": statistics.fmean(value == 1 for value in rewards)}


def one(folder: Path, seed: int, side: str, sft_steps: int) -> None:
    """One stage of one seed, in this process."""
    if side == "sft":
        from orlaif.demo.tiny import make_tiny_model

        make_tiny_model(str(folder / "model"), [*LETTERS, "reverse"], seed=seed)
        data(folder, seed)
        by_orlaif(folder, seed, "sft", sft_steps)
    elif side == "orlaif":
        by_orlaif(folder, seed, "rl", STEPS)
    else:
        by_trl(folder, seed, STEPS)


def summary(runs: dict[str, Any]) -> dict[str, Any]:
    """Means over seeds with half a 95 % interval; accuracy in percent, the difference paired by seed."""
    rows: dict[str, Any] = {}
    for stage in ("sft", *SIDES):
        rows[stage] = {what: interval([100 * run[stage][what] for run in runs.values()]) for what in METRICS}
    for side in SIDES:
        rows[side]["seconds_per_step"] = statistics.median(run[side]["seconds_per_step"] for run in runs.values())
    rows["orlaif less trl"] = {
        what: interval([100 * (run["orlaif"][what] - run["trl"][what]) for run in runs.values()]) for what in METRICS
    }
    return rows


METRICS = ("accuracy", "reward")


def main() -> None:
    """Make the runs that are missing, orlaif and TRL in turn; write the JSON after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", default="outputs/trl")
    parser.add_argument("--sft_steps", type=int, default=60)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    output = Path(arguments.output)
    if arguments.one:
        seed, side = arguments.one
        one(output / f"seed{seed}", int(seed), side, arguments.sft_steps)
        return
    path, runs = output / "runs.json", {}
    if path.is_file():
        runs = json.loads(path.read_text(encoding="utf-8"))
    for seed in map(str, arguments.seeds):
        folder = output / f"seed{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        sides = SIDES if int(seed) % 2 == 0 else SIDES[::-1]
        for side in ("sft", *sides):
            if side in runs.get(seed, {}):
                continue
            again = [sys.executable, "-m", "benchmarks.trl_side_by_side", "--output", str(output)]
            again += ["--sft_steps", str(arguments.sft_steps), "--one", seed, side]
            subprocess.run(again, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            run = folder / ("rl" if side == "orlaif" else side)
            seconds = json.loads((run / "steps.json").read_text(encoding="utf-8"))
            found = read(run / "export", int(seed)) | {"seconds_per_step": statistics.median(seconds)}
            runs.setdefault(seed, {})[side] = found
            path.write_text(json.dumps(runs, indent=2), encoding="utf-8")
            print(seed, side, found, flush=True)
    report = {
        "what": "TRL's GRPOTrainer and orlaif from one warm start, with one set of settings; percent, 95 % intervals",
        "settings": {"prompts": PROMPTS, "group": GROUP, "steps": STEPS, "lr": LR, "kl_coef": KL},
        "test_questions": SIZES["test"],
        "summary": summary(runs),
        "runs": runs,
        **about(cuda=False),
        "versions": installed("torch", "transformers", "trl", "lightning"),
    }
    (output / "trl_side_by_side.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report["summary"], indent=2))


if __name__ == "__main__":
    main()
