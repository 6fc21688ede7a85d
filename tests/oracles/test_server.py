"""HTTPJudge against a server that others wrote: ``transformers serve`` with a tiny model, over real HTTP."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from orlaif.demo.tiny import make_tiny_model
from orlaif.openai_client import ChatClient
from orlaif.oracles import HTTPJudge
from tests.oracles.test_http import group

REPLY = ['{"ranking"', ":", '["A"', ",", '"B"]}']


def make_judge_of_two(folder: str) -> None:
    """A model that replies that A is better than B, whatever it is shown: its next token depends on the last alone."""
    make_tiny_model(folder, [*REPLY, "A", "B"], hidden_size=32, num_layers=2)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    ids = processor.tokenizer.convert_tokens_to_ids(["assistant", *REPLY, "<|im_end|>"])
    embedding = model.get_input_embeddings().weight
    head = torch.zeros_like(embedding)
    for last, following in pairwise(ids):
        head[following] += 100 * embedding[last].detach()
    for layer in model.model.language_model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(head)
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Its URL and the name of its model."""
    folder = tmp_path_factory.mktemp("served")
    make_judge_of_two(str(folder))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "transformers"), "serve", str(folder), "--device", "cpu"]
    with open(folder / "log", "w") as output:
        process = subprocess.Popen([*command, "--port", str(port)], stdout=output, stderr=subprocess.STDOUT)
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).read()
                break
            except (urllib.error.URLError, OSError):
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1", str(folder)
    finally:
        process.terminate()
        process.wait(20)


def test_a_server_of_transformers(server: tuple[str, str], tmp_path: Path) -> None:
    """It prefers the first place; one ballot follows it, two cancel it, and the cache asks nothing twice."""
    url, model = server
    groups = [group(f"left {i}", f"right {i}", f"left {i}", id=str(i), height=48) for i in range(3)]
    client = ChatClient(url, model, timeout_s=60.0, max_tokens=8, cache_dir=str(tmp_path / "cache"))
    one = HTTPJudge(client, num_ballots=1)
    ranking = one.rank(groups)
    assert ranking.failures == ()
    assert one.take_counts() == {"requests": 3, "cache_hits": 0, "failures": 0}
    assert all(sorted(row) in ([0, 0, 1], [0, 1, 1]) and row[0] == row[2] for row in ranking.ranks.tolist())
    two = HTTPJudge(client, num_ballots=2)
    assert two.rank(groups).ranks.tolist() == [[0, 0, 0]] * 3
    assert two.take_counts() == {"requests": 3, "cache_hits": 3, "failures": 0}


def test_a_group_of_three_is_no_ranking_of_that_judge(server: tuple[str, str]) -> None:
    """It names A and B; C is missing."""
    url, model = server
    ranking = HTTPJudge(ChatClient(url, model, timeout_s=60.0, max_tokens=8)).rank([group("a", "b", "c", height=48)])
    assert ranking.ranks.tolist() == [[-1, -1, -1]]
    assert "A, B instead of each of A, B, C" in ranking.failures[0].cause
