"""The parts in order, each in a process of its own and within its limit."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from benchmarks.children import end_group, end_with_parent, exiting_on_signals

ROOT = Path(__file__).resolve().parents[2]
#: Where the results of a GPU lie that the pages are made from.
RESULTS = ROOT / "benchmarks" / "results" / "gpu"
#: In order of worth: module and function, and the share of the time where all parts have one limit together.
PARTS: dict[str, tuple[str, str, float]] = {
    "kernels_correct": ("benchmarks.gpu.kernels_correct", "run", 3.0),
    "kernels_speed": ("benchmarks.gpu.kernels_speed", "run", 2.0),
    "prefix": ("benchmarks.gpu.prefix", "run", 2.5),
    "rollout": ("benchmarks.gpu.rollout", "run", 2.0),
    "rlaif_steps": ("benchmarks.gpu.training", "rlaif_steps", 2.5),
    "sharding": ("benchmarks.gpu.training", "sharding", 1.5),
    "decode": ("benchmarks.gpu.decode", "run", 0.3),
    "pipeline": ("benchmarks.gpu.training", "pipeline", 1.0),
}
#: Minutes of a part; a lease's command ends at 10.
LIMIT = 9.0
#: Seconds that a part has, past its limit, for what it is in the middle of.
GRACE = 25.0
#: Seconds in which CUDA has to start, from a cold disk.
STARTS = 120.0


def minutes(word: str) -> float:
    """An argument in minutes; argparse makes a sentence of the error."""
    with suppress(ValueError):
        if 0 < (value := float(word)) < math.inf:
            return value
    raise argparse.ArgumentTypeError(f"{word!r} is no number of minutes above 0")


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(
        prog="tools/gpu_day.py",
        description="Measure what is owed from a GPU, part after part; each writes <output>/<part>.json as it goes.",
    )
    parser.add_argument("--part", nargs="+", choices=list(PARTS), metavar="PART", help=f"only: {', '.join(PARTS)}")
    parser.add_argument("--minutes", type=minutes, default=LIMIT, help="limit of each part (%(default)s)")
    parser.add_argument("--total", type=minutes, help="minutes of all together, shared among them by worth")
    parser.add_argument("--output", help="folder of the results; by default $OUT, or outputs/gpu")
    parser.add_argument("--wheels", help="folder of wheels that are installed beside the run, not into the environment")
    parser.add_argument("--videos", help="folder of MP4 files to decode; by default shared/videos")
    parser.add_argument("--rehearse", action="store_true", help="every part at a small size, on any machine")
    parser.add_argument("--render", action="store_true", help="only write the pages from benchmarks/results/gpu")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(given)


def inside(part: str, folder: Path, options: argparse.Namespace) -> int:
    """Run one part in this process; 1 where something failed."""
    from benchmarks.gpu.notebook import Notebook
    from orlaif.demo.demo import quiet

    quiet()
    module, function, _ = PARTS[part]
    notebook = Notebook(part, folder, 60 * options.minutes, options.rehearse, {"videos": options.videos})
    if not notebook.cuda and not options.rehearse:
        notebook.fail("CUDA", "torch sees no GPU; nothing was begun, at full size, on the CPU")
        return 1
    getattr(import_module(module), function)(notebook)
    notebook.write(finished=True)
    return 1 if notebook.found["failed"] else 0


def with_wheels(folder: str, to: str) -> None:
    """Install all wheels of a folder, without looking at what they need, into a folder of their own.

    Raises:
        SystemExit: there is no such folder, no wheel in it, or one that pip refuses.
    """
    wheels = files_in(folder, "--wheels", "*.whl")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--upgrade", "--target", to]
    done = subprocess.run([*command, *map(str, wheels)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"--wheels {folder}: {why(done.stderr)}")


def files_in(folder: str, option: str, pattern: str) -> list[Path]:
    """Files of a folder that was given, with its full path; raises SystemExit where it is missing or has none."""
    if not Path(folder).is_dir():
        raise SystemExit(f"{option} {folder}: there is no such folder")
    if not (found := sorted(Path(folder).resolve().glob(pattern))):
        raise SystemExit(f"{option} {folder}: there is no {pattern} in it")
    return found


def why(said: str) -> str:
    """Of what a program wrote as it failed, the line that tells: its last error, or its last."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(error|exception): ", line, re.IGNORECASE)]
    return [*lines[-1:], *errors][-1] if lines else "it said nothing"


