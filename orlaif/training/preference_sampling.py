"""Sampled and ranked groups as a file: what a preference ranker learns from.

``orlaif predict --config recipes/X.yaml --model orlaif.PreferenceSampling`` takes the policy, rollout and oracle of a
training recipe and writes ``predictions/preferences.jsonl``, which ``orlaif.data.preferences.PreferenceJsonl`` reads.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from orlaif.oracles import rank_groups
from orlaif.training.rlaif import OracleRLAIF, candidate_groups
from orlaif.types import Delivery

log = logging.getLogger(__name__)


class PreferenceSampling(OracleRLAIF):
    """Oracle-RLAIF that is asked for its groups instead of being trained.

    Settings as of :class:`~orlaif.OracleRLAIF`. ``predict`` samples a group for each prompt, has the oracle rank it,
    and writes each prompt with its different answers and their ranks, without its reference answer. Groups that the
    oracle does not order (one rank, or none) teach nothing; they are counted in the log and left out.
    """

    def on_predict_epoch_start(self) -> None:
        """A fresh ``predictions/preferences.jsonl``."""
        self._gather()
        self.oracle.bind(self.policy)
        self._open_predictions("preferences")
        self._written = self._silent = self._asked = self._failed = 0

    def predict_step(self, delivery: Delivery, batch_idx: int) -> Any:
        """Rows of P prompts: ``id, video, question, category, answers, ranks``."""
        batch = delivery.batch
        if not len(batch):
            return []
        completions = self.rollout(self.policy, batch, self.seed_step(batch, batch_idx))
        groups = candidate_groups(batch, completions)
        ranking = rank_groups(self.oracle, groups, self.on_oracle_failure)
        self._asked += len(groups)
        self._failed += len(ranking.failures)
        if ranking.failures:
            self.on_oracle_failure.check(self._failed, self._asked, ranking.failures[-1])
        assert self._predictions is not None
        folder = os.path.dirname(os.path.abspath(self._predictions))
        rows = []
        for group, ranks in zip(groups, ranking.ranks.tolist(), strict=True):
            by_answer = {answer: rank for answer, rank in zip(group.answers, ranks, strict=True) if rank >= 0}
            levels = sorted(set(by_answer.values()))
            if len(levels) < 2:
                self._silent += 1
                continue
            prompt = group.prompt
            row = {
                "id": prompt.id,
                "video": os.path.relpath(prompt.video, folder),
                "question": prompt.question,
                "start_s": prompt.start_s,
                "end_s": prompt.end_s,
                "category": prompt.category,
                "answers": list(by_answer),
                "ranks": [levels.index(rank) for rank in by_answer.values()],
            }
            rows.append({name: value for name, value in row.items() if value is not None})
        self._write_predictions(rows)
        self._written += len(rows)
        return rows

    def on_predict_epoch_end(self) -> None:
        """Say what was written and what was not."""
        super().on_predict_epoch_end()
        left_out = f"; {self._silent} groups that the oracle did not order are left out" if self._silent else ""
        left_out += f" ({self._failed} of them failures)" if self._failed else ""
        log.info("%d ranked groups in %s%s", self._written, self._predictions, left_out)
