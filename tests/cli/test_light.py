"""What each subcommand imports: help and versions at once, and nothing that it does not use."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orlaif.arguments import UsageError
from orlaif.cli.main import SUBCOMMANDS, subcommand
from tests.conftest import REPO

HEAVY = ("torch", "lightning", "transformers", "jsonargparse", "peft")


def ran(words: list[str], unwanted: tuple[str, ...]) -> tuple[str, float]:
    """What ``orlaif`` prints in a process of its own that may not import some modules, and its seconds."""
    script = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {unwanted!r}:
            raise AssertionError(f"{{name}} is imported")
sys.meta_path.insert(0, Refuse())
from orlaif.cli.main import main
sys.argv = ["orlaif", *{words!r}]
main()
"""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=REPO)
    assert done.returncode == 0, done.stderr
    return done.stdout, time.perf_counter() - start


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_lists_all_subcommands_at_once(word: str) -> None:
    said, seconds = ran([word], HEAVY)
    assert all(f"\n  {name} " in said for name in SUBCOMMANDS)
    assert seconds < 5.0  # 0.05 s where nothing else runs


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--help"], 0, "usage: orlaif <subcommand> [arguments]\n"),
        (["compare", "--help"], 0, "usage: orlaif compare "),
        (["tets"], 2, "orlaif: error: 'tets' is no subcommand; did you mean 'test'?\n"),
    ],
)
def test_the_module_is_run_as_the_script_is(words: list[str], status: int, said: str) -> None:
    command = [sys.executable, "-m", "orlaif", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, cwd=REPO)
    assert done.returncode == status
    assert done.stdout.startswith(said)


def test_the_version() -> None:
    assert ran(["--version"], HEAVY)[0] == f"orlaif {importlib.metadata.version('orlaif')}\n"


def test_a_slip_in_the_version() -> None:
    with pytest.raises(UsageError, match="there is no --versio; did you mean --version"):
        subcommand(["--versio"])


def test_the_list_of_classes_imports_none() -> None:
    said = ran(["help"], HEAVY)[0].split()
    assert {"orlaif.OracleRLAIF", "orlaif.oracles.HTTPJudge", "orlaif.training.callbacks.Checkpointing"} <= set(said)
    named = {
        path
        for recipe in (REPO / "recipes").rglob("*.yaml")
        for path in re.findall(r"class_path: *(orlaif[\w.]+)", recipe.read_text(encoding="utf-8"))
    }
    listed = {path.rpartition(".")[2] for path in said}
    assert {path.rpartition(".")[2] for path in named} <= listed
    assert not listed & {"Leaf", "Sealed", "Share", "Given", "Oracle", "RowDataset", "PolicyModule", "Words"}


def test_help_of_a_class_imports_its_own_module_only() -> None:
    """An evaluation's suite needs no torch."""
    said = ran(["help", "VideoMMESuite"], HEAVY)[0]
    assert said.startswith("orlaif.evaluation.video_mme.VideoMMESuite\n")


def test_two_results_are_compared_without_torch(tmp_path: Path) -> None:
    for name, right in (("a", 0.0), ("b", 1.0)):
        folder = tmp_path / name
        folder.mkdir()
        rows = [
            f'{{"id": "q{i}", "category": "color", "tags": {{}}, "scores": {{"exact_match": {right}}}}}\n'
            for i in range(4)
        ]
        (folder / "graded.jsonl").write_text("".join(rows))
    said, _ = ran(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--resamples", "100"], HEAVY)
    assert "| a | b |" in said


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("OracleRLAIF", ["orlaif.OracleRLAIF", "  policy: Policy (required)", "  num_updates: int = 1"]),
        ("orlaif.oracles.RandomOracle", ["orlaif.oracles.RandomOracle"]),
        ("SamplingParams", ["  temperature: float = 1.0"]),
        ("torch.optim.SGD", ["torch.optim.SGD"]),
        ("Checkpointing", ["  every_n_train_steps: int | None = null"]),
    ],
)
def test_help_of_a_class(name: str, lines: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    from orlaif.cli.help_class import main

    assert main([name]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line not in said] == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (":func:`ndcg_penalty` of ranks", "ndcg_penalty of ranks"),
        ("a :class:`~orlaif.types.Prompt`, or :py:meth:`Policy.load`", "a Prompt, or Policy.load"),
        (":class:`the loss <orlaif.losses.Loss>`: ``grpo``", "the loss: ``grpo``"),
    ],
)
def test_help_is_without_roles(text: str, shown: str) -> None:
    from orlaif.cli.help_class import find_class, page, plain

    assert plain(text) == shown
    assert ":func:" not in page(*find_class("NDCGPenalty"))
    assert "can push the best answer down" in page(*find_class("NDCGPenalty"))


def test_every_argument_of_the_public_classes_is_documented() -> None:
    """What ``orlaif help`` shows of a class that recipes name has words for each of its arguments."""
    from orlaif.cli.help_class import arguments, find_class

    for name in ("OracleRLAIF", "SupervisedFineTuning", "VideoDataModule", "Policy", "Rollout", "HTTPJudge"):
        _, kind = find_class(name)
        assert [one.name for one in arguments(kind) if not one.about] == [], name
