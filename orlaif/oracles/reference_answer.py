"""The oracle that knows the reference answer.

Right before right kind before wrong kind: an answer equal to the reference comes first, then those that are at least
one of the prompt's options (they understood the question), then everything else. All answers of a class tie.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from orlaif.answers import normalize_answer
from orlaif.oracles.base import Oracle, dense_ranks
from orlaif.types import CandidateGroup, OracleError, Ranking


class ReferenceAnswerOracle(Oracle):
    """Orders answers by the prompt's reference answer; its scores are 1 (right), 0.5 (right kind) and 0."""

    def rank(self, groups: Sequence[CandidateGroup]) -> Ranking:
        """Order the answers of each group.

        Args:
            groups: P groups; every prompt needs a reference ``answer``.

        Returns:
            Dense ranks i64[P, G] and scores f32[P, G].

        Raises:
            OracleError: a prompt without a reference answer.
        """
        scores = torch.tensor([self._scores(group) for group in groups])
        return Ranking(ranks=dense_ranks(scores), scores=scores)

    def _scores(self, group: CandidateGroup) -> list[float]:
        prompt = group.prompt
        if prompt.answer is None:
            raise OracleError(type(self).__name__, prompt.id, "the prompt has no reference answer")
        right = normalize_answer(prompt.answer)
        kind = {normalize_answer(option) for option in prompt.options or ()}
        answers = [normalize_answer(answer) for answer in group.answers]
        return [1.0 if answer == right else 0.5 if answer in kind else 0.0 for answer in answers]
