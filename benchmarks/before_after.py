"""Statistics and losses of two commits of ``orlaif_kernels``, side by side on a CPU: time and peak memory.

    .venv/bin/python -m benchmarks.before_after [--before REV] [--output benchmarks/results/before_after_cpu.json]

Each side runs in processes of its own, on the package as that commit has it, the two taking turns. A process runs each
case once to load what a first call loads, then once by the clock; peak memory is what that call adds to its inputs,
gradients included. What a commit cannot do is left out. ``torch`` implementations, float32, forward and backward.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.harness import about, installed, spread, timed_with_peak

#: The last commit before statistics were an operation of their own.
BEFORE = "9cdc916"
LENGTH = 64  # tokens per completion


def cases(tokens: int, hidden: int, vocabulary: int) -> dict[str, Callable[[], Any]]:
    """What this process's ``orlaif_kernels`` can do, each a call on the same inputs."""
    import orlaif_kernels as kernels

    torch.manual_seed(0)
    rows = tokens // LENGTH
    states, weight = torch.randn(rows, LENGTH, hidden), torch.randn(vocabulary, hidden) * (2 / hidden**0.5)
    ids, logits = torch.randint(vocabulary, (rows, LENGTH)), states @ weight.t()
    mask = torch.arange(LENGTH) < torch.linspace(0.4, 1.0, rows).mul(LENGTH).unsqueeze(1)
    told: dict[str, Any] = {"mask": mask, "implementation": "torch"}
    of_loss = {"advantages": torch.randn(rows), "ref_logps": -torch.rand(rows, LENGTH) * 3 - 9, "kl_coef": 0.05, **told}

    def backward(function: Any, *inputs: torch.Tensor, of: Callable[[Any], torch.Tensor] = lambda x: x[0]) -> None:
        leaves = [x.detach().requires_grad_() for x in inputs]
        of(function(*leaves)).backward()

    def log_probs() -> Any:
        if hasattr(kernels, "token_statistics"):
            return kernels.token_statistics(logits, ids, **told)
        return importlib.import_module("orlaif_kernels.reference").token_logps(logits, ids, mask=mask)

    def penalised(logp: Any, old: Any, reference: Any, entropy: Any, advantage: Any, mask: Any) -> Any:
        return -(logp - old).exp() * advantage + 0.05 * (logp - reference).square()

    def both(made: Any) -> torch.Tensor:
        return made.logps.sum() + made.entropy.sum()

    ways: dict[str, Callable[[], Any]] = {
        "log-probs from logits": log_probs,
        "log-probs through a head": lambda: kernels.linear_logps(states, weight, ids, **told),
        "GRPO_rank from logits": lambda: backward(lambda x: kernels.grpo_rank_loss(x, ids, **of_loss), logits),
        "GRPO_rank through a head": lambda: backward(
            lambda x, w: kernels.linear_grpo_rank_loss(x, w, ids, **of_loss), states, weight
        ),
    }
    if hasattr(kernels, "token_statistics"):
        of_any = {name: x for name, x in of_loss.items() if name != "kl_coef"}
        ways |= {
            "statistics and gradient, logits": lambda: backward(
                lambda x: kernels.token_statistics(x, ids, **told), logits, of=both
            ),
            "statistics and gradient, head": lambda: backward(
                lambda x, w: kernels.linear_token_statistics(x, w, ids, **told), states, weight, of=both
            ),
            "an objective of one's own, head": lambda: backward(
                lambda x, w: kernels.linear_policy_loss(x, w, ids, penalised, **of_any), states, weight
            ),
        }
    return ways


def one_process(shape: list[int]) -> None:
    """Print seconds and bytes of each case."""
    found = {}
    for name, call in cases(*shape).items():
        call()
        found[name] = timed_with_peak(call, cuda=False)
    print(json.dumps(found))


def unpack(revision: str, folder: str) -> str:
    """Put the kernels of a commit into a folder that can be imported from; returns it."""
    archive = subprocess.run(["git", "archive", revision, "kernels/orlaif_kernels"], capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return os.path.join(folder, "kernels")


def main() -> None:
    """Write the JSON and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", default=BEFORE, help="a commit")
    parser.add_argument("--shape", nargs=3, type=int, default=[1024, 256, 32003], metavar=("TOKENS", "HIDDEN", "V"))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", default="outputs/before_after.json")
    parser.add_argument("--one-process", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one_process:
        one_process(given.shape)
        return
    found: dict[str, dict[str, list[tuple[float, int]]]] = {"before": {}, "after": {}}
    command = [sys.executable, "-m", "benchmarks.before_after", "--one-process", "--shape", *map(str, given.shape)]
    with tempfile.TemporaryDirectory() as folder:
        paths = {"before": unpack(given.before, folder), "after": os.path.abspath("kernels")}
        for _ in range(given.repeats):
            for side, path in paths.items():
                environment = os.environ | {"PYTHONPATH": os.pathsep.join([path, os.getcwd()])}
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
                for name, taken in json.loads(done.stdout).items():
                    found[side].setdefault(name, []).append(taken)
    rows = {
        name: {
            side: {**spread([s for s, _ in of[name]]), "peak_mb": max(b for _, b in of[name]) / 1e6}
            for side, of in found.items()
            if name in of
        }
        for name in found["after"]
    }
    result = {
        **about(False),
        "before": given.before,
        "shape": given.shape,
        "versions": installed("torch"),
        "cases": rows,
    }
    os.makedirs(os.path.dirname(given.output) or ".", exist_ok=True)
    with open(given.output, "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)
    print(f"| {given.shape[0]} tokens, H = {given.shape[1]}, V = {given.shape[2]} | before | after |\n|---|---|---|")
    for name, sides in rows.items():
        cells = [
            f"{x['median_ms']:.0f} ms [{x['p20_ms']:.0f}, {x['p80_ms']:.0f}], {x['peak_mb']:.0f} MB" if x else "none"
            for x in (sides.get("before"), sides["after"])
        ]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
