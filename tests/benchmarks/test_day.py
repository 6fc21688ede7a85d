"""The day a GPU is there: limits, what a stopped part leaves, how its minutes are shared, whose commit it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from benchmarks import harness
from benchmarks.gpu import day, decode
from benchmarks.gpu.kernels_correct import marked, outcome
from benchmarks.gpu.notebook import MissingError, Notebook
from benchmarks.models import build
from benchmarks.published import MILLIONS
from orlaif.types import VideoError
from tests.conftest import REPO


def notebook(folder: Path, seconds: float = 60.0, rehearse: bool = False) -> Notebook:
    return Notebook("prefix", folder, seconds, rehearse)


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "prefix.json").read_text())
    return found


def test_what_was_measured_is_written_at_once_and_the_rest_named(tmp_path: Path) -> None:
    book = notebook(tmp_path)
    book.measure("good", lambda: {"x": 1})
    assert read(tmp_path)["entries"] == {"good": {"x": 1}}

    def missing() -> None:
        raise MissingError("no such thing")

    book.measure("missing", missing)
    book.measure("broken", lambda: 1 / 0)
    book.measure("too long", dict, takes_s=600)
    found = read(tmp_path)
    assert found["not_measured"]["missing"] == "no such thing"
    assert found["not_measured"]["too long"].startswith("no time left: ")
    assert found["failed"] == {"broken": "ZeroDivisionError: division by zero"}
    assert not found["finished"]
    rehearsed = notebook(tmp_path / "rehearsed", seconds=-1.0, rehearse=True)
    rehearsed.measure("late", dict)
    assert read(tmp_path / "rehearsed")["failed"]["late"].startswith("no time left: ")
    book.write(finished=True)
    assert read(tmp_path)["finished"]
    assert found["about"]["versions"]["torch"] == torch.__version__.split("+")[0]


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """In place of the program that is one part: ``code``."""
    (folder / "tools").mkdir()
    (folder / "tools" / "gpu_day.py").write_text(
        f"import os, sys, time\nfolder = sys.argv[sys.argv.index('--output') + 1]\n{code}\n"
    )
    monkeypatch.setattr(day, "ROOT", folder)


#: What a part that was stopped has left.
HAD = {"entries": {"a": 1}, "not_measured": {}, "failed": {}, "finished": False, "seconds": 2}


def test_a_part_that_outlasts_its_limit_is_ended_and_keeps_what_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch, "time.sleep(600)")
    # What the part has left by then, put there beforehand: however slow the machine, it is there.
    monkeypatch.setattr(day, "set_aside", lambda part, folder: (folder / f"{part}.json").write_text(json.dumps(HAD)))
    monkeypatch.setattr(day, "GRACE", 0.5)
    begun = time.monotonic()
    assert day.main(["--rehearse", "--part", "prefix", "--minutes", "0.01", "--output", str(tmp_path)]) == 1
    assert time.monotonic() - begun < 300
    assert read(tmp_path)["entries"] == {"a": 1}
    line, well = day.told("prefix", tmp_path, 124)
    assert not well
    assert line == "prefix: 1 measured in 2 s; did not finish (exit 124)"


def test_an_earlier_runs_file_is_never_told_as_this_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(tmp_path, monkeypatch, "import no_such_module")
    (tmp_path / "prefix.json").write_text(json.dumps(HAD | {"finished": True}))
    asked = ["--rehearse", "--part", "prefix", "--output", str(tmp_path)]
    assert day.main([*asked, "--total", "0.1"]) == 1  # less than the seconds of grace
    assert "prefix: not begun: no time left of --total 0.1" in capsys.readouterr().out
    assert read(tmp_path)["finished"]
    assert day.main(asked) == 1
    assert "prefix: ended with 1 and left nothing" in capsys.readouterr().out
    assert not (tmp_path / "prefix.json").exists()
    assert json.loads((tmp_path / "prefix.previous").read_text())["finished"]


@pytest.mark.parametrize("words", [["--total", "0"], ["--minutes", "-1"], ["--minutes", "nan"], ["--total", "inf"]])
def test_minutes_must_be_above_zero(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        day.main(words)
    assert end.value.code == 2
    assert f"argument {words[0]}: '{words[1]}' is no number of minutes above 0" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_part_ends_with_the_driver(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal ends the part's group, with a process that the part has started; a kill ends at least the part."""
    stand_in(
        tmp_path,
        monkeypatch,
        "import subprocess\n"
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "open(folder + '/pids.part', 'w').write(f'{os.getpid()} {other.pid}')\n"
        "os.rename(folder + '/pids.part', folder + '/pids'); time.sleep(600)",
    )
    code = (
        f"import sys, pathlib; sys.path[:0] = [{str(REPO)!r}]; from benchmarks.gpu import day; "
        f"day.ROOT = pathlib.Path({str(tmp_path)!r}); "
        f"sys.exit(day.main(['--rehearse', '--part', 'prefix', '--output', {str(tmp_path)!r}]))"
    )
    with open(tmp_path / "said", "w") as said:
        driver = subprocess.Popen([sys.executable, "-c", code], stderr=said)
    pids = tmp_path / "pids"
    eventually(pids.exists)
    part, other = map(int, pids.read_text().split())
    driver.send_signal(number)
    assert driver.wait(timeout=300) == (-number if number == signal.SIGKILL else 128 + number)
    eventually(lambda: not runs(part))
    if number == signal.SIGKILL:
        os.kill(other, signal.SIGKILL)
    else:
        assert (tmp_path / "said").read_text() == f"ended by {signal.Signals(number).name}\n"
        eventually(lambda: not runs(other))


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_without_cuda_nothing_begins_but_a_rehearsal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orlaif.demo.demo.quiet", lambda: None)
    with pytest.raises(SystemExit, match=r"^CUDA does not start here \(.+\); --rehearse runs every part at a small"):
        day.main(["--part", "rollout", "--output", str(tmp_path)])
    assert not [*tmp_path.iterdir()]
    options = day.arguments(["--part", "decode"])  # the GPU went away behind the driver's look
    assert day.inside("decode", tmp_path, options) == 1
    line, well = day.told("decode", tmp_path, 1)
    assert "failed: CUDA (torch sees no GPU" in line
    assert not well


