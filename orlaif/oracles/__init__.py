"""Oracles: anything that can order the candidate answers to a question about a video."""

from orlaif.oracles.base import Oracle, OracleFailure, dense_ranks, order_consistency, rank_groups
from orlaif.oracles.reference_answer import ReferenceAnswerOracle

__all__ = ["Oracle", "OracleFailure", "ReferenceAnswerOracle", "dense_ranks", "order_consistency", "rank_groups"]
