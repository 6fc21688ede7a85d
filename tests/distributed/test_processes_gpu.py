"""What only a GPU can show of running at scale: FSDP2 on CUDA, offloaded to the host, and a quantised base."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from orlaif.distributed.sharding import Sharding
from tests.processes import LORA, Job, run

pytestmark = pytest.mark.gpu
GPU = {"accelerator": "gpu"}


@pytest.fixture
def job(tiny_model: str, data_root: str, tmp_path: Path) -> Any:
    def make(name: str, **settings: Any) -> Job:
        (tmp_path / name).mkdir(exist_ok=True)
        return Job(folder=tiny_model, root=data_root, out=str(tmp_path / name / "out.pt"), trainer=GPU, **settings)

    return make


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("offload", [False, True], ids=["on the GPU", "offloaded"])
def test_one_process_under_fsdp2_is_one_without(job: Any, lora: Any, offload: bool) -> None:
    settings: dict[str, Any] = {"steps": 5, "lora": lora, "module": {"microbatch": 3}}
    one = run(job("one", **settings))
    two = run(job("two", strategy="fsdp2", sharding=Sharding(cpu_offload=offload), **settings))
    assert two["sharded"] == len(two["weights"])
    for name, weight in one["weights"].items():
        assert float((two["weights"][name].cpu() - weight.cpu()).abs().max()) <= 1e-5, name


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_a_quantised_base_is_trained_saved_and_exported(job: Any, tmp_path: Path) -> None:
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "bfloat16"}
    settings: dict[str, Any] = {"lora": LORA, "rate": 10.0, "policy": {"quantization": four, "dtype": "bfloat16"}}
    whole = run(job("whole", steps=4, export=True, merge=True, **settings))
    first = job("first", steps=2, save_every=2, **settings)
    start = run(first)
    (checkpoint,) = (tmp_path / "first" / "checkpoints").glob("*.ckpt")
    resumed = run(job("second", steps=4, resume=str(checkpoint), **settings))
    trained = [name for name in whole["weights"] if "lora_" in name]
    assert trained
    assert any((whole["weights"][name] != start["weights"][name]).any() for name in trained)
    for name in trained:
        torch.testing.assert_close(resumed["weights"][name], whole["weights"][name])
    state = torch.load(checkpoint, weights_only=False)["state_dict"]
    assert all("lora_" in name for name in state)
    AutoModelForImageTextToText.from_pretrained(tmp_path / "whole" / "export", dtype=torch.bfloat16)
