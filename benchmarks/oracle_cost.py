"""What an oracle costs: seconds per group as orlaif asks, against one request at a time.

    HTTP        a server in another process that answers after 50 ms, each request alone: all ballots of a step in
                flight together, against one after the other
    pairwise    a local judge: all groups and pairs in few passes, a video once per group, against a prompt each
                for each verdict (generate-style: the video is encoded and read every time)
    listwise    a local judge: all ballots of all groups in one batch, against one after the other
    ranker      a trained ranker: all groups in one batch, answers behind one prompt, against a prompt for each answer

The local judge is a random Qwen3-VL of the demo's kind on the demo's clips; both ways give the same numbers (checked).
Medians of repeats that take turns, in one run. A CPU's ratios say nothing of a GPU's. Writes JSON, prints a table:

    .venv/bin/python -m benchmarks.oracle_cost [--groups 16] [--answers 8] [--output outputs/bench/oracle_cost.json]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Callable
from itertools import permutations
from typing import Any

import torch

from benchmarks.harness import about, installed, spread
from orlaif.data.video import UniformSampling, decode_clip
from orlaif.demo.demo import quiet
from orlaif.demo.shapes import OPTIONS, ShapesDataset, words
from orlaif.demo.tiny import make_tiny_model
from orlaif.evaluation.quoting import quoted
from orlaif.openai_client import ChatClient
from orlaif.oracles import HTTPJudge, ListwiseJudge, PairwiseJudge, PreferenceRanker
from orlaif.oracles.local import letter_ids
from orlaif.oracles.prompting import opening
from orlaif.oracles.ranker_model import Ranker
from orlaif.policy import Policy
from orlaif.policy.encoding import ProcessorEncoder
from orlaif.types import CandidateGroup, VideoPrompt

DELAY_S = 0.05


def serve(pipe: Any) -> None:
    """A chat server that orders candidates as shown, each request after ``DELAY_S``; sends its port."""
    import re
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # the default of 5 drops connections, which come back after a second

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # head and body in one packet: in two, the second waits 40 ms for a delayed acknowledgement

        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            time.sleep(DELAY_S)
            text = request["messages"][-1]["content"][-1]["text"]
            order = json.dumps({"ranking": re.findall(r"^([A-Z]): ", text, flags=re.MULTILINE)})
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": order}}
            body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
            data = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = Server(("127.0.0.1", 0), Handler)
    pipe.send(server.server_address[1])
    server.serve_forever()


def make_groups(root: str, number: int, answers: int) -> list[CandidateGroup]:
    """Groups of different answers about clips of the embedded data set."""
    dataset = ShapesDataset(root, "train", size=number)
    dataset.prepare()
    every = sorted({word for options in OPTIONS.values() for word in options})
    rng = random.Random(0)
    return [
        CandidateGroup(prompt=p, clip=decode_clip(p, UniformSampling(8)), answers=tuple(rng.sample(every, answers)))
        for p in dataset.prompts
    ]


@torch.no_grad()
def verdicts_one_by_one(judge: PairwiseJudge, groups: list[CandidateGroup]) -> list[float]:
    """Probability of A for every ordered pair, a forward pass of a whole prompt each."""
    policy, verdicts = judge.judge, []
    letters, encoder = letter_ids(policy, 2), ProcessorEncoder(policy.processor, family=policy.family)
    for group in groups:
        for a, b in permutations(group.answers, 2):
            asked = f"{judge.instructions}\n\n{opening(group.prompt.question)}\nA: {quoted(a)}\nB: {quoted(b)}"
            prompt = VideoPrompt(id=group.prompt.id, video="v", question=asked)
            batch = encoder([prompt], [group.clip])
            logits = policy.network(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, logits_to_keep=1, **batch.mm_inputs
            ).logits
            verdicts.append(float(logits[0, -1, letters].double().softmax(-1)[0]))
    return verdicts


def scores_one_by_one(ranker: PreferenceRanker, groups: list[CandidateGroup]) -> list[list[float]]:
    """Scores of every answer, a forward pass of a whole prompt each."""
    network, scores = ranker.ranker, []
    encoder = ProcessorEncoder(network.policy.processor, family=network.policy.family)
    with torch.no_grad():
        for group in groups:
            row = []
            for answer in group.answers:
                batch = encoder([group.prompt], [group.clip])
                row.append(float(network(batch, [[answer]])))
            scores.append(row)
    return scores


def compare(ways: dict[str, Callable[[], Any]], groups: int, repeats: int) -> dict[str, Any]:
    """Milliseconds per group of each way, taking turns; and how many times longer the second takes."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, call in ways.items():
            start = time.perf_counter()
            call()
            if turn:  # the first warms up
                times[name].append((time.perf_counter() - start) / groups)
    report: dict[str, Any] = {name: spread(values) for name, values in times.items()}
    ours, theirs = (report[name]["median_ms"] for name in ways)
    return {**report, "ratio": theirs / ours}


