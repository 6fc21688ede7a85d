from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from orlaif.advantages import ODRPO, RLOO, MeanCentered, ZScore
from orlaif.answer_format import TaggedAnswer
from orlaif.oracles import (
    Asked,
    EnsembleOracle,
    Oracle,
    OracleFailure,
    RandomOracle,
    ReferenceAnswerOracle,
    ScoreOracle,
    dense_ranks,
    order_consistency,
    rank_groups,
)
from orlaif.oracles.base import no_score_failures
from orlaif.types import CandidateGroup, Completions, OracleError, Ranking, VideoClip, VideoPrompt

CLIP = VideoClip(
    frames=torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
    pts_s=torch.tensor([0.0, 0.5], dtype=torch.float64),
    duration_s=1.0,
    path="a.mp4",
)


def group(*answers: str, answer: str | None = "red", id: str = "1") -> CandidateGroup:
    prompt = VideoPrompt(id=id, video="a.mp4", question="q", answer=answer, options=("red", "blue", "green"))
    return CandidateGroup(prompt=prompt, clip=CLIP, answers=answers)


def test_right_before_right_kind_before_wrong_kind() -> None:
    ranking = ReferenceAnswerOracle().rank(
        [group("blue", "Red.", "seven", "green", "the red"), group("x", "", "y", "z", "x")]
    )
    assert ranking.ranks.tolist() == [[1, 0, 2, 1, 0], [0, 0, 0, 0, 0]]
    assert ranking.scores is not None
    assert ranking.scores.tolist() == [[0.5, 1.0, 0.0, 0.5, 1.0], [0.0] * 5]


def test_no_reference_answer_is_an_oracle_error() -> None:
    with pytest.raises(OracleError, match="ReferenceAnswerOracle gave no ranking for prompt 'p9': the prompt has no"):
        ReferenceAnswerOracle().rank([group("a", "b"), group("a", "b", answer=None, id="p9")])


def test_dense_ranks_from_scores() -> None:
    scores = torch.tensor([[0.5, 2.0, 0.5, float("nan")], [float("nan")] * 4])
    assert dense_ranks(scores).tolist() == [[1, 0, 1, -1], [-1] * 4]


def test_nan_is_no_score_and_infinity_is_an_order() -> None:
    nan, inf = float("nan"), float("inf")
    scores = torch.tensor([[nan, inf, -inf, 1.0], [2.0, nan, nan, 2.0]])
    assert dense_ranks(scores).tolist() == [[-1, 0, 2, 1], [0, -1, -1, 0]]
    assert dense_ranks(torch.tensor([[0, 1, 200]], dtype=torch.uint8)).tolist() == [[2, 1, 0]]
    with pytest.raises(ValueError, match=r"dense_ranks was given scores of shape \[2\]; expected \[P, G\]"):
        dense_ranks(torch.tensor([1.0, nan]))


def test_a_group_without_any_score_has_failed() -> None:
    nan = float("nan")
    groups = [group("a", "b", id="x"), group("a", "b", id="y")]
    (failure,) = no_score_failures(RandomOracle(), groups, torch.tensor([[nan, 1.0], [nan, nan]]))
    assert str(failure).startswith("oracle RandomOracle gave no ranking for prompt 'y': all its scores are NaN")


class Says(Oracle):
    """Returns whatever it is given, as an oracle that was written wrong."""

    def __init__(self, what: Any) -> None:
        self.what = what

    def rank(self, groups: Sequence[CandidateGroup]) -> Ranking:
        return self.what() if callable(self.what) else self.what


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (torch.tensor([[0, 1]]), r"Says.rank returned a Tensor of shape \[1, 2\]; it must be an orlaif.types.Ranking"),
        ([[0, 1]], r"Says.rank returned list; it must be an orlaif.types.Ranking with ranks i64\[1, 2\]"),
        (None, "Says.rank returned NoneType; it must be"),
        (Ranking(ranks=torch.tensor([[0, 1, 2]])), r"Says.rank gave ranks of shape \[1, 3\]; expected \[1, 2\]"),
        (
            lambda: Ranking(ranks=torch.tensor([[0, 1]]), scores=torch.ones(1, 2, dtype=torch.complex64)),
            r"Says.rank: Ranking.scores is torch.complex64; it must be a Tensor f32\[P, G\], or of other real numbers",
        ),
        (lambda: Ranking(ranks=torch.tensor([[0, 1]]), scores=[[1, 0]]), r"Says.rank: Ranking.scores is list; it must"),  # type: ignore[arg-type]
        (lambda: Ranking(ranks=torch.tensor([0, 1])), r"Says.rank: Ranking.ranks is torch.int64\[2\]; expected"),
    ],
)
@pytest.mark.parametrize("action", ["error", "drop_group"])
def test_what_is_no_ranking_is_an_error_that_names_the_oracle(what: Any, message: str, action: Any) -> None:
    with pytest.raises(ValueError, match=message):
        rank_groups(Says(what), [group("a", "b")], OracleFailure(action=action))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8, torch.float64, torch.bfloat16])
