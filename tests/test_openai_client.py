"""The client of judges and graders: what it sends, and what it says of a server that does not answer."""

from __future__ import annotations

import json
import socket
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from orlaif.evaluation.grader import ChatGrader, Ungraded, read_object
from orlaif.openai_client import ChatClient, UnansweredError, UnreachableError
from orlaif.oracles import HTTPJudge
from orlaif.oracles.prompting import parse_order
from orlaif.reply_cache import FILE, ReplyCache, ReplyCacheError
from tests.oracles.server import ChatServer, shortest_first
from tests.oracles.test_http import group


def ask(server: str, **settings: Any) -> str:
    client = ChatClient(server, "m", **{"max_retries": 0, **settings})
    return client.run(client.ask("Be brief.", "hello", str))


def nobody() -> str:
    """The address of a server that is not there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"


# --------------------------------------------------------------------------------------------------- what is sent


@pytest.mark.parametrize(
    ("settings", "sent"),
    [
        ({}, {"max_tokens": 256, "temperature": 0.0}),
        ({"max_tokens": None, "temperature": None}, {}),
        ({"max_completion_tokens": 99, "temperature": 1.0}, {"max_completion_tokens": 99, "temperature": 1.0}),
        ({"extra_body": {"max_tokens": None, "temperature": None, "top_k": 1}}, {"top_k": 1}),
        (
            {"extra_body": {"max_completion_tokens": 9, "temperature": 1}},
            {"max_completion_tokens": 9, "temperature": 1},
        ),
        ({"max_tokens": 5, "extra_body": {"max_tokens": 7}}, {"max_tokens": 7, "temperature": 0.0}),
    ],
)
def test_the_fields_of_a_request(settings: dict[str, Any], sent: dict[str, Any]) -> None:
    """null leaves a field out, extra_body replaces what the client would send, and one limit of length is sent."""
    with ChatServer(lambda request: "hi") as server:
        assert ask(server.url, **settings) == "hi"
    (request,) = server.requests
    assert {name: value for name, value in request.items() if name not in ("model", "messages")} == sent
    assert [message["role"] for message in request["messages"]] == ["system", "user"]


def strict(request: dict[str, Any]) -> Any:
    """As newer services do: neither max_tokens nor a temperature of one's own."""
    for name in ("max_tokens", "temperature"):
        if name in request:
            return 400, {}, json.dumps({"error": {"message": f"Unsupported parameter: '{name}'", "param": name}})
    return shortest_first(request)


