"""Stages of the benchmark, each a run of the command line with a recipe of its own; what is there is not run again."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import commit, forget_peak, status
from benchmarks.pretrained import connector, tower
from benchmarks.pretrained.clips import SIZES, write_split
from benchmarks.pretrained.facts import FACTS, right
from benchmarks.pretrained.model import Tower, around, language_model
from orlaif.data.datasets import JsonlDataset
from orlaif.demo.demo import POLICY_PATH

BAR = "--trainer.enable_progress_bar=false"
TOWER_STEPS, CONNECTOR_STEPS = 3000, 800


@dataclass
class Stages:
    """The folder of the benchmark, and what is run in it.

    Args:
        output: the folder.
        recipes: folder of the recipes.
    """

    output: str
    recipes: str = "recipes"

    def path(self, *parts: str) -> str:
        """A path below the folder."""
        return os.path.join(self.output, *parts)

    @contextmanager
    def measured(self, run: str) -> Iterator[None]:
        """Write seconds by the clock and of cores, the peak of memory and the commit to ``<run>/cost.json``."""
        forget_peak()
        clock, cores = time.perf_counter(), time.process_time()
        yield
        cost = {
            "seconds": time.perf_counter() - clock,
            "core_seconds": time.process_time() - cores,
            "peak_gb": status("VmHWM") / 1e9,
            "commit": commit(),
        }
        write_json(self.path(run, "cost.json"), cost)

    def prepare(self) -> str:
        """Clips and the model with a trained tower and connector; the model's folder."""
        for split in SIZES:
            write_split(self.path("data"), split)
        folder = self.path("model")
        if not os.path.exists(self.path("model", "cost.json")):
            with self.measured("model"):
                model, processor = around(*language_model(), Tower())
                seen = tower.train(model, TOWER_STEPS)
                named = connector.train(model, processor.tokenizer, CONNECTOR_STEPS)
                model.save_pretrained(folder)
                processor.save_pretrained(folder)
            write_json(self.path("model", "tower.json"), {"tower": seen, "connector": named})
        return folder

    def orlaif(self, subcommand: str, recipe: str, run: str, start: str, seed: int, extra: Sequence[str] = ()) -> Any:
        """Print and run ``orlaif <subcommand>``; returns the finished CLI."""
        from orlaif.cli.recipe import run as run_cli

        arguments = [subcommand, "--config", os.path.join(self.recipes, recipe), f"--seed_everything={seed}"]
        arguments += [f"--run_dir={self.path(run)}", f"{POLICY_PATH}={start}", BAR]
        print(f"\n$ orlaif {' '.join([*arguments, *extra])}", flush=True)
        return run_cli([*arguments, *extra])

    def data(self, *splits: str) -> list[str]:
        """Arguments for data below this folder: ``split=file`` each."""
        named = (split.split("=") for split in splits)
        return [
            f"--data.init_args.{split}.init_args.path={self.path('data', f'{file}.jsonl')}" for split, file in named
        ]

    def fit(self, recipe: str, run: str, start: str, seed: int, extra: Sequence[str] = ()) -> str:
        """Train, if that has not been done; the folder of the exported model."""
        if not os.path.exists(self.path(run, "cost.json")):
            with self.measured(run):
                self.orlaif("fit", recipe, run, start, seed, extra)
        return self.path(run, "export")

    def test(self, run: str, model: str, seed: int) -> dict[str, Any]:
        """Greedy answers to the test questions, and the share of facts that they have right."""
        path = self.path(run, "facts.json")
        if not os.path.exists(path):
            extra = ["--model.init_args.policy.init_args.lora=null", *self.data("test=test")]
            self.orlaif("test", "pretrained_sft.yaml", run, model, seed, extra)
            write_json(path, self.read_answers(self.path(run, "predictions", "test.jsonl")))
        return read_json(path)

    def read_answers(self, predictions: str) -> dict[str, Any]:
        """Shares of facts that are right, and twelve answers drawn once for all."""
        answers, truths = self.answers(predictions)
        return {**shares(answers, truths), "samples": samples(answers, truths)}

    def answers(self, predictions: str) -> tuple[dict[str, str], dict[str, str]]:
        """By question of the test: what was answered, and what was rendered."""
        dataset = JsonlDataset(self.path("data", "test.jsonl"))
        dataset.load()
        truths = {dataset[i].id: str(dataset[i].answer) for i in range(len(dataset))}
        with open(predictions, encoding="utf-8") as file:
            return {row["id"]: row["prediction"] for row in map(json.loads, file)}, truths


def shares(answers: dict[str, str], truths: dict[str, str]) -> dict[str, Any]:
    """Share of each fact that is right, of all facts together (``facts``), and of answers with all right (``all``)."""
    rows = [right(answers[name], truths[name]) for name in sorted(truths)]
    by_fact = {fact: sum(row[fact] for row in rows) / len(rows) for fact in FACTS}
    return {
        "questions": len(rows),
        "facts": sum(by_fact.values()) / len(FACTS),
        "all": sum(all(row.values()) for row in rows) / len(rows),
        "by_fact": by_fact,
    }


def samples(answers: dict[str, str], truths: dict[str, str], number: int = 12) -> list[dict[str, str]]:
    """The same questions of every run: what was rendered, and what was answered."""
    names = random.Random(0).sample(sorted(truths), min(number, len(truths)))
    return [{"id": name, "rendered": truths[name], "answer": answers[name]} for name in names]


def write_json(path: str, content: Any) -> None:
    """Write under another name, then rename."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(f"{path}.partial", "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
    os.replace(f"{path}.partial", path)


def read_json(path: str) -> Any:
    """Its content."""
    with open(path, encoding="utf-8") as file:
        return json.load(file)
