"""What an oracle looks at shows in the metrics: four judges, told apart."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from orlaif.advantages import dcg
from orlaif.oracles import Oracle, RandomOracle, dense_ranks, order_consistency
from orlaif.training.metrics import rank_metrics
from orlaif.types import CandidateGroup, Ranking
from tests.oracles.test_composed import group

GROUPS, SIZE = 200, 5


class Scored(Oracle):
    """Ranks by a number that it reads off each answer and its place."""

    def __init__(self, what: str) -> None:
        self.what = what

    def rank(self, groups: Sequence[CandidateGroup]) -> Ranking:
        read = {
            "faithful": lambda place, answer: float(answer.split()[0]),
            "longest": lambda place, answer: float(len(answer.split())),
            "first": lambda place, answer: float(-place),
        }[self.what]
        scores = [[read(place, answer) for place, answer in enumerate(one.answers)] for one in groups]
        return Ranking(ranks=dense_ranks(torch.tensor(scores)))


@pytest.fixture(scope="module")
def groups() -> list[CandidateGroup]:
    """Answers whose quality, the number they begin with, has nothing to do with their length or place."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for i in range(GROUPS):
        qualities = torch.randperm(100, generator=generator)[:SIZE].tolist()
        lengths = (1 + torch.randperm(20, generator=generator)[:SIZE]).tolist()
        made.append(group(*(f"{q}" + " word" * n for q, n in zip(qualities, lengths, strict=True)), id=str(i)))
    return made


def signature(oracle: Oracle, groups: list[CandidateGroup]) -> dict[str, float]:
    ranking = oracle.rank(groups)
    lengths = torch.tensor([[len(answer.split()) for answer in one.answers] for one in groups])
    metrics = rank_metrics(ranking.ranks, dcg(ranking.ranks), lengths, None)
    consistency = order_consistency(oracle, groups, ranking, torch.Generator().manual_seed(1))
    return {**{name: float(value) for name, value in metrics.items()}, "oracle/order_consistency": consistency}


def test_each_judge_shows_what_it_looks_at(groups: list[CandidateGroup]) -> None:
    """By chance a tau of 200 groups lies within 0.1 of 0, and 1 in 120 orders of five is kept."""
    faithful, longest, first = (signature(Scored(what), groups) for what in ("faithful", "longest", "first"))
    nobody = signature(RandomOracle(), groups)
    for one in (faithful, longest):
        assert one["oracle/order_consistency"] == 1.0
    for one in (first, nobody):
        assert one["oracle/order_consistency"] < 0.05
    assert longest["oracle/length_tau"] == pytest.approx(1.0)
    assert first["oracle/position_tau"] == pytest.approx(1.0)
    for one in (faithful, first, nobody):
        assert abs(one["oracle/length_tau"]) < 0.1
    for one in (faithful, longest, nobody):
        assert abs(one["oracle/position_tau"]) < 0.1
