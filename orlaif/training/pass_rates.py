"""How often the policy gets each prompt right, measured before training: what a data set is filtered and weighted by.

``orlaif predict --config recipes/X.yaml --model orlaif.training.pass_rates.PassRates`` takes the policy, rollout and
oracle of a training recipe and writes ``predictions/pass_rates.jsonl``, which ``orlaif.data.pass_rates`` reads.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from orlaif.evaluation.loop import Evaluated
from orlaif.training.measured import measured
from orlaif.training.preference_sampling import PreferenceSampling, RankedGroups
from orlaif.types import CandidateGroup, Ranking

log = logging.getLogger(__name__)


class PassRates(PreferenceSampling):
    """Oracle-RLAIF that is asked how often each prompt is answered rightly instead of being trained.

    Settings as of :class:`~orlaif.OracleRLAIF`. ``predict`` samples a group for each prompt and has the oracle, which
    must be one that gives scores, such as :class:`~orlaif.oracles.ReferenceAnswerOracle`, rank and score it. An answer
    passes with the score 1, which is that oracle's for an answer that meets all of its criteria.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.loops["predict"] = MeasuredGroups()


class MeasuredGroups(RankedGroups):
    """Rows ``id, pass_rate, mean_score, samples, tied`` in ``predictions/pass_rates.jsonl``."""

    name = "pass_rates"

    def rows_of(self, groups: Sequence[CandidateGroup], ranking: Ranking) -> list[dict[str, Any]]:
        """The rows of P groups, without those that the oracle failed to score.

        Raises:
            OracleError: the oracle gives no scores.
        """
        places = {group.prompt.id: i for i, group in enumerate(groups)}
        return [
            {**asdict(one), "tied": len(set(ranking.ranks[places[one.id]].tolist())) == 1}
            for one in measured([group.prompt for group in groups], ranking, "PassRates")
        ]

    def end(self, module: Evaluated) -> None:
        """Say what was written and what was not."""
        left_out = f"; {self._failed} groups that the oracle failed with are left out" if self._failed else ""
        log.info("pass rates of %d prompts in %s%s", self._written, self._predictions.path, left_out)
