"""Rubric judges: sums by hand, what decided, and the two kinds of judge that are asked."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch

from orlaif.openai_client import ChatClient
from orlaif.oracles import HTTPJudge, Judge, ListwiseJudge, OracleFailure, Rubric, RubricJudge, rank_groups
from orlaif.oracles.prompting import inquiry, parse_verdicts
from orlaif.oracles.rubric import deciding
from orlaif.types import CandidateGroup, OracleError
from tests.oracles.hostile import HOSTILE
from tests.oracles.server import ChatServer
from tests.oracles.test_http import group
from tests.oracles.test_local import groups, judge_model, sharpened  # noqa: F401 (fixtures)

RUBRICS = [
    Rubric(name="short", question="Is it short?", weight=2),
    Rubric(name="b", question="Is there a b?"),
    Rubric(name="c", question="Is there a c?", weight=-1),
]


def candidate(request: dict[str, Any]) -> str:
    """The one candidate that a judge was asked about: one line between two others."""
    text = request["messages"][-1]["content"][-1]["text"]
    (line,) = re.findall(r"\nCandidate, .*:\n(.*)\n\nAbout the candidate:\n", text)
    return json.loads(line)


def honest(request: dict[str, Any]) -> str:
    text = candidate(request)
    verdicts = [len(text) < 3, "b" in text, "c" in text]
    return json.dumps({"verdicts": ["yes" if one else "no" for one in verdicts]})


def rubric_judge(server: ChatServer, rubrics: list[Rubric] = RUBRICS, **settings: Any) -> RubricJudge:
    client = ChatClient(server.url, "tiny", timeout_s=5.0, max_retries=0, **settings)
    return RubricJudge(HTTPJudge(client, num_frames=2), rubrics)


def test_weighted_sums_make_ranks_and_equal_sums_tie() -> None:
    """four: 0; a: 2; bb: 3; ccc: -1; bc: 2 + 1 - 1 = 2; and a group of one answer is not asked about."""
    with ChatServer(honest) as server:
        judge = rubric_judge(server)
        ranking = judge.rank([group("four", "a", "bb", "ccc", "bc"), group("x", "x", "x", "x", "x", id="q")])
    assert ranking.ranks.tolist() == [[2, 1, 0, 3, 1], [0] * 5]
    assert ranking.scores is not None
    assert ranking.scores[0].tolist() == [0.0, 2.0, 3.0, -1.0, 2.0]
    assert bool(ranking.scores[1].isnan().all())  # nobody has said what it is worth
    assert len(server.requests) == 5
    counts = judge.take_counts()
    assert counts["requests"] == 5.0
    # Each of the three decides the first group, and none the second.
    assert [counts[f"rubric/{name}/decided"] for name in ("short", "b", "c")] == [0.5, 0.5, 0.5]
    assert [counts[f"rubric/{name}/yes"] for name in ("short", "b", "c")] == pytest.approx([0.6, 0.4, 0.4])
    assert "Is there a b?" in judge.take_exchanges()[0].asked
    assert not any("rubric" in name for name in judge.take_counts())


def test_what_decided_by_hand() -> None:
    """Weights 2, 1, 1: the first orders alone; the second breaks a tie; the third says the same of all."""
    verdicts = torch.tensor([[1.0, 1, 1], [1, 0, 1], [0, 0, 1]], dtype=torch.float64)
    weights = torch.tensor([2.0, 1, 1], dtype=torch.float64)
    assert deciding(verdicts, weights).tolist() == [True, True, False]
    agreeing = torch.tensor([[1.0, 1], [0, 0]], dtype=torch.float64)  # either would do
    assert deciding(agreeing, torch.ones(2, dtype=torch.float64)).tolist() == [False, False]
    assert deciding(agreeing[:, :1], torch.ones(1, dtype=torch.float64)).tolist() == [True]
    # 0.1 + 0.2 and 0.3 are a tie, with which the third decides
    sums = torch.tensor([[1.0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    assert deciding(sums, torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)).tolist() == [True, True, True]


def test_replies_come_from_the_cache(tmp_path: Any) -> None:
    with ChatServer(honest) as server:
        first = rubric_judge(server, cache_dir=str(tmp_path)).rank([group("a", "bb", "ccc")])
        again = rubric_judge(server, cache_dir=str(tmp_path))
        assert again.rank([group("a", "bb", "ccc")]).ranks.tolist() == first.ranks.tolist()
    assert len(server.requests) == 3
    assert again.take_counts()["cache_hits"] == 3.0


def test_a_reply_that_cannot_be_read_fails_its_group_only() -> None:
    def unsure(request: dict[str, Any]) -> str:
        return "perhaps" if candidate(request) == "odd" else honest(request)

    with ChatServer(unsure) as server:
        judge = rubric_judge(server)
        ranking = rank_groups(
            judge, [group("odd", "a"), group("a", "ccc", id="q")], OracleFailure(action="drop_group", retries=0)
        )
    assert ranking.ranks.tolist() == [[-1, -1], [0, 1]]
    assert ranking.scores is not None
    assert ranking.scores.isnan().tolist() == [[True, True], [False, False]]
    assert "0 verdicts in the reply 'perhaps'" in ranking.failures[0].cause
    assert judge.take_counts()["failures"] == 1.0


@pytest.mark.parametrize("kind", list(HOSTILE))
def test_a_candidate_is_one_quoted_line(kind: str) -> None:
    lines = inquiry("what ?", HOSTILE[kind], ["q1", "q2"]).splitlines()
    assert lines[0] == "Question: what ?"
    assert json.loads(lines[3]) == HOSTILE[kind]
    assert lines[4:] == ["", "About the candidate:", "1. q1", "2. q2"]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ('{"verdicts": ["yes", "no"]}', [True, False]),
        ('<think>{"verdicts": ["no", "no"]}</think> So: {"verdicts": [true, " No "]}', [True, False]),
        ('{"verdicts": ["yes"]}', "no list of 2"),
        ('{"verdicts": ["yes", "maybe"]}', "neither yes nor no"),
        ('{"verdicts": ["yes", 1]}', "neither yes nor no"),
        ('{"verdicts": "yes"}', "no list of 2"),
        ('{"verdicts": ["yes", "no"]} {"verdicts": ["no", "no"]}', "2 verdicts"),
        ('{"verdicts": ["yes", "no"], "verdicts": ["no", "no"]}', "0 verdicts"),
        ("yes, no", "0 verdicts"),
    ],
)
def test_replies_are_read_strictly(reply: str, expected: Any) -> None:
    if isinstance(expected, list):
        assert parse_verdicts(reply, 2) == expected
    else:
        with pytest.raises(ValueError, match=expected):
            parse_verdicts(reply, 2)


def test_a_local_judge_is_asked_with_either_word_first(judge_model: str, groups: list[CandidateGroup]) -> None:  # noqa: F811
    """A judge that always names A says yes to nothing; else the log-probs of both forms decide, for equals alike."""
    judge = sharpened(ListwiseJudge(judge_model, dtype="float32", batch_size=2))
    said = judge.verdicts(groups, ["red ?", "blue ?"])
    assert [list(one.shape) for one in said] == [[4, 2]] * 3
    assert torch.equal(said[0][0], said[0][3])  # the same answer twice
    assert judge.take_counts() == {"verdicts": (3 + 4 + 1) * 2 * 2.0}
    asked: list[list[str]] = []

    def always_a(batch: Any, rows: list[list[str]]) -> torch.Tensor:
        asked.extend(rows)
        return torch.ones(len(rows), max(map(len, rows)), dtype=torch.float64)

    judge._says_a = always_a
    assert all(not bool(one.any()) for one in judge.verdicts(groups, ["red ?"]))
    assert len(asked[0]) == 6
    assert "A: yes\nB: no" in asked[0][0]
    assert "A: no\nB: yes" in asked[0][1]
    judge._says_a = lambda _, rows: torch.tensor([[float("no\nB" not in row) for row in own] for own in rows])
    assert bool(judge.verdicts(groups[1:2], ["red ?"])[0].all())  # type: ignore[union-attr]


def test_a_local_verdict_without_numbers_is_a_failure(judge_model: str, groups: list[CandidateGroup]) -> None:  # noqa: F811
    judge = ListwiseJudge(judge_model, dtype="float32")
    with torch.no_grad():
        for parameter in judge.judge.network.parameters():
            parameter.fill_(torch.nan)
    ranking = RubricJudge(judge, RUBRICS).rank(groups)
    assert ranking.ranks.tolist() == [[-1] * 4, [-1] * 4, [0] * 4]
    assert "a verdict is NaN" in ranking.failures[0].cause


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rubric(name="a/b", question="q"), "rubric name is 'a/b'"),
        (lambda: Rubric(name="a", question=" "), "rubric 'a' has no question"),
        (lambda: Rubric(name="a", question="q", weight=0), "rubric 'a' has weight 0"),
        (lambda: RubricJudge(ListwiseJudge("m"), []), r"oracle\.rubrics is empty"),
        (lambda: RubricJudge(ListwiseJudge("m"), [RUBRICS[0], RUBRICS[0]]), "the names short, short"),
    ],
)
def test_settings_that_cannot_be(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_whatever_judges_single_answers_can_be_asked() -> None:
    class Alphabet(Judge):
        def rank(self, groups: Any) -> Any:  # noqa: F811
            raise OracleError("Alphabet", "p", "is asked for verdicts only")

        def verdicts(self, groups: Any, questions: Any) -> Any:  # noqa: F811
            return [torch.tensor([[float("a" in answer)] for answer in one.answers]).double() for one in groups]

    assert RubricJudge(Alphabet(), RUBRICS[:1]).rank([group("b", "a", "ab")]).ranks.tolist() == [[1, 0, 0]]
