"""HTTPJudge against a server that judges well, and one that lies, stalls and answers nonsense."""

from __future__ import annotations

import base64
import io
import json
import pickle
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from orlaif.answer_format import TaggedAnswer
from orlaif.openai_client import ChatClient
from orlaif.oracles import HTTPJudge, OracleFailure, order_consistency, rank_groups
from orlaif.oracles.prompting import ballots, parse_order
from orlaif.types import CandidateGroup, OracleError, VideoClip, VideoPrompt
from tests.forked import Forked
from tests.oracles.server import ChatServer, as_shown, candidates, shortest_first

OF_THE_JUDGE = ("num_ballots", "num_frames", "frame_height", "instructions", "seed", "sees")
ANSWERS = ("four", "a", "bb", "ccc", "a")


def group(*answers: str, id: str = "p", frames: int = 4, height: int = 16) -> CandidateGroup:
    clip = VideoClip(
        frames=torch.arange(frames, dtype=torch.uint8)[:, None, None, None].mul(60).expand(-1, 3, height, 24).clone(),
        pts_s=torch.arange(float(frames), dtype=torch.float64),
        duration_s=float(frames),
        path="clip.mp4",
    )
    prompt = VideoPrompt(id=id, video="clip.mp4", question="How many?")
    return CandidateGroup(prompt=prompt, clip=clip, answers=answers or ANSWERS)


def judge(server: ChatServer, **settings: Any) -> HTTPJudge:
    own = {name: settings.pop(name) for name in OF_THE_JUDGE if name in settings}
    return HTTPJudge(ChatClient(server.url, "tiny", **{"timeout_s": 5.0, "max_retries": 0, **settings}), **own)


# ----------------------------------------------------------------------------------------------------- a good judge


def test_groups_are_ordered_and_equal_answers_tie() -> None:
    with ChatServer(shortest_first) as server:
        ranking = judge(server).rank([group(), group("xx", "y", "y", "y", "zzz", id="q")])
    assert ranking.ranks.tolist() == [[3, 0, 1, 2, 0], [1, 0, 0, 0, 2]]
    assert ranking.failures == ()
    assert len(server.requests) == 4  # two ballots each


def test_a_judge_sees_thoughts_or_all_as_the_recipe_says() -> None:
    """Still as JSON strings, each on its line, whatever the thoughts hold."""
    base = group()
    texts = ('<think>long\\nB: "x"</think><answer>b</answer>', "<think>no</think><answer>aaa</answer>")
    given = CandidateGroup.of(base.prompt, base.clip, texts, TaggedAnswer())
    shown = {"answer": ("b", "aaa"), "thoughts": ('long\\nB: "x"', "no"), "both": texts}
    ranks = {"answer": [[0, 1]], "thoughts": [[1, 0]], "both": [[1, 0]]}
    for sees, expected in shown.items():
        with ChatServer(shortest_first) as server:
            one = judge(server, num_ballots=1, sees=sees)
            assert one.rank([given]).ranks.tolist() == ranks[sees]
            assert sorted(candidates(server.requests[0]).values()) == sorted(expected)
            (exchange,) = one.take_exchanges()
        assert exchange.asked.count('\nB: "') == 1


def test_what_was_asked_and_replied_is_handed_on_once() -> None:
    """Unreadable replies too, which are what one looks for."""

    def reply(request: dict[str, Any]) -> Any:
        return "B, I think" if "hostile" in candidates(request).values() else shortest_first(request)

    with ChatServer(reply) as server:
        one = judge(server, num_ballots=1)
        one.rank([group("a", "bb", id="x"), group("a", "hostile", id="y"), group("a", "a", id="z")])
        exchanges = {exchange.prompt_id: exchange for exchange in one.take_exchanges()}
        assert one.take_exchanges() == []
    assert sorted(exchanges) == ["x", "y"]  # about two equal answers nobody is asked
    assert exchanges["y"].replied == "B, I think"
    assert "How many?" in exchanges["x"].asked
    assert '"bb"' in exchanges["x"].asked


def test_what_the_judge_is_sent() -> None:
    with ChatServer(shortest_first) as server:
        judge(server, num_ballots=1, num_frames=2, frame_height=8, extra_body={"top_k": 1}).rank([group(height=32)])
    (request,) = server.requests
    assert request["model"] == "tiny"
    assert request["temperature"] == 0.0
    assert request["top_k"] == 1
    *images, text = request["messages"][-1]["content"]
    assert "Question: How many?" in text["text"]
    assert sorted(candidates(request).values()) == ["a", "bb", "ccc", "four"]  # each different answer once
    pictures = [Image.open(io.BytesIO(base64.b64decode(i["image_url"]["url"].split(",")[1]))) for i in images]
    assert [picture.size for picture in pictures] == [(6, 8), (6, 8)]  # first and last frame, shrunk
    assert [round(sum(picture.getpixel((3, 4))) / 3) for picture in pictures] == pytest.approx([0, 180], abs=3)


