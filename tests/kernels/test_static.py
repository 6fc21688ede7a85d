"""The kernels' binaries, compiled without a GPU: no spills, wide accesses, two reads and one write of a row at most."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from orlaif_kernels import grpo_rank_loss, rows
from orlaif_kernels.rows import cluster_launch, compiles_clusters

from tests.conftest import REPO
from tests.kernels.cases import make_case

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def compile_all(output: Path, *options: str) -> list[dict[str, Any]]:
    """Run the report in a process without the interpreter, and with a compilation cache of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(output.parent / "cache")
    command = [sys.executable, "-m", "benchmarks.static", *options, "--output", str(output)]
    subprocess.run(command, check=True, env=environment, cwd=REPO, capture_output=True)
    return json.loads(output.read_text())["kernels"]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return compile_all(tmp_path_factory.mktemp("static") / "static.json", "--quick")


@pytest.mark.slow
def test_nothing_spills_for_any_vocabulary_and_dtype(tmp_path: Path) -> None:
    ours = [r for r in compile_all(tmp_path / "static.json") if not r["kernel"].startswith("liger")]
    assert len(ours) == 4 * (5 + 5 * 3 * 8) + 6 * compiles_clusters()  # and what a cluster holds on sm_90
    assert [r for r in ours if r["spills"]] == []
    assert all("128" in r["loads"] for r in ours if r["kernel"].startswith("row_kernel"))


def test_nothing_spills(records: list[dict[str, Any]]) -> None:
    ours = [r for r in records if not r["kernel"].startswith("liger")]
    assert {r["target"] for r in ours} == {"sm_80", "sm_90", "sm_100", "gfx942"}
    assert {r["dtype"] for r in ours if "dtype" in r} == {"bf16", "fp32"}
    names = {r["kernel"].split(":")[0].split(" ")[0] for r in ours}
    assert names == {"row_kernel", "group_kernel", "scale_kernel"}
    assert [r for r in ours if r["spills"]] == []


def test_rows_are_read_and_written_128_bits_at_a_time(records: list[dict[str, Any]]) -> None:
    """Also where the vocabulary is odd; narrower accesses are its ends, the target and the numbers of a token."""
    for r in records:
        if not r["kernel"].startswith("row_kernel") or r["target"] == "gfx942" or "multiprocessors_per_row" in r:
            continue
        aligned = r["vocabulary"] % 8 == 0
        per_sweep = 1 if "soft-capped" in r["kernel"] and r["dtype"] == "bf16" else 2
        # The first sweep has a load before its loop, and one ahead of use in it.
        statistics, gradient = r["row_reads"] - r["row_writes"], r["row_writes"]
        assert r["loads"]["128"] == per_sweep * (2 * statistics + gradient), r
        if r["dtype"] == "fp32":
            continue
        # 16-bit loads: the target; with statistics the lane of the largest; the two ends of a row, each sweep.
        assert r["loads"].get("16", 0) == 1 + statistics + (0 if aligned else r["row_reads"]), r
        if r["row_writes"]:
            assert r["stores"]["128"] >= per_sweep
        assert r["stores"].get("16", 0) == (0 if aligned or not r["row_writes"] else 2), r


def test_scaling_in_place_is_as_wide(records: list[dict[str, Any]]) -> None:
    (record,) = [r for r in records if r["kernel"] == "scale_kernel" and r["target"] == "sm_90"]
    assert record["loads"]["128"] == record["stores"]["128"] == 4
    assert record["loads"]["16"] == record["stores"]["16"] == 1  # fewer than 8 at the end


def test_a_row_is_read_twice_and_written_once_at_most(records: list[dict[str, Any]]) -> None:
    fused = [r for r in records if r["kernel"].startswith("row_kernel: loss and gradient")]
    clusters = [r for r in fused if "multiprocessors_per_row" in r]
    assert len(clusters) == int(compiles_clusters())
    for held in clusters:
        assert (held["row_reads"], held["row_writes"]) == (1, 1)
        assert held["loads"]["128"] == held["stores"]["128"] / 2 == 4  # 32 bf16 logits a thread, and zeros where masked
        fused.remove(held)
    assert fused
    for r in fused:
        assert (r["row_reads"], r["row_writes"]) == (2, 1)
        if r["dtype"] == "bf16" and r["target"] in ("sm_90", "sm_100"):  # what is in flight fits their L2
            assert r["second_read_from_l2"], r


def test_what_a_thread_issues_and_what_is_in_flight(records: list[dict[str, Any]]) -> None:
    """Both sweeps of a bf16 row cost under 26 instructions a logit (26.5 before the compares with the target were
    relative); a program per multiprocessor where rows are large, whatever registers would allow."""
    one = {"kernel": "row_kernel: loss and gradient", "dtype": "bf16", "vocabulary": 152064}
    ours = [r for r in records if r.items() >= one.items() and r["target"] != "gfx942"]
    assert len(ours) == 3
    for r in ours:
        assert sum(r["instructions_per_logit"][:2]) < 26, r
        assert r["programs_per_sm"] == 1, r


def test_a_cluster_holds_the_rows_that_l2_does_not() -> None:
    h100 = (132, 50 * 10**6)
    assert cluster_launch(152064, 2, *h100) is None  # 40 MB at a time
    assert cluster_launch(262144, 2, *h100) == {"BLOCK": 262144, "num_warps": 16, "num_ctas": 16}
    assert cluster_launch(152064, 4, *h100) == {"BLOCK": 262144, "num_warps": 32, "num_ctas": 16}
    assert cluster_launch(600000, 4, *h100) is None  # more than registers hold


@pytest.mark.parametrize("v", [1000, 1001])
def test_a_held_row_has_the_same_gradient(v: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel that a cluster runs, in the interpreter."""
    case = make_case(2, 3, v, kl_coef=0.1, entropy_coef=0.05, delta=1.5)
    leaf = case.logits.clone().to(DEVICE).requires_grad_()

    def gradient() -> torch.Tensor:
        told = {k: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for k, x in case.arguments.items()}
        loss, _ = grpo_rank_loss(leaf * 1, case.token_ids.to(DEVICE), inplace=True, implementation="triton", **told)
        return torch.autograd.grad(loss, leaf)[0]

    alone = gradient()
    launches: list[int] = []
    held = {"BLOCK": 1024, "num_warps": 4, "num_ctas": 1}
    monkeypatch.setattr(rows, "row_launch", lambda v, *_: (launches.append(v), held)[1])
    torch.testing.assert_close(gradient(), alone, rtol=1e-5, atol=1e-7)
    assert launches == [v]
