"""The pages of a first real run and of troubleshooting: their figures are the plan's, and what they name exists."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from orlaif.cli import plan
from orlaif.data.video import FpsSampling, PixelBudget, UniformSampling
from orlaif.openai_client import ChatClient
from orlaif.oracles import HTTPJudge, ListwiseJudge, PairwiseJudge, ReferenceAnswerOracle
from orlaif.rollout import Rollout
from orlaif.training.callbacks import Checkpointing, KeepSamples
from orlaif.view.signs import signs
from tests.configs import write_config
from tests.conftest import REPO
from tests.docs.keys import CLASSES, takes
from tests.docs.test_metrics import known

REAL_RUN = REPO / "docs" / "tutorials" / "first_real_run.md"
TROUBLE = REPO / "docs" / "reference" / "troubleshooting.md"
PAGES = [REAL_RUN, TROUBLE]
ROWS = [
    [cell.strip(" `") for cell in line[1:-1].split("|")]
    for line in REAL_RUN.read_text().splitlines()
    if line.startswith("| `rlaif_")
]
INIT = "--model.init_args"
FULL = [
    f"{INIT}.policy.init_args.lora=null",
    f"{INIT}.policy.init_args.dtype=float32",
    f'{INIT}.policy.init_args.sharding={{"param_dtype": "bfloat16", "reduce_dtype": "float32"}}',
    "--trainer.strategy=fsdp2",
]
#: Whose keys are named without a path, beside those of OracleRLAIF itself.
PLAIN: list[Any] = [
    *(ChatClient, HTTPJudge, ListwiseJudge, PairwiseJudge, ReferenceAnswerOracle),
    *(ModelCheckpoint, Checkpointing, KeepSamples, UniformSampling, FpsSampling, PixelBudget, *CLASSES.values()),
]
#: Words of the command line and the like, in the type of keys.
WORDS = {"plan", "dmesg", "duplicate", "format", "recipes", "my_recipe.yaml", "model.init_args"}


def without_code(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, marks=pytest.mark.slow if i else (), id=" ".join(row[:4])) for i, row in enumerate(ROWS)],
)
def test_the_table_of_what_fits_is_what_plan_says(
    row: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first row is run anywhere; the others are slow."""
    recipe, memory, trained, group, frames, answer, batch, part, checkpointing, reference, peak = row
    path = REPO / "recipes" / f"{recipe}.yaml"
    name = re.search(r"path: (Qwen/\S+)", path.read_text())
    assert name
    assert (trained, reference) in (("LoRA", "adapter off"), ("full", "copy"))
    arguments = [
        *("--config", str(path), "--gpu-memory", f"{memory}GB"),
        f"{INIT}.policy.init_args.path={write_config(name[1], tmp_path)}",
        f"{INIT}.policy.init_args.gradient_checkpointing={checkpointing}",
        f"{INIT}.rollout.init_args.group_size={group}",
        f"{INIT}.rollout.init_args.sampling.max_new_tokens={answer}",
        f"{INIT}.microbatch={part}",
        f"--data.init_args.sampling.init_args.num_frames={frames}",
        f"--data.init_args.batch_size={batch}",
        *(FULL if trained == "full" else []),
    ]
    assert plan.main(arguments) == 0
    shown = re.search(r"^peak +([\d.]+)$", capsys.readouterr().out, re.MULTILINE)
    assert shown
    assert float(peak) == pytest.approx(float(shown[1]), abs=0.051)


def test_each_size_has_a_row_for_its_own_recipe() -> None:
    """With the recipe's own settings, for the GPU of its name."""
    for stem in {row[0] for row in ROWS}:
        text = (REPO / "recipes" / f"{stem}.yaml").read_text()
        ours = [re.search(rf"\b{key}: (\w+)", text) for key in ("group_size", "num_frames", "max_new_tokens")]
        ours += [
            re.search(rf"\n +{key}: (\w+)", text) for key in ("batch_size", "microbatch", "gradient_checkpointing")
        ]
        own = [one[1] for one in ours if one]
        assert ["24", "LoRA", *own] in [row[1:9] for row in ROWS if row[0] == stem]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_signs_of_the_page_and_metrics_exist(page: Path) -> None:
    text = without_code(page)
    of_the_page = {sign["name"] for sign in signs([])}
    bold = set(re.findall(r"\*\*([a-z ]+)\*\*", text))
    assert len(bold) > 5
    assert bold <= of_the_page
    metrics = re.findall(r"`((?:train|val|oracle|answer|time|data|groups)/[\w/]+)`", text)
    assert len(metrics) > 10
    assert [one for one in metrics if not known(one)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_keys_of_recipes_exist(page: Path) -> None:
    named = set(re.findall(r"`([a-z_]+(?:\.[a-z_]+)*)(?:: [^`]*)?`", without_code(page))) - WORDS
    assert len(named) > 15
    assert sorted(key for key in named if not is_key(key)) == []


def is_key(key: str) -> bool:
    """Whether a recipe has it: by its whole path, or, without one, in a class of ``PLAIN``."""
    where, _, name = key.rpartition(".")
    if not where:
        return any(has(one, name) for one in PLAIN)
    return where in CLASSES and (takes(where, name) or (where == "rollout" and has(Rollout, name)))


def has(one: Any, name: str) -> bool:
    return name in inspect.signature(one).parameters


def test_a_key_that_no_recipe_has_is_noticed() -> None:
    assert is_key("loss.kl_coef")
    assert is_key("num_ballots")
    assert not is_key("loss.kl_coeff")
    assert not is_key("nothing.kl_coef")


def test_sentences_of_errors_are_the_projects() -> None:
    """Italics of the page of symptoms, up to what a run fills in, stand in the source."""
    sources = " ".join(path.read_text() for path in (REPO / "orlaif").rglob("*.py"))
    joined = re.sub(r'"\s*\n\s*(?:cause \+= )?f?"', "", sources)
    said = re.findall(r"(?<!\*)\*([a-z][^*]{15,})\*(?!\*)", without_code(TROUBLE))
    assert len(said) >= 7
    for sentence in said:
        for part in sentence.split("..."):
            assert part.strip(": ") in joined, part