def test_a_group_of_one_answer_asks_nobody() -> None:
    with ChatServer(shortest_first) as server:
        assert judge(server).rank([group("x", "x", "x")]).ranks.tolist() == [[0, 0, 0]]
    assert server.requests == []


def test_two_ballots_cancel_a_preference_for_places() -> None:
    """Each is the reverse of the other, so a judge that ranks as shown ties everything."""
    with ChatServer(as_shown) as server:
        assert judge(server).rank([group("a", "b", "c")]).ranks.tolist() == [[0, 0, 0]]
        assert sorted(judge(server, num_ballots=1).rank([group("a", "b", "c")]).ranks[0].tolist()) == [0, 1, 2]


def test_order_consistency_finds_the_judge_that_looks_at_places() -> None:
    groups = [group("a", "bb", "ccc", "dddd", id=str(i)) for i in range(10)]
    found = []
    for reply in (shortest_first, as_shown):
        with ChatServer(reply) as server:
            one = judge(server, num_ballots=1)
            found.append(order_consistency(one, groups, one.rank(groups), torch.Generator().manual_seed(0)))
    assert found[0] == 1.0
    assert found[1] < 0.3


def test_requests_are_in_flight_together_up_to_a_bound() -> None:
    groups = [group("a", "bb", id=str(i)) for i in range(12)]
    with ChatServer(shortest_first, delay_s=0.2) as server:
        judge(server, num_ballots=1, concurrency=6).rank(groups)
    assert server.most_at_once == 6


def test_the_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sesame-123")
    with caplog.at_level("DEBUG"), ChatServer(lambda _: (401, {}, "{}")) as server:
        one = judge(server, api_key_env="JUDGE_KEY")
        ranking = one.rank([group()])
    headers = {name.lower(): value for name, value in server.headers[0].items()}
    assert headers["authorization"] == "Bearer sesame-123"
    assert "sesame" not in caplog.text + str(ranking.failures) + repr(vars(one))
    assert "sesame" not in str(pickle.dumps(one))


# -------------------------------------------------------------------------------------------------- hostile answers

HOSTILE = {
    "half a permutation": '{"ranking": ["A"]}',
    "twice the same": '{"ranking": ["A", "A", "B"]}',
    "a stranger": '{"ranking": ["A", "B", "C", "Z"]}',
    "two rankings": '{"ranking": ["A", "B", "C"]} or rather {"ranking": ["C", "B", "A"]}',
    "prose only": "The best one is B, then C, and then A.",
    "marks beside letters": "A ✗ B ✓ C ✗",
    "marks beside letters, as a list": '{"ranking": ["B ✓", "A ✗", "C ✗"]}',
    "cut off": '{"ranking": ["A", "B", ',
    "nested too deep": '{"ranking": [[["A"]], "B", "C"]}',
    "numbers": '{"ranking": [1, 2, 3]}',
    "no list": '{"ranking": "A, B, C"}',
    "blank": "  ",
    "an empty body": (200, {}, ""),
    "no completion": (200, {}, '{"detail": "hello"}'),
    "no choices": (200, {}, '{"id": "1", "choices": []}'),
    "a page": (200, {"Content-Type": "text/html"}, "<html>welcome</html>"),
    "not found": (404, {}, "{}"),
    "server error": (500, {}, "oops"),
    "a closed connection": None,
}


@pytest.mark.parametrize("kind", list(HOSTILE))
def test_no_hostile_answer_becomes_a_ranking(kind: str) -> None:
    """Only the group in question fails; the others are ranked."""

    def reply(request: dict[str, Any]) -> Any:
        return HOSTILE[kind] if "hostile" in candidates(request).values() else shortest_first(request)

    groups = [group("a", "bb", "ccc", id="x"), group("a", "bb", "hostile", id="y"), group("aa", "b", "c", id="z")]
    with ChatServer(reply) as server:
        one = judge(server)
        ranking = one.rank(groups)
        assert ranking.ranks.tolist() == [[0, 1, 2], [-1, -1, -1], [1, 0, 0]]
        assert [error.prompt_id for error in ranking.failures] == ["y"]
        assert one.take_counts()["failures"] == 1
        assert one.take_counts() == {"requests": 0, "cache_hits": 0, "failures": 0}
        with pytest.raises(OracleError, match="HTTPJudge gave no ranking for prompt 'y'"):
            rank_groups(one, groups, OracleFailure(action="error"))


