"""Every command of README and docs is run, in a folder that looks like the checkout, on tiny models and few clips.

What is changed about a command is in :func:`smaller`; what needs something that is not here says so in its block's
title.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orlaif.cli import main as entry
from orlaif.demo.shapes import ShapesDataset
from tests.configs import write_config
from tests.conftest import REPO
from tests.docs.pages import Block, blocks, commands
from tests.oracles.server import ChatServer, shortest_first
from tests.view.runs import answer, group, run

BLOCKS = [block for block in blocks("bash") if not block.needs]
SIZES = {"train": 64, "validation": 10, "test": 20}
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false", "--trainer.accelerator=cpu"]
#: Of a run: the model and the data are small, and two steps are enough.
SHORT = ["--trainer.max_steps=2", "--trainer.limit_val_batches=1", "--trainer.log_every_n_steps=1"]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, tiny_model: str, data_root: str) -> Path:
    """A folder with recipes, a warm start, data, and the recipe of README as ``my_recipe.yaml``."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "recipes").symlink_to(REPO / "recipes")
    shutil.copytree(tiny_model, folder / "outputs" / "demo" / "sft" / "export")
    shutil.copytree(tiny_model, folder / "outputs" / "demo" / "rlaif" / "export")
    (folder / "outputs" / "demo" / "data").symlink_to(data_root)
    (recipe,) = blocks("yaml", REPO / "README.md")
    text = recipe.text.replace("Qwen/Qwen3-VL-4B-Instruct", tiny_model).replace("bfloat16", "float32")
    (folder / "my_recipe.yaml").write_text(text.replace("max_steps: 500", "max_steps: 2").replace("fps: 2", "fps: 4"))
    for name, split in (("train", "train"), ("val", "validation")):
        dataset = ShapesDataset(data_root, split, size=SIZES[split])
        dataset.prepare()
        rows = [
            {"id": p.id, "video": str(Path(p.video).resolve()), "question": p.question, "answer": p.answer}
            for p in dataset.prompts[:16]
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[ChatServer]:
    with ChatServer(shortest_first) as one:
        yield one


def smaller(words: list[str], server: ChatServer, folder: Path) -> list[str]:
    """The same command on little data."""
    line = " ".join(words)
    if "--data.init_args.predict" in words:
        place = words.index("--data.init_args.predict") + 1
        words[place] = re.sub(r"split: (\w+)", lambda m: f"split: {m[1]}, size: {SIZES[m[1]]}", words[place])
    if words[1] in ("fit", "test", "predict", "validate"):
        words += QUIET
    if "recipes/demo_rlaif.yaml" in line:
        for split, name in (("train", "train"), ("val", "validation"), ("test", "test")):
            words.append(f"--data.init_args.{split}.init_args.size={SIZES[name]}")
        words.append("--data.init_args.batch_size=4")
    if words[1] == "fit":
        words += SHORT
    if "PreferenceSampling" in line:  # answers that differ, although the model has learnt nothing
        words.append("--model.init_args.rollout.init_args.sampling.init_args.temperature=3.0")
    if "ranker_demo.yaml" in line:
        words += ["--data.init_args.batch_size=1", "--model.init_args.lr_scheduler=null"]
    if "http_judge" in line:
        words.append(f"--model.init_args.oracle.init_args.client.init_args.base_url={server.url}")
    if "qwen3_vl_8b" in line:
        config = write_config("Qwen/Qwen3-VL-8B-Instruct", folder)
        words.append(f"--model.init_args.policy.init_args.path={config}")
    return words


def call(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setenv("ORLAIF_TRACEBACK", "1")
    status = None
    try:
        entry.main()
    except SystemExit as end:
        status = end.code
    assert status in (0, None), f"{' '.join(words)} ended with {status}"


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_a_block_of_commands(
    block: Block, checkout: Path, server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkout)
    targets = re.findall(r"^(\w+):", (REPO / "Makefile").read_text(), re.MULTILINE)
    for words in commands(block):
        if words[0] == "make":
            assert words[1] in targets
        elif words[0] == "source":
            assert words[1] == ".venv/bin/activate"
        elif words[1:2] == ["compare"]:
            for name in ("sft", "rlaif"):  # what the demo leaves
                test = f"orlaif test --config recipes/demo_rlaif.yaml --run_dir outputs/demo/{name}"
                test += f" --model.init_args.policy.init_args.path outputs/demo/{name}/export"
                call(smaller(test.split(), server, tmp_path), monkeypatch)
            call(words, monkeypatch)
        elif words[1:2] == ["view"]:
            if not (checkout / words[2] / "samples").exists():
                run(checkout / words[2], [group(0, "p", answer("red", 0), answer("blue", 1))])
            exporting = [] if "--export" in words else ["--export", str(tmp_path / "page.html")]
            call([*words, *exporting], monkeypatch)  # instead of serving until Ctrl-C
        else:
            if words[1:2] == ["export"] and not (checkout / "outputs" / "my_run").exists():
                call(smaller(["orlaif", "fit", "--config", "my_recipe.yaml"], server, tmp_path), monkeypatch)
            assert words[0] == "orlaif", f"no test runs {words}"
            call(smaller(words, server, tmp_path), monkeypatch)