def test_scores_of_any_real_dtype_are_f32_to_every_mapping(dtype: torch.dtype) -> None:
    ranking = Ranking(ranks=torch.tensor([[0, 1, 1]]), scores=torch.tensor([[1, 0, 0]]).to(dtype))
    assert ranking.scores is not None
    assert ranking.scores.dtype is torch.float32
    ids = torch.zeros(1, 3, 1, dtype=torch.int64)
    completions = Completions(ids=ids, mask=ids == 0, texts=(("a", "b", "c"),))
    assert RLOO()(ranking, completions).tolist() == [[1.0, -0.5, -0.5]]
    for mapping in (ZScore(), MeanCentered(), ODRPO(), ODRPO([0.5])):
        assert float(mapping(ranking, completions)[0, 0]) > 0


class First(Oracle):
    """Always prefers what it is shown first: position bias itself."""

    def rank(self, groups: Sequence[CandidateGroup]) -> Ranking:
        return Ranking(ranks=torch.arange(len(groups[0].answers)).repeat(len(groups), 1))


def test_order_consistency_tells_a_biased_oracle_from_a_faithful_one() -> None:
    groups = [group("red", "blue", "x", "y")] * 20
    generator = torch.Generator().manual_seed(0)
    for oracle, low, high in ((ReferenceAnswerOracle(), 1.0, 1.0), (First(), 0.0, 0.3), (RandomOracle(), 0.0, 0.3)):
        assert low <= order_consistency(oracle, groups, oracle.rank(groups), generator) <= high


def test_random_orders_are_permutations_and_differ() -> None:
    groups = [replace(one, prompt=replace(one.prompt, id=f"q{i}")) for i, one in enumerate([group(*"abcdef")] * 30)]
    ranks = RandomOracle(seed=1).rank(groups).ranks
    assert torch.equal(ranks, RandomOracle(seed=1).rank(groups).ranks)  # after a restart, too
    assert not torch.equal(ranks, RandomOracle(seed=2).rank(groups).ranks)
    assert bool((ranks.sort(-1).values == torch.arange(6)).all())
    assert ranks.float().mean(0).sub(2.5).abs().max() < 1.0
    assert len({tuple(row) for row in ranks.tolist()}) > 20


class Fails(Oracle):
    def __init__(self, bad: set[str]) -> None:
        self.bad, self.calls = bad, 0

    def rank(self, groups: Sequence[CandidateGroup]) -> Ranking:
        self.calls += 1
        for g in groups:
            if g.prompt.id in self.bad:
                raise OracleError("Fails", g.prompt.id, "no")
        return ReferenceAnswerOracle().rank(groups)


def test_one_failure_costs_its_own_group_only() -> None:
    groups = [group("red", "x", id="a"), group("red", "x", id="b"), group("x", "red", id="c")]
    ranking = rank_groups(Fails({"b"}), groups, OracleFailure(action="drop_group"))
    assert ranking.ranks.tolist() == [[0, 1], [-1, -1], [1, 0]]
    assert [error.prompt_id for error in ranking.failures] == ["b"]
    assert ranking.scores is not None
    assert ranking.scores.isnan().tolist() == [[False] * 2, [True] * 2, [False] * 2]
    with pytest.raises(OracleError, match="'b'"):
        rank_groups(Fails({"b"}), groups, OracleFailure(action="error"))
    with pytest.raises(OracleError, match="'b'"):
        rank_groups(Fails({"b"}), groups, OracleFailure(action="retry", retries=2))


def test_retries_are_bounded() -> None:
    oracle = Fails({"a"})
    rank_groups(oracle, [group("red", "x", id="a")], OracleFailure(action="drop_group", retries=3))
    assert oracle.calls == 1 + 3


def test_an_oracle_of_the_wrong_shape_is_named() -> None:
    class Short(Oracle):
        def rank(self, groups: Sequence[CandidateGroup]) -> Ranking:
            return Ranking(ranks=torch.zeros(1, 2, dtype=torch.int64))

    with pytest.raises(ValueError, match=r"Short.rank gave ranks of shape \[1, 2\]; expected \[2, 2\]"):
        rank_groups(Short(), [group("a", "b")] * 2, OracleFailure())


class Waits(ReferenceAnswerOracle):
    """As a server would: 0.3 s, on a thread."""

    mostly_waits = True

    def rank(self, groups: Sequence[CandidateGroup]) -> Ranking:
        time.sleep(0.3)
        return super().rank(groups)


def test_an_oracle_that_waits_does_so_beside_other_work() -> None:
    asked = Asked(Waits(), [group("x", "red")], OracleFailure())
    time.sleep(0.25)  # the reference's forward pass
    assert asked.result().ranks.tolist() == [[1, 0]]
    assert asked.seconds >= 0.3
    assert asked.waited < asked.seconds


