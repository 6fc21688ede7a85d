"""Two processes on one machine: the same as one, never waiting for each other in vain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.processes import LORA, Job, run


@pytest.fixture
def job(tiny_model: str, data_root: str, tmp_path: Path) -> Any:
    def make(name: str, **settings: Any) -> Job:
        (tmp_path / name).mkdir(exist_ok=True)
        return Job(folder=tiny_model, root=data_root, out=str(tmp_path / name / "out.pt"), **settings)

    return make


def same(one: dict[str, Any], two: dict[str, Any], tolerance: float = 1e-6) -> None:
    """Losses of every step, and weights at the end."""
    losses = [[metrics["train/loss"] for metrics in found["metrics"]] for found in (one, two)]
    assert losses[0] == pytest.approx(losses[1], abs=tolerance)
    assert one["weights"].keys() == two["weights"].keys()
    for name, weight in one["weights"].items():
        assert float((two["weights"][name] - weight).abs().max()) <= tolerance, name
    assert one["totals"] == two["totals"]


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_train_as_one(job: Any, strategy: str, lora: Any) -> None:
    """Five steps of sampled rollouts with a shared prefix, in parts."""
    settings: dict[str, Any] = {"steps": 5, "lora": lora, "module": {"microbatch": 3}}
    one = run(job("one", **settings))
    two = run(job("two", strategy=strategy, **settings), world=2)
    start = run(job("start", **settings | {"steps": 1}))
    assert one["sharded"] == 0
    assert two["sharded"] == (len(two["weights"]) if strategy == "fsdp2" else 0)
    assert max(float((one["weights"][n] - start["weights"][n]).abs().max()) for n in one["weights"]) > 1e-4
    same(one, two)
