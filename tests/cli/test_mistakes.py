"""Each mistake in one line that names the culprit: read by the parser or made by hand, nothing is trained."""

from __future__ import annotations

import errno
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from orlaif.cli import main as console
from orlaif.cli.errors import explained, one_line
from orlaif.cli.grammar import leaves, sentence
from tests.conftest import REPO

RECIPE = (REPO / "recipes" / "demo_rlaif.yaml").read_text()
POLICY = "--model.init_args.policy.init_args"
ORACLE = "--model.init_args.oracle"

Said = tuple[int, list[str]]
Command = Callable[..., Said]


@pytest.fixture
def orlaif(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """The command in this process, up to where a run would begin: exit status and lines of standard error."""
    from orlaif.cli.recipe import OrlaifCLI

    monkeypatch.setattr(OrlaifCLI, "_run_subcommand", lambda *args: pytest.fail("it ran"))
    monkeypatch.delenv("ORLAIF_TRACEBACK", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def run(*words: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["orlaif", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            console.main()
        # Nor those that say how far it is, which a busy machine has time for.
        other = re.compile(r"Seed set|orlaif: (/|\d+:\d\d )")
        lines = [line for line in capsys.readouterr().err.splitlines() if not other.match(line)]
        return int(end.value.code or 0), lines

    return run


def recipe(old: str, new: str) -> Callable[[Path], list[str]]:
    """Words that fit the demo's recipe with a change in its text."""

    def words(folder: Path) -> list[str]:
        assert old in RECIPE
        (folder / "recipe.yaml").write_text(RECIPE.replace(old, new, 1))
        return ["fit", "--config", str(folder / "recipe.yaml"), f"--run_dir={folder}/run"]

    return words


def file(content: str | bytes) -> Callable[[Path], list[str]]:
    """Words that fit a recipe of this content."""

    def words(folder: Path) -> list[str]:
        (folder / "recipe.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
        return ["fit", "--config", str(folder / "recipe.yaml")]

    return words


def line_of(text: str) -> int:
    """Line, from 1, in the demo's recipe."""
    return next(i for i, line in enumerate(RECIPE.splitlines(), 1) if text in line)


#: From words (or what makes them) to the exit status and what the line says, as a regular expression of all of it.
MISTAKES: dict[str, tuple[Sequence[str] | Callable[[Path], list[str]], int, str]] = {
    "no subcommand": ([], 2, r"no subcommand; it must be one of fit, validate, .*"),
    "a subcommand with a typo": (["ft"], 2, "'ft' is no subcommand; did you mean 'fit'[?]"),
    "another program's subcommand": (["deploy"], 2, "'deploy' is no subcommand; it must be one of fit, .*"),
    "an option before the subcommand": (["--config", "x", "fit"], 2, "--config comes before the subcommand; .*"),
    "no such answer format": (
        ["--model.init_args.policy.init_args.answer_format=think"],
        2,
        "model.policy.answer_format is think; it must be a class_path, 'whole', 'think_answer', 'last_line' or 'boxed' "
        r"\(on the command line\)",
    ),
    "no recipe": (["fit"], 2, "data and model are missing; name a recipe with --config recipe.yaml"),
    "no recipe's name": (["fit", "--config"], 2, "--config needs the path of a recipe"),
    "no such recipe": (["fit", "--config", "no.yaml"], 2, "--config no.yaml: no such file or directory"),
    "a folder for a recipe": (["fit", "--config", "."], 2, "--config .: is a directory"),
    "an empty recipe": (file(""), 2, ".*recipe.yaml: the file is empty; a recipe is a mapping .*"),
    "a list for a recipe": (file("- 1\n"), 2, ".*recipe.yaml: the file is a sequence; a recipe is a mapping .*"),
    "broken YAML": (file("a: [1\nb: {"), 2, ".*recipe.yaml, line 2: no valid YAML: did not find expected ',' or '\\]'"),
    "a tab in YAML": (file("a:\n\tb: 1"), 2, ".*recipe.yaml, line 2: no valid YAML: .*"),
    "Latin-1": (file(b"a: 1\nb: gr\xfcn\n"), 2, ".*recipe.yaml, line 2: not UTF-8 text; .*"),
    "a key twice": (
        recipe("seed_everything: 0", "seed_everything: 0\nseed_everything: 1"),
        2,
        f".*recipe.yaml, line {line_of('seed_everything') + 1}: 'seed_everything' was given before, on line "
        f"{line_of('seed_everything')}",
    ),
    "an unknown part": (
        recipe("trainer:", "trainr: {}\ntrainer:"),
        2,
        "trainr: no such key; did you mean 'trainer'[?] .*",
    ),
    "a key of the Trainer": (
        recipe("max_steps", "max_stepz"),
        2,
        "trainer.max_stepz: no such key; did you mean 'trainer.max_steps'[?] "
        rf"\(.*recipe.yaml, line {line_of('max_steps')}\)",
    ),
    "a key of the Trainer on the command line": (
        ["--trainer.max_stepz=3"],
        2,
        "trainer.max_stepz: no such key; did you mean 'trainer.max_steps'[?]",
    ),
    "the beginning of a key": (
        ["--trainer.max_step=3"],
        2,
        "trainer.max_step: no such key; did you mean 'trainer.max_steps'[?]",
    ),
    "a number out of its range": (
        ["--data.init_args.sampling.init_args.num_frames=0"],
        2,
        "UniformSampling.num_frames is 0; a clip needs 2 frames or more",
    ),
    "too many runs to compare": (
        ["compare", "a", "b", "c"],
        2,
        r"unrecognized arguments: c \(orlaif compare .*",
    ),
    "an export to nowhere": (["export", "--ckpt", "a"], 2, r"the following arguments are required: --to \(orlaif .*"),
    "a number that is none": (["plan", "--gpus", "x"], 2, r"argument --gpus: invalid int value: 'x' \(orlaif plan .*"),
    "a key of a nested class": (
        recipe("group_size", "group_sise"),
        2,
        "model.rollout.group_sise: Rollout has no argument 'group_sise'; did you mean 'group_size'[?] "
        rf"\(.*recipe.yaml, line {line_of('group_size')}\)",
    ),
    "a key of a settings class": (
        recipe("kl_coef", "kl_koef"),
        2,
        "model.loss.kl_koef: GRPORankLoss has no argument 'kl_koef'; did you mean 'kl_coef'[?] "
        rf"\(.*recipe.yaml, line {line_of('kl_coef')}\)",
    ),
    "a key of the data": (
        recipe("    batch_size", "    batchsize"),
        2,
        "data.batchsize: VideoDataModule has no argument 'batchsize'; did you mean 'batch_size'[?] .*",
    ),
    "a key of the policy, in a word": (
        [f"{POLICY}.dtyp=float32"],
        2,
        r"model.policy.dtyp: Policy has no argument 'dtyp'; did you mean 'dtype'[?] \(on the command line\)",
    ),
    "a key of torch's optimizer": (
        ["--model.init_args.optimizer.init_args.lrr=3"],
        2,
        "model.optimizer.lrr: AdamW has no argument 'lrr'; did you mean 'lr'[?] .*",
    ),
    "a key that is like no other": (
        ["--model.init_args.optimizer.init_args.zzz=3"],
        2,
        "model.optimizer.zzz: AdamW has no argument 'zzz'; (it must be one of .*|orlaif help AdamW lists them.*)",
    ),
    "a word too many": (["foo"], 2, "'foo' is neither a key nor the value of one; .*"),
    "a class with a typo": (
        [f"{ORACLE}=orlaif.oracles.RandomOracel"],
        2,
        "model.oracle: there is no orlaif.oracles.RandomOracel; did you mean orlaif.oracles.RandomOracle[?] .*",
    ),
    "a package with a typo": (
        [f"{ORACLE}=orlaif.oracel.RandomOracle"],
        2,
        "model.oracle: there is no orlaif.oracel.RandomOracle; did you mean orlaif.oracles.RandomOracle[?] .*",
    ),
    "the stage with a typo": (
        recipe("orlaif.OracleRLAIF", "orlaif.OracleRLAIFF"),
        2,
        "model: there is no orlaif.OracleRLAIFF; did you mean orlaif.OracleRLAIF[?] .*line .*",
    ),
    "a class of torch with a typo": (
        ["--model.init_args.optimizer=torch.optim.AdamX"],
        2,
        "model.optimizer: torch.optim has no AdamX; did you mean torch.optim.Adam[a-zA-Z]*[?] .*",
    ),
    "a callback with a typo": (
        ["--trainer.callbacks+=orlaif.training.callbacks.ExportHugginFace"],
        2,
        "trainer.callbacks: there is no .*ExportHugginFace; did you mean .*ExportHuggingFace[?] .*",
    ),
    "a module that is not there": (
        [f"{ORACLE}=no_such_module.Oracle"],
        2,
        "model.oracle: no_such_module.Oracle: there is no module 'no_such_module' beside the recipe, .*",
    ),
    "a class of another kind": (
        [f"{ORACLE}=orlaif.policy.Policy"],
        2,
        r"model.oracle is orlaif.policy.Policy, which is no Oracle \(on the command line\)",
    ),
    "an argument that is missing": (
        recipe("    oracle:\n      class_path: orlaif.oracles.ReferenceAnswerOracle\n", ""),
        2,
        "model.oracle is missing; OracleRLAIF needs it .*",
    ),
    "a text for a number": (
        ["--data.init_args.batch_size=two"],
        2,
        r"data.batch_size is two; it must be a whole number \(on the command line\)",
    ),
    "a text for the Trainer's number": (
        ["--trainer.max_steps=many"],
        2,
        "trainer.max_steps is many; it must be a whole .*",
    ),
    "a name that is none of some": (
        ["--model.init_args.loss.loss_type=dappo"],
        2,
        "model.loss.loss_type is dappo; it must be 'grpo', 'dapo' or 'dr_grpo'; did you mean 'dapo'[?] .*",
    ),
    "a precision": (["--trainer.precision=16bits"], 2, "trainer.precision is 16bits; it must be .*bf16-mixed.*"),
    "a strategy": (["--trainer.strategy=fdsp2"], 1, "trainer.strategy is 'fdsp2'; did you mean 'fsdp2'[?]"),
    "an accelerator": (["--trainer.accelerator=gpuu"], 1, "trainer.accelerator is 'gpuu'; did you mean 'gpu'[?]"),
    "no devices": (["--trainer.devices=0"], 1, "trainer.devices is '0': .*"),
    "processes that cannot share prompts": (
        [f"{POLICY}.sequence_parallel=2", "--trainer.accelerator=cpu", "--trainer.devices=3"],
        2,
        "policy.sequence_parallel is 2; it must divide the number of processes "
        r"\(trainer.devices x trainer.num_nodes\), which is 3",
    ),
    "a group of one": (
        ["--model.init_args.rollout.init_args.group_size=1"],
        2,
        "rollout.group_size is 1; ranking needs 2 or more answers to a question",
    ),
    "a batch of none": (["--data.init_args.batch_size=0"], 2, "data.batch_size is 0; it must be 1 or more"),
    "a temperature": (
        ["--model.init_args.rollout.init_args.sampling.temperature=-1"],
        2,
        "sampling.temperature is -1.0; it must be 0 .*",
    ),
    "a dtype": ([f"{POLICY}.dtype=float12"], 2, ".*float12.*"),
    "no such checkpoint": (
        ["--ckpt_path=nowhere/step=1.ckpt"],
        2,
        "--ckpt_path nowhere/step=1.ckpt: no such checkpoint; .*",
    ),
    "a class that orlaif help does not know": (["help", "OracleRLAF"], 2, ".*did you mean orlaif.OracleRLAIF[?]"),
    "settings that do not go together": (
        [f"{POLICY}.prefix=fork", f"{POLICY}.gradient_checkpointing=layers"],
        2,
        "policy.prefix is 'fork' and policy.gradient_checkpointing is 'layers': .*",
    ),
    "a plan's size": (["plan", "--gpu-memory=much"], 2, "--gpu-memory is 'much'; it must be a size such as 80GB .*"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake: str, orlaif: Command, tmp_path: Path) -> None:
    given, status, line = MISTAKES[mistake]
    words = given(tmp_path) if callable(given) else list(given)
    if words and words[0].startswith("--") and words[0] != "--config":
        words = ["fit", "--config", str(REPO / "recipes" / "demo_rlaif.yaml"), f"--run_dir={tmp_path}/run", *words]
    elif words == ["foo"]:
        words = ["fit", "--config", str(REPO / "recipes" / "demo_rlaif.yaml"), "foo"]
    code, said = orlaif(*words)
    assert re.fullmatch(f"orlaif: error: {line}", said[0]), said[0]
    assert code == status
    assert said[1:] == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["gpu", "cuda"], ids=["any", "Nvidia"])  # "gpu" is a marker
def test_no_gpu(name: str, orlaif: Command, tmp_path: Path) -> None:
    words = ["--config", str(REPO / "recipes" / "demo_rlaif.yaml"), f"--run_dir={tmp_path}"]
    code, said = orlaif("fit", *words, f"--trainer.accelerator={name}")
    assert code == 1
    assert said[0].startswith(
        "orlaif: error: trainer.accelerator asks for a GPU, and PyTorch sees none on this machine"
    )
    assert len(said) == 1


@pytest.mark.parametrize(
    "content", [b"", b"hello world" * 100, b"PK\x03\x04 cut off"], ids=["empty", "other", "cut off"]
)
def test_a_corrupt_checkpoint(content: bytes, orlaif: Command, tmp_path: Path) -> None:
    path = tmp_path / "step=1.ckpt"
    path.write_bytes(content)
    recipe = ["--config", str(REPO / "recipes" / "demo_rlaif.yaml"), f"--run_dir={tmp_path}/run"]
    code, said = orlaif("fit", *recipe, f"--ckpt_path={path}")
    assert code == 1
    assert f"{path} cannot be read: it is cut off or no checkpoint" in said[0]
    assert len(said) == 1


OWN = """
from orlaif.oracles import Oracle
from orlaif.types import Ranking


class Divides(Oracle):
    def rank(self, groups):
        for group in groups:
            len(group.answers) / 0


class AtOnce(Oracle):
    def rank(self, groups):
        raise KeyError("score")


class NeverMade(Oracle):
    def __init__(self):
        None.name

    def rank(self, groups):
        return None
"""


@pytest.fixture
def beside(tmp_path: Path) -> str:
    """A recipe with a module of the user's beside it."""
    (tmp_path / "oracles_of_mine.py").write_text(OWN)
    (tmp_path / "half_written.py").write_text("def rank(:\n")
    (tmp_path / "undefined_name.py").write_text("\nx = undefined\n")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return str(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("half_written.Mine", "SyntaxError in {}/half_written.py:1"),
        ("undefined_name.Mine", "NameError in {}/undefined_name.py:2"),
        ("oracles_of_mine.NeverMade", "AttributeError in {}/oracles_of_mine.py:19"),
        ("oracles_of_mine.Divide", "did you mean oracles_of_mine.Divides?"),
    ],
)
def test_a_bug_in_a_module_beside_the_recipe_is_named_by_its_line(
    path: str, line: str, beside: str, orlaif: Command, tmp_path: Path
) -> None:
    _, said = orlaif("fit", "--config", beside, f"{ORACLE}={path}", f"--run_dir={tmp_path}/run")
    assert line.format(tmp_path) in said[0]
    assert len(said) <= 2


def groups() -> list[Any]:
    from orlaif.types import CandidateGroup, VideoClip, VideoPrompt

    frames = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    clip = VideoClip(frames=frames, pts_s=torch.arange(2, dtype=torch.float64), duration_s=1.0, path="a.mp4")
    prompts = [VideoPrompt(id=f"q{i}", video="a.mp4", question="what ?") for i in range(3)]
    return [CandidateGroup(prompt=prompt, clip=clip, answers=("a", "b")) for prompt in prompts]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "Divides",
            r"oracle Divides failed on prompt q0: ZeroDivisionError: division by zero \(.*oracles_of_mine.py:9\)",
        ),
        ("AtOnce", r"oracle AtOnce failed on prompts q0, q1, q2: KeyError: 'score' \(.*oracles_of_mine.py:14\)"),
    ],
)
def test_a_bug_in_a_users_oracle_begins_with_oracle_prompt_and_line(
    name: str, line: str, beside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And keeps its traceback."""
    from orlaif.oracles import OracleFailure, rank_groups

    monkeypatch.syspath_prepend(str(Path(beside).parent))
    monkeypatch.delitem(sys.modules, "oracles_of_mine", raising=False)
    oracle = getattr(__import__("oracles_of_mine"), name)()
    with pytest.raises((ZeroDivisionError, KeyError)) as caught:
        rank_groups(oracle, groups(), OracleFailure())
    said = explained(caught.value)
    assert re.fullmatch(line, said.line)
    assert said.is_bug


def raised(error: BaseException, path: str = "", repo_id: str = "Org/Model") -> BaseException:
    """As a function that was given a path and a hub id raises it."""
    try:
        raise error
    except BaseException as caught:
        return caught


def cut_off(kind: str) -> Exception:
    return type(kind, (Exception,), {})("Error while deserializing header: incomplete metadata")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/run/a.ckpt"),
            "the disk is full while /run/a.ckpt was written: .*",
        ),
        (RuntimeError("PytorchStreamWriter failed writing file data/0"), "the disk is full while /x/y was written: .*"),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "rows.jsonl"),
            "rows.jsonl: no such file or directory",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), "/root/x: permission denied"),
        (ModuleNotFoundError("No module named 'openai'", name="openai"), r".* pip install '\.\[judge\]'"),
        (ModuleNotFoundError("No module named 'datasets'", name="datasets"), r".* pip install '\.\[data\]'"),
        (ModuleNotFoundError("No module named 'vllm.x'", name="vllm.x"), r".* pip install '\.\[vllm\]'"),
        (cut_off("SafetensorError"), "/x/y cannot be read: it is cut off or no checkpoint .*"),
        (
            OSError("We couldn't connect to 'https://huggingface.co' to load the files."),
            r"Org/Model: huggingface.co cannot be reached and the model is not in the cache \(HF_HOME\); .*",
        ),
        (
            OSError("Can't load image processor for '/m'. If you were trying to load it from ..."),
            "/m holds no processor .*",
        ),
        (
            type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried"),
            "CUDA out of memory; orlaif plan .*",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_an_error_of_the_machine_means(error: Exception, line: str) -> None:
    said = explained(raised(error, "/x/y"))
    assert re.fullmatch(line, said.line), said.line
    assert (said.status, said.is_bug) == (1, False)


def test_a_server_that_is_down_is_no_bug() -> None:
    """What orlaif itself says of it is the line; one that breaks in other code keeps its traceback."""
    from orlaif.distributed.sync import raise_together

    def down() -> BaseException:
        try:
            raise_together(ConnectionError("the judge graded too few of 1 answers"))
        except ConnectionError as error:
            return error
        raise AssertionError

    said = explained(down())
    assert (said.line, said.status, said.is_bug) == ("the judge graded too few of 1 answers", 1, False)
    assert explained(raised(ConnectionError("reset by peer"))).is_bug


def test_a_bug_keeps_its_traceback_and_starts_with_its_place() -> None:
    said = explained(raised(IndexError("list index out of range")))
    assert said.is_bug
    assert re.fullmatch(r"IndexError: list index out of range \(.*test_mistakes.py:\d+\)", said.line)


def test_lines_are_joined() -> None:
    assert one_line("two things:\n  - a\n\n  - b.\nEnd") == "two things: - a; - b. End"
    assert len(one_line("x" * 5000)) < 710


def test_the_tree_of_a_message_is_read_by_its_indents() -> None:
    message = """Parser key "model":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'A'>, <class 'NoneType'>]
  Errors:
    - Problem with given class_path 'a.B':
        Parser key "c":
          Expected a <class 'int'>. Got value: x
    - Expected a <class 'NoneType'>
  Given value type: <class 'dict'>
  Given value: {'x': 'y
    - z'}"""
    assert [(leaf.keys, leaf.owner, leaf.said) for leaf in leaves(message)] == [
        (("model", "c"), "a.B", "Expected a <class 'int'>. Got value: x"),
        (("model",), "", "Expected a <class 'NoneType'>"),
    ]
    assert (
        sentence(message, lambda keys: f"at {'/'.join(keys)}") == "model.c is x; it must be a whole number (at model/c)"
    )


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    from orlaif.cli.recipe import OrlaifCLI

    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        OrlaifCLI([*words, "--print_config"])
    assert end.value.code in (0, None)
    return yaml.safe_load(capsys.readouterr().out)


def laid_over(tmp_path: Path, tree: dict[str, Any]) -> list[str]:
    path = tmp_path / "overlay.yaml"
    path.write_text(json.dumps(tree))
    return ["fit", "--config", str(REPO / "recipes" / "demo_rlaif.yaml"), "--config", str(path)]


@pytest.mark.parametrize("words", [["=null"], ["", "null"]], ids=["equals", "space"])
@pytest.mark.parametrize("key", ["lora", "quantization", "sharding"])
def test_null_takes_a_setting_of_the_policy_away(
    words: list[str], key: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    value = {"lora": {"r": 4}, "quantization": {"load_in_4bit": True}, "sharding": {"cpu_offload": True}}[key]
    given = laid_over(tmp_path, {"model": {"init_args": {"policy": {"init_args": {key: value}}}}})
    assert printed(capsys, *given)["model"]["init_args"]["policy"]["init_args"][key] is not None
    without = printed(capsys, *given, f"{POLICY}.{key}{words[0]}", *words[1:])
    assert without["model"]["init_args"]["policy"]["init_args"][key] is None


def test_an_overlay_changes_what_it_names_and_nothing_else(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before = printed(capsys, "fit", "--config", str(REPO / "recipes" / "demo_rlaif.yaml"))
    over = {
        "model": {"init_args": {"rollout": {"init_args": {"sampling": {"top_p": 0.9}}}, "loss": {"clip_low": 0.1}}},
        "data": {"init_args": {"sampling": {"init_args": {"num_frames": 4}}}},
    }
    after = printed(capsys, *laid_over(tmp_path, over))
    before["model"]["init_args"]["rollout"]["init_args"]["sampling"]["top_p"] = 0.9
    before["model"]["init_args"]["loss"]["init_args"]["clip_low"] = 0.1
    before["data"]["init_args"]["sampling"]["init_args"]["num_frames"] = 4
    assert after == before


def test_a_recipe_of_before_is_read_with_the_names_of_now(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In its file and in a word; the log says what to write."""
    old = RECIPE.replace("orlaif.training.callbacks.", "orlaif.callbacks.").replace(
        "orlaif.demo.shapes", "orlaif.data.shapes"
    )
    assert "orlaif.callbacks.ExportHuggingFace" in old
    (tmp_path / "old.yaml").write_text(old)
    rollout = "--model.init_args.rollout=orlaif.vllm_rollout.VLLMRollout"
    with caplog.at_level("INFO", logger="orlaif"):
        read = printed(capsys, "fit", "--config", str(tmp_path / "old.yaml"), rollout)
    assert read["trainer"]["callbacks"][0]["class_path"] == "orlaif.training.callbacks.ExportHuggingFace"
    assert read["data"]["init_args"]["train"]["class_path"] == "orlaif.demo.shapes.ShapesDataset"
    assert read["model"]["init_args"]["rollout"]["class_path"] == "orlaif.rollout.vllm.VLLMRollout"
    for name, now in (
        ("callbacks.ExportHuggingFace", "training.callbacks"),
        ("data.shapes.ShapesDataset", "demo.shapes"),
    ):
        told = [
            record.getMessage()
            for record in caplog.records
            if f"orlaif.{name} is now orlaif.{now}" in record.getMessage()
        ]
        assert len(told) == 1
        assert told[0].startswith(str(tmp_path / "old.yaml"))


def test_every_class_that_moved_is_where_the_table_says() -> None:
    import importlib

    from orlaif.cli.moved import MOVED, MOVED_CLASSES, translated

    for old, new in MOVED.items():
        importlib.import_module(new)
        with pytest.raises(ImportError):
            importlib.import_module(old)
    for new in MOVED_CLASSES.values():
        module, _, name = new.rpartition(".")
        assert hasattr(importlib.import_module(module), name)
    assert (
        translated("orlaif.oracles.training.PreferenceRankerTraining", "")
        == "orlaif.training.ranker.PreferenceRankerTraining"
    )
    for other in ("runs/orlaif.callbacks.X", "orlaif.callbacks", "my.orlaif.callbacks.X", "orlaif.data.preferences.A"):
        assert translated(other, "") == other
