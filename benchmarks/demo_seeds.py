"""The demo, or a variant of it, over seeds: test accuracy before and after, from the runs' own summaries.

For a variant without the seconds of its stages, as seeds may run side by side. Runs that are there are not repeated:

    .venv/bin/python -m benchmarks.demo_seeds [--variant think] [--seeds 0 1 2 3 4] [--output outputs/demo_seeds]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness import about, installed

WHAT = {"": "the demo (make demo)", "think": "the demo in tags (python -m orlaif.demo --think)"}


def run_seed(variant: str, seed: int, output: Path) -> dict[str, Any]:
    """The summary of a seed's run, whose folder is ``<output>/<variant or demo>-<seed>``."""
    folder = output / f"{variant or 'demo'}-{seed}"
    if not (folder / "summary.json").exists():
        flags = [f"--{variant}"] if variant else []
        command = [sys.executable, "-m", "orlaif.demo", *flags, "--seed", str(seed), "--output", str(folder)]
        subprocess.run(command, check=True)
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return {key: value for key, value in summary.items() if not (variant and key == "seconds_by_stage")}


def main() -> None:
    """Run what is missing, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=list(WHAT), default="")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output", type=Path, default=Path("outputs/demo_seeds"))
    arguments = parser.parse_args()
    report = {
        "what": f"test accuracy of {WHAT[arguments.variant]}, greedy",
        "seeds": {str(seed): run_seed(arguments.variant, seed, arguments.output) for seed in arguments.seeds},
        **about(cuda=False),
        "versions": installed("torch", "transformers", "lightning", "torchcodec"),
    }
    name = f"demo_{arguments.variant}" if arguments.variant else "demo"
    path = Path(__file__).parent / "results" / f"{name}.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for seed, summary in report["seeds"].items():
        print(f"{seed}: {100 * summary['accuracy_warm_start']:.1f} -> {100 * summary['accuracy_rlaif']:.1f} %")


if __name__ == "__main__":
    main()
