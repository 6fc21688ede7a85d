"""DecisionJudge against a server that says how sure it is, and one that does not."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from orlaif.openai_client import ChatClient
from orlaif.oracles import DecisionJudge, HTTPJudge
from orlaif.oracles.decision import Template
from orlaif.types import CandidateGroup, VideoPrompt
from tests.oracles.server import ChatServer, candidates, short_is_true, shortest_first
from tests.oracles.test_http import group

STATE = "True: {reference}\nSaid: {answer}"


def judge(server: ChatServer, state: str = STATE, **settings: Any) -> DecisionJudge:
    client = ChatClient(server.url, "tiny", timeout_s=5.0, max_retries=0, **settings)
    return DecisionJudge(client, state, "Do both say the same?")


def about(*answers: str, reference: str = "four") -> CandidateGroup:
    prompt = VideoPrompt(id="p", video="clip.mp4", question="How many?", answer=reference)
    return CandidateGroup(prompt=prompt, clip=group().clip, answers=answers)


def test_answers_are_ordered_by_how_surely_it_says_yes() -> None:
    with ChatServer(short_is_true) as server:
        one = judge(server)
        ranking = one.rank([about("ccc", "a", "bb", "a")])
    assert ranking.ranks.tolist() == [[2, 0, 1, 0]]
    assert ranking.scores is not None
    assert ranking.scores[0].tolist() == pytest.approx([1 / 10, 1 / 8, 1 / 9, 1 / 8])
    assert one.take_counts() == {"requests": 3.0, "cache_hits": 0.0, "failures": 0.0}  # equal answers are asked once
    assert sorted(exchange.replied for exchange in one.take_exchanges()) == [
        "yes: 0.1000",
        "yes: 0.1111",
        "yes: 0.1250",
    ]


def test_what_it_is_sent() -> None:
    """No field of sampling, and each text on one line; a field's name in an answer is text."""
    with ChatServer(short_is_true) as server:
        text = "{reference}\nSaid: yes"
        assert judge(server).rank([about(text, text)]).ranks.tolist() == [[0, 0]]
    assert server.requests == [
        {
            "model": "tiny",
            "state": "True: four\nSaid: {reference} Said: yes",
            "questions": {"yes": {"type": "noul", "instructions": "Do both say the same?"}},
        }
    ]


def test_a_repeated_run_asks_nothing_twice(tmp_path: Path) -> None:
    with ChatServer(short_is_true) as server:
        judge(server, cache_dir=str(tmp_path)).rank([about("a", "bb")])
        again = judge(server, cache_dir=str(tmp_path), replay=True)
        assert again.rank([about("a", "bb")]).ranks.tolist() == [[0, 1]]
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("reply", "cause"),
    [
        ((404, {}, '{"detail": "Not Found"}'), "answered 404: Not Found"),
        ((200, {}, '{"answers": {"yes": {"type": "score"}}}'), "/systemone did not reply with a probability"),
        ((200, {}, "[]"), "/systemone did not reply with a probability"),
        ((200, {}, "{"), "/v1 did not reply with JSON"),
    ],
)
def test_a_server_that_has_no_such_endpoint_gives_no_ranking(reply: Any, cause: str) -> None:
    with ChatServer(lambda _: reply) as server:
        ranking = judge(server).rank([about("a", "bb")])
    assert ranking.ranks.tolist() == [[-1, -1]]
    assert cause in str(ranking.failures[0])


@pytest.mark.parametrize("said", ["NaN", '"nan"', "Infinity", "1.7", "-3", "true", "1" + "0" * 400])
def test_what_is_no_probability_fails_its_group_and_is_not_kept(said: str, tmp_path: Path) -> None:
    with ChatServer(lambda _: (200, {}, f'{{"answers": {{"yes": {{"noul": {said}}}}}}}')) as server:
        one = judge(server, cache_dir=str(tmp_path))
        ranking = one.rank([about("a", "bb")])
        assert ranking.ranks.tolist() == [[-1, -1]]
        assert "is no probability; it must be a number from 0 to 1" in ranking.failures[0].cause
        assert one.take_counts()["failures"] == 1.0
        server.reply = short_is_true
        assert one.rank([about("a", "bb")]).ranks.tolist() == [[0, 1]]  # asked anew


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("S: {referense} A: {answer}", r"there is no field \{referense\}; did you mean \{reference\}\?; it may have"),
        (
            "{answer} {reference",
            r"oracle.state is '\{answer\} \{reference': expected '\}' before end of string; it may",
        ),
        ("{answer!r}", r"there is no field \{answer!r\}; did you mean \{answer\}\?"),
        ("{answer} {}", r"there is no field \{\}; it may have \{question\}, \{answer\}, \{reference\}, and a brace"),
        ("{answer} }", "Single '}' encountered"),
    ],
)
def test_a_field_that_there_is_not_is_refused(state: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecisionJudge(ChatClient("http://localhost/v1", "m"), state, "Same?")
    literal = Template.of('{{"said": "{answer}"}}')
    assert literal.filled(answer="{question}\n x", question="", reference="") == '{"said": "{question} x"}'


def test_mistakes_are_named() -> None:
    client = ChatClient("http://localhost/v1", "m")
    with pytest.raises(ValueError, match=r"oracle.state is 'True: x'; it must have \{answer\}"):
        DecisionJudge(client, "True: x", "Same?")
    with pytest.raises(ValueError, match=r"oracle.question is empty"):
        DecisionJudge(client, "{answer}", " ")
    lacking = VideoPrompt(id="p", video="clip.mp4", question="How many?")
    assert DecisionJudge(client, STATE, "Same?").lacks(lacking) == "a reference answer"
    assert DecisionJudge(client, "{answer}", "Short?").lacks(lacking) is None


def test_nothing_is_left_in_flight_when_a_group_has_failed() -> None:
    """A slow ballot beside one that cannot be read is waited for; the next step's requests would stand behind it."""
    first, done = threading.Lock(), []

    def reply(request: dict[str, Any]) -> Any:
        if first.acquire(blocking=False):
            return "nonsense"
        time.sleep(0.4)
        done.append(candidates(request))
        return shortest_first(request)

    with ChatServer(reply) as server:
        one = HTTPJudge(ChatClient(server.url, "tiny", timeout_s=30.0, max_retries=0))
        assert one.rank([group("a", "bb")]).ranks.tolist() == [[-1, -1]]
        assert len(done) == 1
        assert len(one.take_exchanges()) == 2


def test_a_refused_model_name_is_said_to_be_the_client_s() -> None:
    """As ``transformers serve`` refuses every name but the one that it was started with."""
    refusal = json.dumps({"detail": "Server is pinned to '/models/a'; requested 'tiny'."})
    with ChatServer(lambda _: (400, {}, refusal)) as server:
        ranking = HTTPJudge(ChatClient(server.url, "tiny", max_retries=0)).rank([group("a", "bb")])
    assert "requested 'tiny'. (client.model)" in str(ranking.failures[0])
    assert torch.equal(ranking.ranks, torch.tensor([[-1, -1]]))