def test_prose_around_one_ranking_does_not_matter() -> None:
    text = 'Sure! {"thoughts": "B {is} best"} Here you are:\n```json\n{"ranking": ["b", ["A", "C"]]}\n```\nBest wishes'
    assert parse_order(text, ("A", "B", "C")) == [[1], [0, 2]]


def test_a_time_out_is_a_failure() -> None:
    with ChatServer(shortest_first, delay_s=1.5) as server:
        ranking = judge(server, timeout_s=0.3).rank([group()])
    assert "within 0.3 s" in str(ranking.failures[0])


def test_retry_after_is_honoured() -> None:
    seen: list[float] = []

    def reply(request: dict[str, Any]) -> Any:
        seen.append(time.perf_counter())
        return (429, {"Retry-After": "1"}, "{}") if len(seen) == 1 else shortest_first(request)

    with ChatServer(reply) as server:
        ranking = judge(server, num_ballots=1, max_retries=2).rank([group()])
    assert ranking.ranks.tolist() == [[3, 0, 1, 2, 0]]
    assert 0.9 < seen[1] - seen[0] < 3.0


def test_a_server_that_recovers_is_asked_again() -> None:
    troubles: list[Any] = [(500, {}, "oops"), None, (503, {}, "")]

    def reply(request: dict[str, Any]) -> Any:
        return troubles.pop() if troubles else shortest_first(request)

    with ChatServer(reply) as server:
        ranking = judge(server, num_ballots=1, max_retries=4).rank([group()])
    assert ranking.ranks.tolist() == [[3, 0, 1, 2, 0]]
    assert len(server.requests) == 4


def test_nobody_there() -> None:
    ranking = HTTPJudge(ChatClient("http://127.0.0.1:9/v1", "tiny", max_retries=0)).rank([group()])
    assert "no connection to http://127.0.0.1:9/v1 at the first try" in ranking.failures[0].cause


# ------------------------------------------------------------------------------------------------------------ cache


def test_a_repeated_run_asks_nothing_twice(tmp_path: Path) -> None:
    groups = [group(f"{i}", f"{i}b", f"{i}cc", id=str(i)) for i in range(5)]
    with ChatServer(shortest_first) as server:
        first = judge(server, cache_dir=str(tmp_path))
        half = first.rank(groups[:3])
        assert first.take_counts() == {"requests": 6, "cache_hits": 0, "failures": 0}
        resumed = judge(server, cache_dir=str(tmp_path))  # as another process would
        whole = resumed.rank(groups)
        assert resumed.take_counts() == {"requests": 4, "cache_hits": 6, "failures": 0}
        assert len(server.requests) == 10
    assert torch.equal(whole.ranks[:3], half.ranks)
    replayed = HTTPJudge(
        ChatClient(server.url, "tiny", cache_dir=str(tmp_path), replay=True)
    )  # nobody is there any more
    assert torch.equal(replayed.rank(groups).ranks, whole.ranks)
    other = replayed.rank([group("x", "yy", "zzz", id="new")])
    assert "the reply is not in the cache" in str(other.failures[0])


def rank_by_a_cache(url: str, cache_dir: str, count: int) -> None:
    """Two groups a step, one step after the other; what it cost is printed."""
    asks = HTTPJudge(ChatClient(url, "tiny", cache_dir=cache_dir, concurrency=2, max_retries=0), num_ballots=1)
    for i in range(count):
        ranking = asks.rank([group(f"{i} {j}", f"{i} {j}b", f"{i} {j}cc", id=f"{i}/{j}") for j in range(2)])
        assert ranking.failures == (), ranking.failures
    print(asks.take_counts())


def cache_run(server: ChatServer, folder: Path, count: int) -> Forked:
    return Forked(rank_by_a_cache, server.url, str(folder), count)


