"""Two processes that each read their rows have what one process reads whole, to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import AutoModelForImageTextToText

from orlaif.demo.shapes import words
from orlaif.distributed import gathering
from orlaif.distributed.deferred import Deferred
from orlaif.distributed.sharding import Sharding
from orlaif.policy import Policy, evaluating, unread
from orlaif.policy.prefix.synthetic import random_tokens
from orlaif.tiny import tiny_model as write_tiny_model
from orlaif.types import Completions
from tests.forked import context

LORA = {"r": 4, "target_modules": "all-linear", "init_lora_weights": "gaussian"}
#: Two families, the first one's head its embedding: settings of the policy, and whether the reference is refreshed.
CASES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "full": ("qwen2_vl", {"prefix": "duplicate"}, False),
    "lora": ("qwen3_vl_moe", {"lora": LORA, "freeze_vision": True, "prefix": "duplicate"}, True),
}


def loaded(folder: str, settings: dict[str, Any], refreshed: bool, later: bool) -> Policy:
    """A policy in float32, and its reference."""
    torch.manual_seed(3)
    policy = Policy(folder, dtype="float32", **settings).load(later=later)
    policy.load_reference(refreshed)
    return policy


def weights(policy: Policy) -> dict[str, tuple[torch.Tensor, bool]]:
    """All of policy and reference, under both names where two are tied, and whether they are trained."""
    found = {}
    for name, p in policy.named_parameters(remove_duplicate=False):
        found[name] = (p.full_tensor() if isinstance(p, DTensor) else p.detach(), p.requires_grad)
    return found


def share(rank: int, world: int, store: str, folders: dict[str, str], out: str) -> None:
    """What one of ``world`` processes finds."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    read, found = [0], {}
    rows_in = unread._rows_in

    def counted(path: str, name: str) -> Any:
        rows = rows_in(path, name)

        def reads(first: int, last: int) -> torch.Tensor:
            values = rows(first, last)
            read[0] += values.numel()
            return values

        return reads

    unread._rows_in = counted
    gathered, whole = [0], gathering.whole

    def gathers(weight: DTensor) -> torch.Tensor:
        gathered[0] += 1
        return whole(weight)

    gathering.whole = gathers
    for case, (kind, settings, refreshed) in CASES.items():
        policy = loaded(folders[kind], settings, refreshed, later=True)
        waiting = sum(isinstance(p, Deferred) for p in policy.parameters())
        read[0] = 0
        policy.shard(init_device_mesh("cpu", (world,)))
        found[case] = {"waiting": waiting, "read": read[0], "choice": policy.choice, "weights": weights(policy)}
        gathered[0] = 0
        policy.export(f"{out}-{case}")
        found[case]["gathered"] = gathered[0]
        found[case]["sharded"] = all(isinstance(p, DTensor) for p in policy.parameters())
    found["computed"] = computed_in_bfloat16(folders["qwen2_vl"], init_device_mesh("cpu", (world,)))
    torch.save(found, f"{out}{rank}.pt")
    dist.destroy_process_group()


def computed_in_bfloat16(folder: str, mesh: Any) -> dict[str, Any]:
    """Dtypes of policy and copy, and log-probs by both before either changes."""
    sharding = Sharding(param_dtype="bfloat16")
    policy = Policy(folder, dtype="float32", prefix="duplicate", sharding=sharding).load(later=True)
    policy.load_reference()
    policy.shard(mesh)
    assert policy.reference.model is not None
    dtypes = [{p.dtype for p in model.parameters()} for model in (policy.network, policy.reference.model)]
    buffers = {buffer.dtype for buffer in policy.reference.model.buffers()}
    ids = random_tokens(policy.processor, [*policy.placeholder_ids], (1, 2, 3))
    completions = Completions(ids=ids, mask=torch.ones_like(ids, dtype=torch.bool), texts=(("", ""),))
    batch = policy.stand_in(policy.device)
    with torch.no_grad(), evaluating(policy.network):
        logps = [policy.completion_logps(batch, completions, reference=reference) for reference in (False, True)]
    return {"dtypes": dtypes, "buffers": buffers, "logps": logps}


