"""Both sides: the same stage by orlaif's command line and by TRL's GRPOTrainer, with one set of settings."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import Callback

from benchmarks.trl_side_by_side.task import NEW_TOKENS, questions, reward

PROMPTS, GROUP, STEPS, LR, KL = 16, 8, 60, 3e-4, 0.02


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
                "init_args": {"score": "benchmarks.trl_side_by_side.task.score"},
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
                {"class_path": "benchmarks.trl_side_by_side.sides.Clock"},
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
