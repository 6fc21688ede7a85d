"""An oracle of one's own: answers by how many words of the reference they have, in order."""

from collections.abc import Sequence

import torch

from orlaif.oracles import Oracle, dense_ranks
from orlaif.types import CandidateGroup, OracleError, Ranking


class SharedWords(Oracle):
    """More words of the reference answer are better; equal numbers tie."""

    def rank(self, groups: Sequence[CandidateGroup]) -> Ranking:
        """Order the answers of each group."""
        rows = []
        for group in groups:
            if group.prompt.answer is None:
                raise OracleError("SharedWords", group.prompt.id, "it has no reference answer")
            wanted = set(group.prompt.answer.lower().split())
            rows.append([float(len(wanted & set(answer.lower().split()))) for answer in group.answers])
        scores = torch.tensor(rows)
        return Ranking(ranks=dense_ranks(scores), scores=scores)
