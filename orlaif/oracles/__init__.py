"""Oracles: anything that can order the candidate answers to a question about a video."""

from orlaif.oracles.base import Exchange, Judge, Oracle, dense_ranks, order_consistency
from orlaif.oracles.decision import DecisionJudge
from orlaif.oracles.ensemble import EnsembleOracle
from orlaif.oracles.failure import Asked, OracleFailure, rank_groups
from orlaif.oracles.function import FunctionOracle
from orlaif.oracles.http import HTTPJudge
from orlaif.oracles.listwise import ListwiseJudge
from orlaif.oracles.pairwise import PairwiseJudge
from orlaif.oracles.preference import PreferenceRanker
from orlaif.oracles.random import RandomOracle
from orlaif.oracles.reference_answer import ReferenceAnswerOracle
from orlaif.oracles.remote import Remote
from orlaif.oracles.rubric import Rubric, RubricJudge
from orlaif.oracles.score import ScoreOracle, TextRewardModel

__all__ = [
    "Asked",
    "DecisionJudge",
    "EnsembleOracle",
    "Exchange",
    "FunctionOracle",
    "HTTPJudge",
    "Judge",
    "ListwiseJudge",
    "Oracle",
    "OracleFailure",
    "PairwiseJudge",
    "PreferenceRanker",
    "RandomOracle",
    "ReferenceAnswerOracle",
    "Remote",
    "Rubric",
    "RubricJudge",
    "ScoreOracle",
    "TextRewardModel",
    "dense_ranks",
    "order_consistency",
    "rank_groups",
]