def test_folders_that_are_given_are_looked_at_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").mkdir()
    (tmp_path / "wheels").mkdir()
    for option, folder, pattern in (("--videos", "clips", "*.mp4"), ("--wheels", "wheels", "*.whl")):
        with pytest.raises(SystemExit, match=f"^{option} none: there is no such folder$"):
            day.main(["--rehearse", "--part", "decode", option, "none"])
        with pytest.raises(SystemExit) as end:
            day.main(["--rehearse", "--part", "decode", option, folder])
        assert end.value.code == f"{option} {folder}: there is no {pattern} in it"
    (tmp_path / "wheels" / "bad-1.0-py3-none-any.whl").write_text("no archive")
    with pytest.raises(SystemExit, match=r"^--wheels wheels: ERROR: .*bad.*"):
        day.with_wheels("wheels", str(tmp_path / "to"))
    (tmp_path / "clips" / "a.mp4").touch()
    given: list[str] = []

    def one(part: str, folder: Path, limit: float, options: Any, environment: Any) -> tuple[str, bool]:
        given.append(options.videos)
        return part, True

    monkeypatch.setattr(day, "one", one)
    assert day.main(["--rehearse", "--part", "decode", "--videos", "clips"]) == 0
    assert given == [str(tmp_path / "clips")]


def test_a_clip_that_fails_does_not_cost_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def clip(path: Path) -> dict[str, Any]:
        if path.name == "broken.mp4":
            raise VideoError(path=str(path), cause="cut off")
        return {"mean_difference": 3.0 if path.name == "other.mp4" else 0.5}

    names = ("broken.mp4", "good.mp4", "other.mp4")
    monkeypatch.setattr(decode, "videos", lambda notebook: [tmp_path / name for name in names])
    monkeypatch.setattr(decode, "clip", clip)
    book = notebook(tmp_path)
    decode.run(book)
    found = read(tmp_path)
    assert found["entries"] == {"good.mp4": {"mean_difference": 0.5}, "other.mp4": {"mean_difference": 3.0}}
    assert found["failed"]["other.mp4"] == "3.00 grey values off the CPU's; at most 2.0"
    assert found["failed"]["broken.mp4"].startswith("VideoError: ")


