"""How often groups were answered rightly, by their oracle's scores: what pass rates are made of."""

from __future__ import annotations

from collections.abc import Sequence

from orlaif.types import Measured, OracleError, Prompt, Ranking


def measured(prompts: Sequence[Prompt], ranking: Ranking, oracle: str) -> list[Measured]:
    """Of P groups, without those of which the oracle scored no answer.

    Args:
        prompts: P prompts.
        ranking: of their groups, with scores; an answer passes with the score 1.
        oracle: its name, for the error.

    Raises:
        OracleError: it only ranks.
    """
    failed = {error.prompt_id for error in ranking.failures}
    found = []
    for i, prompt in enumerate(prompts):
        if prompt.id in failed:
            continue
        if ranking.scores is None:
            raise OracleError(oracle, prompt.id, "the recipe's oracle gives no scores to measure pass rates by")
        scores = [s for s in ranking.scores[i].tolist() if s == s]
        if not scores:  # such as answers that are all the same, which a rubric's judge is not asked about
            continue
        passed = sum(score >= 1 for score in scores)
        found.append(
            Measured(
                id=prompt.id,
                pass_rate=passed / len(scores),
                mean_score=sum(scores) / len(scores),
                samples=len(scores),
            )
        )
    return found