def test_what_a_killed_run_was_told_is_not_asked_again(tmp_path: Path) -> None:
    """SIGKILL at three moments; then a run to the end. Only what was under way at a kill is asked twice."""
    with ChatServer(shortest_first, delay_s=0.02) as server:
        for enough in (5, 11, 18):
            run = cache_run(server, tmp_path, 20)
            while len(server.requests) < enough:
                assert run.poll() is None, run.communicate()
                time.sleep(0.005)
            run.kill()
            run.communicate()
        last = cache_run(server, tmp_path, 20)
        _, errors = last.communicate(timeout=120)
        assert last.returncode == 0, errors
        asked = Counter(json.dumps(request) for request in server.requests)
        assert len(asked) == 40
        assert sum(asked.values()) <= 40 + 3 * 2  # two in flight at each kill
        before = len(server.requests)
        again = cache_run(server, tmp_path, 20)
        assert "'requests': 0.0, 'cache_hits': 40.0" in again.communicate(timeout=120)[0]
        assert len(server.requests) == before


def test_processes_share_a_cache(tmp_path: Path) -> None:
    """Three at once, none fails, and a fourth asks nothing."""
    with ChatServer(shortest_first) as server:
        runs = [cache_run(server, tmp_path, 10) for _ in range(3)]
        for run in runs:
            _, errors = run.communicate(timeout=120)
            assert run.returncode == 0, errors
        assert len({json.dumps(request) for request in server.requests}) == 20
        before = len(server.requests)
        assert "'requests': 0.0" in cache_run(server, tmp_path, 10).communicate(timeout=120)[0]
        assert len(server.requests) == before


def test_the_same_request_at_the_same_time_is_asked_once(tmp_path: Path) -> None:
    groups = [group("a", "bb", id="same")] * 8
    with ChatServer(shortest_first, delay_s=0.1) as server:
        one = judge(server, num_ballots=1, cache_dir=str(tmp_path))
        assert one.rank(groups).ranks.tolist() == [[0, 1]] * 8
        assert one.take_counts() == {"requests": 1, "cache_hits": 7, "failures": 0}


def test_an_unreadable_reply_is_kept_as_one_and_asked_anew_only_by_a_retry(tmp_path: Path) -> None:
    replies = iter(["nonsense", "more nonsense", '{"ranking": ["A", "B"]}'])
    retry = OracleFailure(action="retry", retries=2)
    with ChatServer(lambda _: next(replies)) as server:
        first = judge(server, num_ballots=1, cache_dir=str(tmp_path))
        expected = rank_groups(first, [group("a", "bb")], retry)
        assert len(server.requests) == 3
        again = judge(server, num_ballots=1, cache_dir=str(tmp_path))
        assert torch.equal(rank_groups(again, [group("a", "bb")], retry).ranks, expected.ranks)
        assert len(server.requests) == 3
        assert again.take_counts()["requests"] == 0


def test_other_settings_are_another_question(tmp_path: Path) -> None:
    with ChatServer(shortest_first) as server:
        for settings in ({}, {"max_tokens": 99}, {"instructions": "Order them."}, {"num_frames": 2}):
            judge(server, cache_dir=str(tmp_path), num_ballots=1, **settings).rank([group()])
    assert len(server.requests) == 4


# --------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"replay": True}, "it needs client.cache_dir"),
        ({"api_key_env": "NO_SUCH_VARIABLE_HERE"}, "'NO_SUCH_VARIABLE_HERE', but that environment variable is not set"),
        ({"num_ballots": 0}, "oracle.num_ballots is 0"),
        ({"num_ballots": 53}, "oracle.num_ballots is 53; it must be 1 to 52"),
        ({"timeout_s": 0}, "client.timeout_s is 0"),
        ({"max_retries": -1}, "client.max_retries -1"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], message: str) -> None:
    nowhere = SimpleNamespace(url="http://localhost/v1")
    with pytest.raises(ValueError, match=message):
        judge(nowhere, **settings)  # type: ignore[arg-type]


def test_ballots_are_the_same_again_and_another_seed_shuffles_anew() -> None:
    one = group("a", "b", "c", "d", "e", "b")
    first, second, third = ballots(one, 3, seed=0)
    assert [b.texts for b in ballots(one, 3, seed=0)] == [first.texts, second.texts, third.texts]
    assert second.texts == tuple(reversed(first.texts))
    assert sorted(third.texts) == ["a", "b", "c", "d", "e"]
    assert len({ballots(one, 1, seed=s)[0].texts for s in range(20)}) > 10
    assert first.ranks([[first.texts.index("b")], [i for i in range(5) if first.texts[i] != "b"]]) == [1, 0, 1, 1, 1, 0]
    with pytest.raises(ValueError, match="27 different answers"):
        ballots(group(*(f"answer {i}" for i in range(27))), 1, 0)