def same_files(one: Path, two: Path) -> None:
    """Names, dtypes, values and metadata of two files of weights."""
    with safe_open(one, "pt") as first, safe_open(two, "pt") as second:
        assert first.metadata() == second.metadata()
    values = load_file(one), load_file(two)
    assert values[0].keys() == values[1].keys()
    for name, value in values[0].items():
        assert value.dtype == values[1][name].dtype
        assert torch.equal(value, values[1][name]), name


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Checkpoints in bfloat16; one in several files."""
    made = {}
    for kind in ("qwen2_vl", "qwen3_vl_moe"):
        made[kind] = write_tiny_model(kind, tmp_path_factory.mktemp(kind), words())
        model = AutoModelForImageTextToText.from_pretrained(made[kind], dtype=torch.bfloat16)
        model.save_pretrained(made[kind], max_shard_size="100KB" if kind == "qwen2_vl" else "1GB")
    assert len(list(Path(made["qwen2_vl"]).glob("*.safetensors"))) > 2
    return made


def test_two_processes_read_their_rows_and_have_the_whole_to_the_bit(folders: dict[str, str], tmp_path: Path) -> None:
    arguments = (2, str(tmp_path / "store"), folders, str(tmp_path / "found"))
    processes = [context().Process(target=share, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(400)
    assert [process.exitcode for process in processes] == [0, 0]
    both = [torch.load(tmp_path / f"found{rank}.pt", weights_only=False) for rank in range(2)]
    for found in (one["computed"] for one in both):
        assert found["dtypes"] == [{torch.float32}, {torch.bfloat16}]  # what is computed with is half of what is kept
        assert found["buffers"] == {torch.float32}
        assert torch.equal(*found["logps"])
        assert found["logps"][0].std() > 0.01
    for case, (kind, settings, refreshed) in CASES.items():
        policy = loaded(folders[kind], settings, refreshed, later=False)
        expected = weights(policy)
        policy.export(str(tmp_path / case))
        exported = {str(p.relative_to(tmp_path / case)): p for p in (tmp_path / case).rglob("*") if p.is_file()}
        # Tied weights are gathered and written once; of LoRA, the adapter alone.
        number = sum(len(load_file(path)) for path in exported.values() if path.suffix == ".safetensors")
        for name, path in exported.items():
            other = tmp_path / f"found-{case}" / name
            if path.suffix == ".safetensors":
                same_files(path, other)
            elif path.name == "adapter_config.json":  # PEFT keeps names in a set, whose order differs by process
                first, second = (json.loads(file.read_text()) for file in (path, other))
                assert set(first.pop("target_modules")) == set(second.pop("target_modules"))
                assert first == second
            else:
                assert path.read_bytes() == other.read_bytes(), name
        assert not any(isinstance(p, Deferred) for p in policy.parameters())
        of_files = [p for name, p in policy.named_parameters() if ".lora_" not in name]
        for found in (one[case] for one in both):
            assert found["sharded"]
            assert found["gathered"] == number
            assert number > 50 if case == "full" else number == 16
            assert found["waiting"] == len(of_files) > 50
            assert found["choice"] == policy.choice
            assert found["weights"].keys() == expected.keys()
            for name, (values, trained) in expected.items():
                got, is_trained = found["weights"][name]
                assert is_trained == trained, name
                assert got.dtype == torch.float32
                assert torch.equal(got, values), name
        # Each value is read by one of them, for the policy and, with full fine-tuning, for its copy.
        assert sum(one[case]["read"] for one in both) == sum(p.numel() for p in of_files)
        assert max(one[case]["read"] for one in both) < 0.55 * sum(p.numel() for p in of_files)