def test_a_service_that_refuses_fields_says_which_and_has_settings() -> None:
    with ChatServer(strict) as server:
        refused = HTTPJudge(ChatClient(server.url, "m")).rank([group()]).failures[0].cause
        assert "answered 400: Unsupported parameter: 'max_tokens' (set client.max_completion_tokens" in refused
        half = HTTPJudge(ChatClient(server.url, "m", max_completion_tokens=64)).rank([group()]).failures[0].cause
        assert "answered 400: Unsupported parameter: 'temperature' (set client.temperature: null)" in half
        client = ChatClient(server.url, "m", max_completion_tokens=64, temperature=None)
        assert HTTPJudge(client).rank([group()]).ranks.tolist() == [[3, 0, 1, 2, 0]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"extra_body": {"messages": []}}, "client.extra_body has messages"),
        ({"max_tokens": 0}, "client.max_tokens is 0"),
        ({"max_completion_tokens": 0}, "client.max_completion_tokens is 0"),
        ({"base_url": "localhost:8000/v1"}, "client.base_url is 'localhost:8000/v1'; it must begin with http"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChatClient(**{"base_url": "http://localhost/v1", "model": "m", **settings})


# ------------------------------------------------------------------------------------------- what is said of servers


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
@pytest.mark.parametrize(
    "body",
    [
        '{"error": {"message": "the server says no", "type": "x"}}',
        '{"error": "the server says no"}',
        '{"object": "error", "message": "the server says no", "code": 1}',
        '{"detail": "the server says no"}',
        '{"detail": [{"loc": ["body"], "msg": "the server says no"}]}',
        "the server says no",
        "<html><p>the server says no</p></html>",
    ],
)
def test_the_words_of_a_server_that_refuses(status: int, body: str) -> None:
    with ChatServer(lambda request: (status, {}, body)) as server:
        with pytest.raises(UnansweredError, match=f"answered {status}: .*the server says no") as raised:
            ask(server.url)
        assert server.url in str(raised.value)
        assert not isinstance(raised.value, UnreachableError)


def test_a_key_that_the_server_repeats_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sesame-123")
    wrong = json.dumps({"error": {"message": "Incorrect API key provided: sesame-123"}})
    with (
        ChatServer(lambda request: (401, {}, wrong)) as server,
        pytest.raises(UnansweredError, match=r"Incorrect API key provided: \[key\]") as raised,
    ):
        ask(server.url, api_key_env="JUDGE_KEY")
    assert "sesame" not in str(raised.value)


def test_a_server_that_is_down_is_an_error_of_the_connection() -> None:
    address = nobody()
    with pytest.raises(ConnectionError, match=f"no connection to {address} at the first try: "):
        ask(address)
    with pytest.raises(ConnectionError, match="after 2 tries"):
        ask(address, max_retries=1)
    cause = HTTPJudge(ChatClient(address, "m", max_retries=0)).rank([group()]).failures[0].cause
    assert f"no connection to {address}" in cause
    assert "read" not in cause


def test_an_empty_reply_says_how_it_ended() -> None:
    message = {"role": "assistant", "content": ""}
    body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
    body["choices"] = [{"index": 0, "message": message, "finish_reason": "length"}]  # type: ignore[assignment]
    with (
        ChatServer(lambda request: (200, {}, json.dumps(body))) as server,
        pytest.raises(UnansweredError, match=r"empty reply .*finish_reason 'length', client.max_tokens 256"),
    ):
        ask(server.url)


@pytest.mark.parametrize("reply", ['{"a":' * 50_000, "[" * 50_000, '{"ranking": ["A"], "ranking": ["B"]}', "{" * 9_000])
def test_a_reply_that_is_no_object_is_unreadable_and_no_crash(reply: str) -> None:
    with pytest.raises(ValueError):
        parse_order(reply, ("A",))
    if "ranking" not in reply:
        with pytest.raises(ValueError):
            read_object(reply)
        with ChatServer(lambda request: (200, {}, reply)) as server, pytest.raises(UnansweredError):
            ask(server.url)


def test_what_a_judge_thinks_aloud_is_not_what_it_says() -> None:
    """An order that it considers is no second ranking; thoughts that were cut off say nothing."""
    assert parse_order('<think>{"ranking": ["B", "A"]}?</think>\n{"ranking": ["A", "B"]}', ("A", "B")) == [[0], [1]]
    assert read_object('<think>{"score": 1} or so</think> {"score": 4}') == {"score": 4}
    with pytest.raises(ValueError, match="0 rankings"):
        parse_order('<think>maybe {"ranking": ["B", "A"]}', ("A", "B"))


# ------------------------------------------------------------------------------------------------------ graders


def verdict(reply: str) -> dict[str, Any]:
    if reply != "good":
        raise ValueError(f"{reply!r} is no verdict")
    return {"said": reply}


def questions(number: int) -> list[tuple[str, str, Any]]:
    return [("Grade.", str(i), verdict) for i in range(number)]


def test_a_grader_that_is_down_has_no_results() -> None:
    grader = ChatGrader(ChatClient(nobody(), "m", max_retries=0))
    with pytest.raises(ConnectionError, match=r"graded too few of 30 answers: .* no connection to http"):
        grader.ask_all(questions(30))


def test_a_grader_that_refuses_quotes_the_server() -> None:
    with ChatServer(lambda request: (401, {}, '{"error": {"message": "who are you?"}}')) as server:
        grader = ChatGrader(ChatClient(server.url, "m", max_retries=0, concurrency=4))
        with pytest.raises(
            ValueError, match=r"20 requests brought no reply and 0 replies .*answered 401: who are you?"
        ):
            grader.ask_all(questions(20))


def test_a_grader_whose_replies_say_nothing_has_no_results() -> None:
    with ChatServer(lambda request: "well") as server:
        grader = ChatGrader(ChatClient(server.url, "m", max_retries=0, concurrency=4))
        with pytest.raises(ValueError, match=r"0 requests brought no reply and 20 replies could not be read.*'well'"):
            grader.ask_all(questions(20))


def test_a_few_answers_without_a_grade_are_told_apart() -> None:
    def reply(request: dict[str, Any]) -> Any:
        return {"3": "well", "7": (500, {}, "oops")}.get(request["messages"][-1]["content"], "good")

    with ChatServer(reply) as server:
        graded = ChatGrader(ChatClient(server.url, "m", max_retries=0, concurrency=4)).ask_all(questions(20))
    without = {i: one for i, one in enumerate(graded) if isinstance(one, Ungraded)}
    assert {i: one.ungraded for i, one in without.items()} == {3: "unreadable", 7: "unanswered"}
    assert "answered 500: oops" in without[7].cause


def test_grades_that_were_given_are_kept_while_the_server_is_away(tmp_path: Path) -> None:
    """It dies after five replies; the next grading asks for the rest alone."""
    alive: list[int] = []

    def reply(request: dict[str, Any]) -> Any:
        alive.append(1)
        return "good" if len(alive) <= 5 or len(alive) > 100 else None

    with ChatServer(reply) as server:
        settings = {"max_retries": 0, "cache_dir": str(tmp_path), "concurrency": 1}
        with pytest.raises(ConnectionError):
            ChatGrader(ChatClient(server.url, "m", **settings)).ask_all(questions(20))
        alive.extend([1] * 100)
        client = ChatClient(server.url, "m", **settings)
        assert ChatGrader(client).ask_all(questions(20)) == [{"said": "good"}] * 20
    assert client.counts == {"cache_hits": 5, "requests": 15}


# ------------------------------------------------------------------------------------------------------ the cache


def test_replies_are_texts_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    cache = ReplyCache(str(tmp_path / "new"))
    assert cache.replies("q") == []
    for place, text in enumerate(["one", "zwei 红色", "half \ud83d", "nul \0"]):
        cache.keep("q", place, text)
    cache.keep("q", 0, "another process was first")
    assert ReplyCache(str(tmp_path / "new")).replies("q") == ["one", "zwei 红色", "half \ud83d", "nul \0"]
    with sqlite3.connect(tmp_path / "new" / FILE) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert {type(row[0]) for row in connection.execute("SELECT reply FROM replies")} == {str}


def test_a_folder_of_the_older_cache_is_refused(tmp_path: Path) -> None:
    """It holds pickles, which would be executed."""
    (tmp_path / "cache.db").write_bytes(b"SQLite format 3\0")
    with pytest.raises(ValueError, match=r"client.cache_dir is .*diskcache.* name another folder, or delete cache.db"):
        ChatClient("http://localhost/v1", "m", cache_dir=str(tmp_path))


def test_a_cache_that_cannot_be_read_stops_the_run(tmp_path: Path) -> None:
    """It is no unreadable reply, which would cost its group alone."""
    (tmp_path / FILE).write_bytes(b"no database at all" * 100)
    with ChatServer(shortest_first) as server:
        judge = HTTPJudge(ChatClient(server.url, "m", cache_dir=str(tmp_path)))
        with pytest.raises(ReplyCacheError, match=f"client.cache_dir: .*{FILE}: file is not a database"):
            judge.rank([group()])
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="a file; it must be a folder"):
        ChatClient("http://localhost/v1", "m", cache_dir=str(tmp_path / "file"))