def main() -> None:
    """Time all kinds, write the JSON, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--answers", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", default="outputs/bench/oracle_cost.json")
    arguments = parser.parse_args()
    quiet()
    number, results = arguments.groups, {}
    with tempfile.TemporaryDirectory() as folder:
        groups = make_groups(folder, number, arguments.answers)
        ours, theirs = "together", "one at a time"

        parent, child = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(target=serve, args=(child,), daemon=True)
        process.start()
        url = f"http://127.0.0.1:{parent.recv()}/v1"
        ways = {name: HTTPJudge(ChatClient(url, "m", concurrency=n)) for name, n in ((ours, 32), (theirs, 1))}
        assert torch.equal(ways[ours].rank(groups).ranks, ways[theirs].rank(groups).ranks)
        calls: dict[str, Callable[[], Any]] = {name: lambda j=j: j.rank(groups) for name, j in ways.items()}  # type: ignore[misc]
        results["HTTP"] = compare(calls, number, arguments.repeats)
        process.terminate()

        model = os.path.join(folder, "judge")
        make_tiny_model(model, [*words(), *"ABCDEFGH"], seed=1)
        pairwise = PairwiseJudge(model, dtype="float32", batch_size=number)
        results["pairwise"] = compare(
            {ours: lambda: pairwise.rank(groups), theirs: lambda: verdicts_one_by_one(pairwise, groups)}, number, 1
        )

        listwise = ListwiseJudge(model, dtype="float32", batch_size=2 * number)
        single = ListwiseJudge(model, dtype="float32", batch_size=1)
        single._judge = listwise._judge
        assert torch.equal(listwise.rank(groups).ranks, single.rank(groups).ranks)
        results["listwise"] = compare(
            {ours: lambda: listwise.rank(groups), theirs: lambda: [single.rank([group]) for group in groups]},
            number,
            arguments.repeats,
        )

        torch.manual_seed(0)
        Ranker(Policy(model, dtype="float32")).load().export(os.path.join(folder, "ranker"))
        ranker = PreferenceRanker(os.path.join(folder, "ranker"), dtype="float32", batch_size=number)
        scores = ranker.rank(groups).scores
        assert scores is not None
        torch.testing.assert_close(torch.tensor(scores_one_by_one(ranker, groups)), scores, rtol=1e-4, atol=1e-4)
        results["ranker"] = compare(
            {ours: lambda: ranker.rank(groups), theirs: lambda: scores_one_by_one(ranker, groups)},
            number,
            arguments.repeats,
        )
    report = {
        "what": "milliseconds per group, as orlaif asks and one request at a time",
        "groups": number,
        "answers": arguments.answers,
        "server_delay_ms": 1e3 * DELAY_S,
        "results": results,
        **about(cuda=False),
        "versions": installed("torch", "transformers", "openai"),
    }
    os.makedirs(os.path.dirname(os.path.abspath(arguments.output)), exist_ok=True)
    with open(arguments.output, "w", encoding="utf-8") as file:
        json.dump(report, file, indent=2)
    print("| oracle | together | one request at a time | ratio |\n|---|---|---|---|")
    for name, row in results.items():
        print(
            f"| {name} | {row[ours]['median_ms']:.1f} ms | {row[theirs]['median_ms']:.1f} ms | {row['ratio']:.1f} x |"
        )


if __name__ == "__main__":
    main()