def test_an_oracle_that_computes_does_so_when_its_ranking_is_wanted() -> None:
    oracle = Fails(set())
    asked = Asked(oracle, [group("x", "red")], OracleFailure())
    assert oracle.calls == 0
    assert asked.result().ranks.tolist() == [[1, 0]]
    assert asked.waited >= asked.seconds > 0


@pytest.mark.parametrize("oracle", [Waits(), ReferenceAnswerOracle()])
def test_an_error_of_the_oracle_reaches_the_step(oracle: Oracle) -> None:
    asked = Asked(oracle, [group("x", "red", answer=None, id="7")], OracleFailure(action="error"))
    with pytest.raises(OracleError, match="prompt '7': the prompt has no reference answer"):
        asked.result()


def test_the_members_of_an_ensemble_that_wait_do_so_together() -> None:
    together = threading.Barrier(3)

    class Meets(Waits):
        def rank(self, groups: Sequence[CandidateGroup]) -> Ranking:
            together.wait(timeout=60)  # breaks unless all three are in here at once
            return super().rank(groups)

    assert EnsembleOracle([Meets(), Meets(), Meets()]).rank([group("x", "red")]).ranks.tolist() == [[1, 0]]


def test_an_ensemble_binds_and_counts_its_members() -> None:
    class Member(ReferenceAnswerOracle):
        bound: object = None

        def bind(self, policy: object) -> None:
            self.bound = policy

        def take_counts(self) -> dict[str, float]:
            return {"requests": 2.0}

    members = [Member(), ReferenceAnswerOracle(), Member()]
    ensemble = EnsembleOracle(members)
    ensemble.bind("the policy")
    assert [getattr(member, "bound", None) for member in members] == ["the policy", None, "the policy"]
    assert ensemble.take_counts() == {"Member_0/requests": 2.0, "Member_2/requests": 2.0}
    assert not ensemble.mostly_waits
    assert EnsembleOracle([Waits(), Waits()]).mostly_waits


def read_group(*texts: str) -> CandidateGroup:
    """A group about a red thing, whose texts are read by tags."""
    one = group("red", "red")
    return CandidateGroup.of(one.prompt, one.clip, texts, TaggedAnswer())


def test_the_criterion_of_format_orders_with_the_others() -> None:
    """Right and well formed, right in other words around it, wrong and well formed, wrong, no answer at all."""
    texts = (
        "<think>a</think><answer>red</answer>",
        "so <think>a</think><answer>red</answer>",
        "<think>a</think><answer>blue</answer>",
        "<answer>blue</answer>",
        "red",
    )
    given = read_group(*texts)
    assert given.answers == ("red", "red", "blue", "blue", "")
    assert ReferenceAnswerOracle(["exact", "format"]).rank([given]).ranks.tolist() == [[0, 1, 2, 3, 3]]
    assert ReferenceAnswerOracle(["format", "exact"]).rank([given]).ranks.tolist() == [[0, 2, 1, 3, 3]]
    assert ReferenceAnswerOracle(["exact", "shortest"]).rank([given]).ranks.tolist() == [[0, 0, 1, 1, 2]]
    ranking = ReferenceAnswerOracle(["exact", "format"]).rank([given])
    assert ranking.scores is not None
    assert ranking.scores.tolist() == [[1.0, 0.5, 0.5, 0.0, 0.0]]


def test_candidates_keep_what_they_were_read_from_when_they_are_shuffled() -> None:
    given = read_group("<think>a</think><answer>red</answer>", "blue", "<answer>green</answer>")
    turned = given.reordered([2, 0, 1])
    assert turned.answers == ("green", "red", "")
    assert turned.completions == ("<answer>green</answer>", "<think>a</think><answer>red</answer>", "blue")
    assert [read.thoughts for read in turned.reads] == [None, "a", None]
    with pytest.raises(ValueError, match="has answers that are not those of its reads"):
        replace(given, answers=("x", "y", "z"))


def test_a_score_is_given_what_the_recipe_says() -> None:
    given = read_group("<think>aaa</think><answer>red</answer>", "blue")
    lengths = {"answer": [[3.0, 0.0]], "thoughts": [[3.0, 0.0]], "both": [[38.0, 4.0]]}
    for sees, expected in lengths.items():
        oracle = ScoreOracle(lambda one: [float(len(answer)) for answer in one.answers], sees=sees)  # type: ignore[arg-type]
        scores = oracle.rank([given]).scores
        assert scores is not None
        assert scores.tolist() == expected
    with pytest.raises(ValueError, match=r"oracle.sees is 'all'; it must be 'answer', 'thoughts' or 'both'"):
        ScoreOracle(lambda one: [], sees="all")  # type: ignore[arg-type]
