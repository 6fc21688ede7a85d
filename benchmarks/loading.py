"""Memory of the host while processes load a model for FSDP2: each reading its own rows, and each reading all of it.

    .venv/bin/python -m benchmarks.loading [--cases rows,whole] [--processes 4]

A Qwen3-VL of 250 million parameters, 1 GB in float32, lies on the disk in bfloat16. ``rows`` is what a run under
``--trainer.strategy fsdp2`` does: weights stay in their files until FSDP2 asks for this process's rows. ``whole``: each
process reads the model, copies it for the reference, and shards both. The model is asked for its layout on the way, as
in a run, unless ``--no-ask``.

What is counted: ``Pss`` of ``/proc/<pid>/smaps_rollup``, summed over the processes at the same moment, every 20 ms,
less the same sum before. By then each process has loaded, frozen, sharded and dropped a model of 1 MB of the same kind,
so that what Python, its libraries and gloo need is taken off. Pages that a process maps from a checkpoint are in its
``Pss`` for as long as they are mapped; ``anonymous`` leaves them out. The kernel's cache of the file behind them
belongs to no process and is in neither. GB are 10^9 bytes.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import multiprocessing
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from transformers import AutoConfig, AutoModelForImageTextToText

from benchmarks.harness import ROOT, about, installed
from orlaif.demo.shapes import words
from orlaif.distributed.sharding import Sharding
from orlaif.policy import Policy
from orlaif.policy import loading as policy_loading
from orlaif.policy.prefix.choice import PrefixChoice
from orlaif.tiny import tiny_model

SIZE: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 14,
    "vocab_size": 32768,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
#: What is loaded: how it is read, whether there is a frozen copy, and the dtype that weights are computed in.
CASES: dict[str, tuple[bool, bool, str | None]] = {
    "rows, policy": (True, False, None),
    "rows, policy and reference": (True, True, None),
    "rows, policy and reference, computed in bfloat16": (True, True, "bfloat16"),
    "whole, policy": (False, False, None),
    "whole, policy and reference": (False, True, None),
}
EVERY_S = 0.02
#: Seconds that a loaded machine may need for what takes two minutes.
PATIENCE_S = 1200


def write_checkpoint(folder: str) -> int:
    """Write the model in bfloat16; how many parameters it has."""
    tiny_model("qwen3_vl", folder, words())
    config: Any = AutoConfig.from_pretrained(folder)
    rope = {**config.text_config.rope_parameters, "mrope_section": [24, 20, 20]}
    config.text_config.update(SIZE | {"rope_parameters": rope})
    config.text_config.tie_word_embeddings = config.tie_word_embeddings = False
    config.vision_config.out_hidden_size = SIZE["hidden_size"]
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    model.to_empty(device="cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
    model.save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())


def load(folder: str, case: str, mesh: Any) -> Policy:
    """What ``configure_model`` of a stage does."""
    later, reference, computed = CASES[case]
    policy = Policy(folder, dtype="float32", prefix="auto", sharding=Sharding(param_dtype=computed))
    policy.load(later=later)
    if reference:
        policy.load_reference()
    policy.shard(mesh)
    return policy


def process(rank: int, world: int, case: str, ask: bool, folders: tuple[str, str], store: str, barrier: Any) -> None:
    """One process: a small model, a look, the large one, a look."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world,))
    if not ask:
        there: Any = policy_loading
        there.choose_prefix = lambda policy, model: PrefixChoice(layout="duplicate")
        there.freeze_unreached = lambda model, batch, family: []
    small = load(folders[0], case, mesh)
    del small
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    for _ in range(2):  # between the two, the parent looks at what Python needs
        barrier.wait(PATIENCE_S)
    policy = load(folders[1], case, mesh)
    for _ in range(2):
        barrier.wait(PATIENCE_S)
    assert policy.is_sharded
    dist.destroy_process_group()


def memory(pid: int) -> dict[str, int]:
    """Bytes of a process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return {"all": found["Pss"], "anonymous": found["Pss_Anon"] + found["Pss_Shmem"]}


def together(pids: list[int]) -> dict[str, int]:
    """Bytes of all processes."""
    each = [memory(pid) for pid in pids]
    return {name: sum(one[name] for one in each) for name in each[0]}


def measured(world: int, case: str, ask: bool, folders: tuple[str, str]) -> dict[str, float]:
    """Gigabytes while ``world`` processes load."""
    context = multiprocessing.get_context("spawn")  # as a launcher starts them: with nothing in common
    barrier = context.Barrier(world + 1)
    with tempfile.TemporaryDirectory() as place:
        given = (world, case, ask, folders, f"{place}/store", barrier)
        processes = [context.Process(target=process, args=(rank, *given), daemon=True) for rank in range(world)]
        for one in processes:
            one.start()
        pids = [one.pid for one in processes if one.pid is not None]
        barrier.wait(PATIENCE_S)
        before = together(pids)
        barrier.wait(PATIENCE_S)
        start, most = time.monotonic(), dict(before)
        while barrier.n_waiting < world:
            if not all(one.is_alive() for one in processes):
                raise RuntimeError("a process has died")
            now = together(pids)
            most = {name: max(most[name], now[name]) for name in now}
            time.sleep(EVERY_S)
        taken, after = time.monotonic() - start, together(pids)
        for _ in range(2):
            barrier.wait(PATIENCE_S)
        for one in processes:
            one.join(PATIENCE_S)
    return {
        "python_gb": before["all"] / 1e9,
        "peak_gb": (most["all"] - before["all"]) / 1e9,
        "peak_anonymous_gb": (most["anonymous"] - before["anonymous"]) / 1e9,
        "end_gb": (after["all"] - before["all"]) / 1e9,
        "seconds": taken,
    }


def main() -> None:
    """Measure, print and write, a case at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "loading.json")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--cases", default="", help="those whose names begin so, by commas; all by default")
    parser.add_argument("--no-ask", action="store_true", help="do not ask the model for its layout: it takes minutes")
    arguments = parser.parse_args()
    begins = tuple(arguments.cases.split(","))
    report: dict[str, Any] = {**about(cuda=False), "versions": installed("torch", "transformers", "safetensors")}
    before = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    report["cases"] = before.get("cases", {})
    with tempfile.TemporaryDirectory() as small, tempfile.TemporaryDirectory() as large:
        tiny_model("qwen3_vl", small, words())
        report["model_gb"] = write_checkpoint(large) * 4 / 1e9
        report["processes"] = arguments.processes
        for case in (name for name in CASES if name.startswith(begins)):
            found = measured(arguments.processes, case, not arguments.no_ask, (small, large))
            report["cases"][case] = found
            print(case, {name: round(value, 2) for name, value in found.items()}, flush=True)
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            arguments.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
