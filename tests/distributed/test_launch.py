"""The launch commands of the recipes' headers, run as they stand there on processes of this machine's CPU."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.conftest import REPO
from tests.forked import Forked, orlaif

RECIPE = "rlaif_qwen3_vl_8b_full_8x80gb_fsdp2.yaml"


@pytest.fixture(scope="module")
def overrides(tiny_model: str, data_root: str) -> list[str]:
    """What makes a recipe for eight GPUs one for a CPU: a tiny model, the embedded data, two steps."""
    words = [f"--model.init_args.policy.init_args.path={tiny_model}"]
    for split, size in (("train", 64), ("val", 10)):
        source = {"class_path": "orlaif.demo.shapes.ShapesDataset"}
        source["init_args"] = {"root": data_root, "split": split.replace("val", "validation"), "size": size}  # type: ignore[assignment]
        words.append(f"--data.init_args.{split}={json.dumps(source)}")
    return [
        *words,
        "--model.init_args.oracle=orlaif.oracles.ReferenceAnswerOracle",
        "--model.init_args.rollout.init_args.sampling.max_new_tokens=4",
        "--data.init_args.sampling.init_args.num_frames=8",
        "--trainer.accelerator=cpu",
        "--trainer.max_steps=2",
        "--trainer.accumulate_grad_batches=1",
        "--trainer.limit_val_batches=0",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
    ]


def header(program: str, recipe: str = RECIPE) -> list[str]:
    """The words of the command in a recipe's header that begins with this program."""
    text = (REPO / "recipes" / recipe).read_text()
    (line,) = re.findall(rf"^#\s+({program} .*)$", text, re.MULTILINE)
    return shlex.split(line)


def start(words: list[str], **environment: str) -> subprocess.Popen[str]:
    """By the console script or the launcher that ``words`` begin with, from an interpreter of its own."""
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.Popen(
        words, cwd=REPO, env=settings | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def forked(words: list[str], **environment: str) -> Forked:
    """The same, where :func:`start` was shown to work: without its imports."""
    assert words[0] == "orlaif"
    return orlaif(words[1:], OMP_NUM_THREADS="1", **environment)


def finish(*processes: subprocess.Popen[str] | Forked, status: int = 0) -> list[str]:
    said = ["".join(filter(None, process.communicate(timeout=240))) for process in processes]
    assert [process.returncode != 0 for process in processes] == [status != 0] * len(processes), said
    return said


def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def weights(run_dir: Path) -> dict[str, Any]:
    return load_file(next((run_dir / "export").glob("*.safetensors")))


def test_on_one_machine_by_torchrun_and_by_slurm(overrides: list[str], tmp_path: Path) -> None:
    """Two processes each way, started as the header says: the same weights."""
    one = [*header("orlaif fit"), *overrides, "--trainer.devices=2", f"--run_dir={tmp_path / 'one'}"]
    finish(start(one))
    expected = weights(tmp_path / "one")
    assert (tmp_path / "one" / "checkpoints" / "epoch=0-step=2.ckpt").is_dir()
    more = ["--trainer.devices=2", f"--run_dir={tmp_path / 'one'}", "--trainer.max_steps=3", "--ckpt_path=last"]
    (said,) = finish(forked([*header("orlaif fit"), *overrides, *more]))
    assert "Restored all states from the checkpoint" in said
    assert [path.name for path in (tmp_path / "one" / "checkpoints").iterdir()] == ["epoch=0-step=3.ckpt"]

    words = header("torchrun")
    assert words[words.index("--nnodes") + 1] == words[words.index("--trainer.num_nodes") + 1] == "2"
    words[words.index("--nproc-per-node") + 1] = "1"
    words[words.index("--rdzv-endpoint") + 1] = f"127.0.0.1:{port()}"
    more = [*overrides, "--trainer.devices=1", f"--run_dir={tmp_path / 'torchrun'}"]
    local = ["--local-addr", "127.0.0.1"]
    finish(*(start([words[0], *local, *words[1:], *more]) for _ in range(2)))

    words = header("srun")
    task = words[words.index("orlaif") :]
    task[task.index("--trainer.num_nodes") + 1] = "1"
    more = [*overrides, "--trainer.devices=2", f"--run_dir={tmp_path / 'slurm'}"]
    common = {"SLURM_JOB_ID": str(port()), "SLURM_JOB_NAME": "orlaif", "SLURM_NTASKS": "2", "SLURM_NNODES": "1"}
    common |= {"SLURM_NTASKS_PER_NODE": "2", "SLURM_NODELIST": "localhost", "SLURM_NODEID": "0"}
    ranks = [{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(2)]
    finish(*(forked([*task, *more], **common, **rank) for rank in ranks))

    for way in ("torchrun", "slurm"):
        found = weights(tmp_path / way)
        assert found.keys() == expected.keys()
        for name, weight in expected.items():
            assert float((found[name] - weight).abs().max()) <= 1e-6, (way, name)


def test_processes_with_different_recipes_stop_with_what_differs(overrides: list[str], tmp_path: Path) -> None:
    words = header("torchrun")
    words = words[words.index("-m") + 2 :]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
    common |= {"TORCHELASTIC_RUN_ID": "test", "LOCAL_RANK": "0"}
    started = []
    for rank in range(2):
        more = [*overrides, "--trainer.devices=1", f"--run_dir={tmp_path / 'run'}"]
        more.append(f"--model.init_args.loss.kl_coef={0.02 if rank == 0 else 0.5}")
        started.append(forked(["orlaif", *words, *more], **common, RANK=str(rank), GROUP_RANK=str(rank)))
    began = time.monotonic()
    said = finish(*started, status=1)
    assert time.monotonic() - began < 120
    wanted = "the processes of this run disagree on the recipe: "
    wanted += "fit.model.init_args.loss.init_args.kl_coef: 0.02 on process 0, 0.5 on process 1"
    assert all(wanted.replace("fit.", "") in one.replace("fit.", "") for one in said)


def test_all_recipes_for_several_gpus_are_launched_alike() -> None:
    """So that what is true of the one that is run here is true of the others."""
    for path in sorted((REPO / "recipes").glob("*.yaml")):
        gpus = re.search(r"\n  devices: (\d+)", path.read_text())
        if gpus is None or int(gpus[1]) == 1:
            continue
        for program in ("torchrun", "srun"):
            words = " ".join(header(program, path.name)).replace(path.name, "R").replace(f" {gpus[1]} ", " N ")
            expected = " ".join(header(program)).replace(RECIPE, "R").replace(" 8 ", " N ")
            assert words == expected


def test_a_process_ends_when_its_launcher_has_died(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    child = f"from orlaif.cli.main import watch_parent; watch_parent(0.2); open({str(ready)!r}, 'w').close(); "
    child += "import time; time.sleep(300)"
    parent = (
        f"import subprocess, sys, time; print(subprocess.Popen([sys.executable, '-c', {child!r}]).pid, flush=True); "
    )
    parent += "time.sleep(300)"
    launcher = start([sys.executable, "-c", parent])
    assert launcher.stdout is not None
    pid = int(launcher.stdout.readline())
    status = Path(f"/proc/{pid}/stat")

    def until(condition: Any) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.1)

    until(ready.exists)
    assert status.exists()
    launcher.kill()
    until(lambda: not status.exists() or status.read_text().split(") ")[1].startswith("Z"))