def check_cuda() -> None:
    """Start CUDA, in a process of its own; raises SystemExit where that fails, before a part begins on the CPU."""
    command = [sys.executable, "-c", "import torch; torch.ones(1, device='cuda').add(1).item()"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=STARTS)
        said = why(done.stderr) if done.returncode else None
    except subprocess.TimeoutExpired:
        said = f"nothing happened in {STARTS:.0f} s"
    if said is not None:
        raise SystemExit(f"CUDA does not start here ({said}); --rehearse runs every part at a small size without it")


def set_aside(part: str, folder: Path) -> None:
    """Keep an earlier run's file as ``<part>.previous``, so that it is never told as this run's."""
    with suppress(FileNotFoundError):
        os.replace(folder / f"{part}.json", folder / f"{part}.previous")


def child(part: str, folder: Path, limit: float, options: argparse.Namespace, environment: dict[str, str]) -> int:
    """One part in a process group of its own, ended where it outlasts its minutes; its exit status."""
    command = [sys.executable, str(ROOT / "tools" / "gpu_day.py"), "--inside", "--part", part, "--output", str(folder)]
    command += ["--minutes", str(limit), *(["--rehearse"] if options.rehearse else [])]
    command += ["--videos", options.videos] if options.videos else []
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, preexec_fn=end_with_parent)
    try:
        return process.wait(60 * limit + GRACE)
    except subprocess.TimeoutExpired:
        print(f"{part}: stopped at its limit of {limit:.1f} min; what it had is in its file", flush=True)
        return 124
    finally:
        end_group(process)


def told(part: str, folder: Path, status: int) -> tuple[str, bool]:
    """A line about a part, and whether it ran through with nothing wrong."""
    path = folder / f"{part}.json"
    if not path.is_file():
        return f"{part}: ended with {status} and left nothing", False
    found = json.loads(path.read_text(encoding="utf-8"))
    line = f"{part}: {len(found['entries'])} measured in {found['seconds']:.0f} s"
    for what in ("not_measured", "failed"):
        if found[what]:
            line += f"; {what.replace('_', ' ')}: " + "; ".join(f"{k} ({v[:160]})" for k, v in found[what].items())
    if not found["finished"]:
        line += f"; did not finish (exit {status})"
    return line, status == 0 and found["finished"] and not found["failed"]


def one(
    part: str, folder: Path, limit: float, options: argparse.Namespace, environment: dict[str, str]
) -> tuple[str, bool]:
    """Run a part; a line about it, and whether it ran through with nothing wrong."""
    if limit <= 0:
        return f"{part}: not begun: no time left of --total {options.total:g}", False
    print(f"--- {part}, at most {limit:.1f} min", flush=True)
    set_aside(part, folder)
    return told(part, folder, child(part, folder, limit, options, environment))


def minutes_of(part: str, still: Sequence[str], options: argparse.Namespace, until: float) -> float:
    """What a part may take: its limit, or its share of what all have left."""
    if options.total is None:
        return float(options.minutes)
    left = (until - time.monotonic() - GRACE) / 60
    share = PARTS[part][2] / sum(PARTS[name][2] for name in still)
    return min(float(options.minutes), left * share)


def main(given: Sequence[str] | None = None) -> int:
    """Run what is asked for; 0 where every part ran through and nothing was wrong."""
    options = arguments(given)
    if options.render:
        from benchmarks.gpu.page import write_pages

        try:
            write_pages(RESULTS)
        except ValueError as error:
            raise SystemExit(str(error)) from None
        return 0
    folder = Path(options.output or os.environ.get("OUT") or ROOT / "outputs" / "gpu").resolve()
    parts = options.part or list(PARTS)
    if options.inside:
        return inside(parts[0], folder, options)
    until = time.monotonic() + 60 * (options.total or 0)
    if options.videos:
        options.videos = str(files_in(options.videos, "--videos", "*.mp4")[0].parent)
    if not options.rehearse:
        check_cuda()
    environment: dict[str, str] = dict(os.environ)
    lines, whole = [], True
    with exiting_on_signals(), tempfile.TemporaryDirectory() as scratch:
        environment.setdefault("ORLAIF_GPU_SCRATCH", scratch)
        if options.wheels:
            with_wheels(options.wheels, f"{scratch}/wheels")
            environment["PYTHONPATH"] = f"{scratch}/wheels:{environment.get('PYTHONPATH', '')}"
        for number, part in enumerate(parts):
            line, well = one(part, folder, minutes_of(part, parts[number:], options, until), options, environment)
            lines.append(line)
            whole = whole and well
    print("\n".join(["", *lines]), flush=True)
    return 0 if whole else 1
