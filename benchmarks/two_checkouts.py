"""Whole models of video in two checkouts, side by side on a CPU: what loading them, a rollout and a step take.

    .venv/bin/python -m benchmarks.two_checkouts OLD NEW [--families qwen3_vl qwen2_5_vl] [--output FILE]

For a change that must not make slower what was there before. Each checkout has a process of its own, in which its
package is imported; the two take turns, call by call, on the same model (random weights, written once by the checkout
that this runs from), the same clips and the same completions. A step is the log-probs of P groups of G completions of T
tokens behind prompts of S tokens, forward and backward, in the layout that the checkout chooses; a rollout samples
those groups. Seconds are of the processor, not of the clock, so that what else the machine does weighs less.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

#: P, S (about), G, T.
POINTS = ((2, 512, 8, 16), (2, 1024, 8, 32))
#: Of the decoder, beside what the tiny model of the family has; its positions take half of a head's size.
DECODER = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8}


def write_model(family: str, folder: str) -> None:
    """A model of the family whose decoder is what a step spends its time on, and its processor."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from orlaif.tiny import tiny_model

    tiny_model(family, folder)
    config: Any = AutoConfig.from_pretrained(folder)
    for name, value in (DECODER | {"num_key_value_heads": 4, "head_dim": 32}).items():
        setattr(config.text_config, name, value)
    config.text_config.layer_types = ["full_attention"] * DECODER["num_hidden_layers"]
    config.text_config.rope_parameters = config.text_config.rope_parameters | {"mrope_section": [4, 6, 6]}
    config.vision_config.out_hidden_size = DECODER["hidden_size"]
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)


class Side:
    """One checkout, in a process of its own."""

    def __init__(self, checkout: Path, folder: str) -> None:
        paths = f"{checkout}{os.pathsep}{checkout / 'kernels'}"
        environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--answer", folder],
            cwd=checkout,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.first = self.answer()

    def answer(self) -> dict[str, Any]:
        """What the process says next."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):  # not a library's remark
                return json.loads(line)
        raise RuntimeError(f"the process of a checkout ended with {self.process.wait()}")

    def ask(self, *question: Any) -> dict[str, Any]:
        """Put a question and wait for its answer."""
        assert self.process.stdin is not None
        print(json.dumps(question), file=self.process.stdin, flush=True)
        return self.answer()

    def close(self) -> None:
        """Let the process end."""
        self.process.communicate(timeout=60)


def answer(folder: str) -> None:
    """Load the model, and answer questions from standard input: this runs in the checkout that is measured."""
    import torch

    from orlaif.policy import Policy
    from orlaif.policy.encoding import ProcessorEncoder
    from orlaif.rollout import SamplingParams, generate
    from orlaif.types import Completions, VideoClip, VideoPrompt

    torch.set_num_threads(1)
    start = time.process_time()
    policy = Policy(folder, dtype="float32").load()
    loaded = {"load_s": time.process_time() - start, "layout": policy.layout}
    print(json.dumps(loaded), flush=True)
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (8, 3, 56, 56), generator=generator, dtype=torch.uint8)
    clip = VideoClip(frames=frames, pts_s=torch.arange(8, dtype=torch.float64), duration_s=8.0, path="noise")
    batches: dict[str, Any] = {}
    for line in sys.stdin:
        what, p, s, g, t = json.loads(line)
        if (key := f"{p},{s},{g},{t}") not in batches:
            prompts = [VideoPrompt(id=str(i), video="noise", question="what is " * (s // 2)) for i in range(p)]
            batch = ProcessorEncoder(policy.processor)(prompts, [clip] * p)
            ids = torch.randint(20, 40, (p, g, t), generator=generator)
            texts = (("",) * g,) * p
            mask = torch.ones(p, g, t, dtype=torch.bool)
            batches[key] = batch, Completions(ids=ids, mask=mask, texts=texts)
        batch, completions = batches[key]
        policy.features.forget()
        policy.network.zero_grad()
        start = time.process_time()
        if what == "step":
            logps = policy.completion_logps(batch, completions)
            logps.sum().backward()
            value = float(logps.sum())
        else:
            sampling = SamplingParams(max_new_tokens=t)
            value = float(generate(policy, batch, g, sampling, torch.Generator().manual_seed(0)).ids.sum())
        taken = time.process_time() - start
        print(json.dumps({"s": taken, "value": value, "tokens": batch.input_ids.shape[1]}), flush=True)


def measure(old: Path, new: Path, family: str, repeats: int) -> dict[str, Any]:
    """Times of a family's model in both checkouts, taking turns."""
    from benchmarks.harness import spread

    with tempfile.TemporaryDirectory() as folder:
        write_model(family, folder)
        sides = {"old": Side(old, folder), "new": Side(new, folder)}
        report: dict[str, Any] = {name: dict(side.first) for name, side in sides.items()}
        for what in ("step", "rollout"):
            for point in POINTS:
                times: dict[str, list[float]] = {"old": [], "new": []}
                values = {}
                for turn in range(repeats + 1):
                    for name in ("old", "new") if turn % 2 else ("new", "old"):
                        said = sides[name].ask(what, *point)
                        values[name] = said["value"]
                        if turn:  # the first call is for warmth
                            times[name].append(said["s"])
                key = f"{what} P={point[0]} S={said['tokens']} G={point[2]} T={point[3]}"
                report[key] = {name: spread(times[name]) for name in times}
                report[key] |= {"ratio": report[key]["new"]["median_ms"] / report[key]["old"]["median_ms"]}
                report[key] |= {"same": abs(values["old"] - values["new"]) <= 1e-3 * abs(values["old"])}
                print(f"{family}: {key}: new / old = {report[key]['ratio']:.3f}", flush=True)
        for side in sides.values():
            side.close()
    return report


def main() -> None:
    """Measure all families and write the report."""
    from benchmarks.harness import about, installed  # of this checkout; what is measured imports nothing of it

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--families", nargs="+", default=["qwen3_vl", "qwen2_5_vl"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    report: dict[str, Any] = {"machine": about(cuda=False), "versions": installed("torch", "transformers")}
    for family in args.families:
        report[family] = measure(args.old.resolve(), args.new.resolve(), family, args.repeats)
    text = json.dumps(report, indent=1)
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--answer"]:
        sys.path.pop(0)  # the folder of this file; the package is the checkout's
        answer(sys.argv[2])
    else:
        main()