def eventually(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


def runs(pid: int) -> bool:
    """Whether there is such a process that is more than an exit status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_minutes_are_shared_by_worth_and_never_above_a_parts_limit() -> None:
    options = day.arguments(["--total", "9"])
    until = time.monotonic() + 9 * 60
    shares = [day.minutes_of(part, [*day.PARTS], options, until) for part in ("kernels_correct", "decode")]
    assert shares[0] / shares[1] == pytest.approx(3.0 / 0.3, rel=1e-3)
    assert sum(day.minutes_of(part, [*day.PARTS], options, until) for part in day.PARTS) < 9
    assert day.minutes_of("prefix", ["prefix"], day.arguments([]), 0.0) == 9.0


def test_the_commit_is_known_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_git(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", no_git)
    monkeypatch.setattr(harness, "ROOT", tmp_path)
    monkeypatch.delenv("ORLAIF_COMMIT", raising=False)
    assert harness.commit() == "unknown"
    (tmp_path / ".commit").write_text("abc1234\n")
    assert harness.commit() == "abc1234"
    monkeypatch.setenv("ORLAIF_COMMIT", "def5678")
    assert harness.commit() == "def5678"


def test_the_driver_starts_without_torch(tmp_path: Path) -> None:
    """It only starts parts, so that a broken environment is told by each part's file and not before the first."""
    code = f"import sys; sys.path[:0] = [{str(REPO)!r}]; import benchmarks.gpu.day; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.strip() == "False"


def test_a_report_of_pytest_is_counted_by_name() -> None:
    report = ElementTree.fromstring(
        '<testsuites><testsuite><testcase classname="a" name="good"/>'
        '<testcase classname="a" name="bad"><failure message="1 != 2"/></testcase>'
        '<testcase classname="a" name="broken"><error message="no file"/></testcase>'
        '<testcase classname="a" name="not here"><skipped message="no GPU"/></testcase></testsuite></testsuites>'
    )
    assert outcome(report) == {
        "passed": 1,
        "wrong": {"a::bad": "1 != 2", "a::broken": "no file"},
        "skipped": {"a::not here": "no GPU"},
    }


def test_tests_for_a_gpu_are_found() -> None:
    names = {Path(file).relative_to(REPO).as_posix() for file in marked()}
    assert {"tests/kernels/test_gpu.py", "tests/policy/prefix/test_gpu.py"} <= names
    assert "tests/test_house.py" not in names


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("qwen2.5-vl-3b", "Qwen/Qwen2.5-VL-3B-Instruct"),
        ("qwen3-vl-2b", "Qwen/Qwen3-VL-2B-Instruct"),
        ("qwen3.5-2b", "Qwen/Qwen3.5-2B"),
    ],
)
def test_models_have_the_parameters_that_the_hub_counts(name: str, published: str) -> None:
    kind, config, _ = build(name)
    with torch.device("meta"):
        model = kind(config)
    counted = sum(parameter.numel() for parameter in {id(p): p for p in model.parameters()}.values())
    assert counted / 1e6 == pytest.approx(MILLIONS[published], abs=0.05)


def test_a_short_run_of_the_rlaif_benchmark_beside_its_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps, one batch ahead: steps are timed, stages named, and the prompt is as long as it was planned."""
    from dataclasses import replace

    from benchmarks.gpu.training import LEAST
    from benchmarks.rlaif import measure

    monkeypatch.setenv("ORLAIF_GPU_SCRATCH", str(tmp_path))
    found = measure(replace(LEAST, staleness=1))
    assert len(found["seconds"]) == 3
    assert {"rollout_wait", "policy", "reference"} <= found["medians"].keys()
    assert found["step_s"] > 0
    assert found["tokens_per_step"] == found["prompt_tokens"] + 2 * 4
    assert found["planned_bytes"] > 4 * 106400 * 0.9
