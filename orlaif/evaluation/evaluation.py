"""A model that is only evaluated: ``orlaif test --config recipes/evaluation/....yaml``."""

from __future__ import annotations

from orlaif.evaluation.answers import Accuracy, WrittenAnswers
from orlaif.evaluation.graded_test import GradedTest
from orlaif.evaluation.loop import Evaluated, Loop, Stage
from orlaif.evaluation.suite import Suite
from orlaif.policy import Policy


class Evaluation(Evaluated):
    """A model that answers questions and is graded.

    Args:
        policy: the model.
        suite: how answers are graded; by default exact match and token F1.
        eval_max_new_tokens: longest greedy answer.
    """

    def __init__(self, policy: Policy, suite: Suite | None = None, eval_max_new_tokens: int = 64) -> None:
        loops: dict[Stage, Loop] = {"validate": Accuracy(), "test": GradedTest(suite), "predict": WrittenAnswers()}
        super().__init__(policy, eval_max_new_tokens, loops)

    def configure_model(self) -> None:
        """Load the policy's weights, unless that is done already."""
        self.policy.load()
