"""The kernels on this GPU: tests that need one, errors against float64, the same bits each time, and a sanitizer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from benchmarks import kernels
from benchmarks.gpu.notebook import MissingError, Notebook
from benchmarks.harness import ROOT, installed

#: Largest Frobenius error of a gradient against float64.
TOLERANCES = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 1e-4}
VOCABULARIES = (1000, 4097, 32003, 151936, 152064, 248320, 262144)
HIDDEN = 256
REPEATS = 50
TOOLS = ("memcheck", "racecheck", "synccheck")


def run(notebook: Notebook) -> None:
    """All of it, what is most telling first."""
    notebook.measure("tests", lambda: tests(notebook), 60)
    if found := notebook.entries.get("tests"):
        for name in found["wrong"]:
            notebook.fail(f"tests: {name}", found["wrong"][name])
    dtypes = (torch.float32,) if notebook.rehearse else tuple(TOLERANCES)
    vocabularies = (300,) if notebook.rehearse else VOCABULARIES
    for dtype in dtypes:
        for v in vocabularies:
            name = f"error: {str(dtype).removeprefix('torch.')}, {v}"
            notebook.measure(name, lambda v=v, dtype=dtype: errors(v, dtype, notebook.device), 5)  # type: ignore[misc]
            for who, error in notebook.entries.get(name, {}).items():
                if not error <= TOLERANCES[dtype]:
                    notebook.fail(f"{name}, {who}", f"{error:.2g} against float64; at most {TOLERANCES[dtype]}")
    notebook.measure("same bits", lambda: same_bits(notebook), 10)
    for who, different in notebook.entries.get("same bits", {}).items():
        if different:
            notebook.fail(f"same bits: {who}", f"{different} of {REPEATS} calls gave other gradients than the first")
    for tool in TOOLS[:1] if notebook.rehearse else TOOLS:
        notebook.measure(f"sanitizer: {tool}", lambda tool=tool: sanitizer(tool, notebook), 40)  # type: ignore[misc]
        seen = notebook.entries.get(f"sanitizer: {tool}", {})
        if seen.get("errors"):
            notebook.fail(f"sanitizer: {tool}", f"{seen['errors']} errors: {seen['first']}")


def marked() -> list[str]:
    """Test files with a test for a GPU."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(file) for file in files if re.search(r"pytest\.mark\.gpu\b", file.read_text(encoding="utf-8"))]


def tests(notebook: Notebook) -> dict[str, Any]:
    """``pytest -m gpu``: how many passed, failed and were skipped, and why; they are all skipped without a GPU."""
    if not installed("pytest"):
        raise MissingError("no pytest")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "-o", "addopts="]
        limit = max(60.0, notebook.left() - 40)
        done = subprocess.run([*command, f"--junitxml={report}", *marked()], cwd=ROOT, timeout=limit)
        if not report.is_file():
            raise RuntimeError(f"pytest ended with {done.returncode} and left no report")
        return outcome(ElementTree.parse(report).getroot())


def outcome(report: Any) -> dict[str, Any]:
    """Counts of a JUnit report, and by name what was wrong and why others were skipped."""
    wrong: dict[str, str] = {}
    skipped: dict[str, str] = {}
    passed = 0
    for case in report.iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        problems = [child for child in case if child.tag in ("failure", "error")]
        if problems:
            wrong[name] = (problems[0].get("message") or "")[:500]
        elif (why := case.find("skipped")) is not None:
            skipped[name] = why.get("message") or ""
        else:
            passed += 1
    return {"passed": passed, "wrong": wrong, "skipped": skipped}


def ours() -> dict[str, kernels.Candidate]:
    """The Triton implementations."""
    return {name: way for name, way in kernels.candidates(True).items() if "triton" in name and "orlaif" in name}


def errors(v: int, dtype: torch.dtype, device: str) -> dict[str, float]:
    """Of each implementation's gradients, against float64."""
    return {name: kernels.error(way, HIDDEN, v, device, dtype) for name, way in ours().items()}


def same_bits(notebook: Notebook) -> dict[str, int]:
    """How many of many calls gave other bits than the first: a race shows as one that does not repeat."""
    n, v = (16, 300) if notebook.rehearse else (4096, 152064)
    dtype = torch.bfloat16 if notebook.cuda else torch.float32
    given = kernels.problem(n, HIDDEN, v, 0.6, notebook.device, dtype, 16)
    found = {}
    for name, candidate in ours().items():
        logits = given.hidden @ given.weight.t() if candidate.entry == "logits" else None
        first: list[torch.Tensor] = []
        different = 0
        for _ in range(2 if notebook.rehearse else REPEATS):
            given.logits = None if logits is None else logits.clone()
            mine, leaves = kernels.with_leaves(given, candidate)
            candidate.call(mine).backward()
            grads = [leaf.grad for leaf in leaves if leaf.grad is not None]
            first = first or grads
            different += not all(torch.equal(a, b) for a, b in zip(first, grads, strict=True))
        given.logits = None
        found[name] = different
    return found


def sanitizer(tool: str, notebook: Notebook) -> dict[str, Any]:
    """Errors that compute-sanitizer sees in one small call of each kernel; rehearsed without it."""
    watched = [sys.executable, "-m", "benchmarks.gpu.sanitized"]
    beside = Path("/usr/local/cuda/bin/compute-sanitizer")
    found = shutil.which("compute-sanitizer") or (str(beside) if beside.is_file() else None)
    if notebook.rehearse:
        subprocess.run(watched, cwd=ROOT, check=True, timeout=max(30.0, notebook.left()))
        return {"errors": 0, "first": "", "rehearsed": "without a sanitizer"}
    if found is None:
        raise MissingError("no compute-sanitizer")
    if not notebook.cuda:
        raise MissingError("no CUDA GPU")
    # Without the caching allocator, so that each tensor's end is an end that is watched.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = [found, "--tool", tool, "--error-exitcode", "9", *watched]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=max(30.0, notebook.left() - 10)
    )
    said = done.stdout + done.stderr
    summary = re.search(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard", said)
    if summary is None:
        raise RuntimeError(f"compute-sanitizer ended with {done.returncode} and gave no summary: {said[-800:]}")
    lines = [line for line in said.splitlines() if line.startswith("=========") and len(line) > 12]
    return {"errors": int(summary[1] or summary[2]), "first": " | ".join(lines[1:6])[:800]}
