"""Oracles: anything that can order the candidate answers to a question about a video."""

from orlaif.oracles.base import Oracle, OracleFailure, dense_ranks, order_consistency, rank_groups
from orlaif.oracles.random import RandomOracle
from orlaif.oracles.reference_answer import ReferenceAnswerOracle

__all__ = [
    "Oracle",
    "OracleFailure",
    "RandomOracle",
    "ReferenceAnswerOracle",
    "dense_ranks",
    "order_consistency",
    "rank_groups",
]
