"""Sampled and ranked groups as a file: what a preference ranker learns from.

``orlaif predict --config recipes/X.yaml --model orlaif.PreferenceSampling`` takes the policy, rollout and oracle of a
training recipe and writes ``predictions/preferences.jsonl``, which ``orlaif.data.preferences.PreferenceJsonl`` reads.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

from orlaif.evaluation.loop import Evaluated, Loop
from orlaif.evaluation.predictions import Predictions
from orlaif.oracles import rank_groups
from orlaif.training.in_flight import candidate_groups
from orlaif.training.rlaif import OracleRLAIF
from orlaif.types import CandidateGroup, Delivery, Prompt, Ranking

log = logging.getLogger(__name__)


class PreferenceSampling(OracleRLAIF):
    """Oracle-RLAIF that is asked for its groups instead of being trained.

    Settings as of :class:`~orlaif.OracleRLAIF`. ``predict`` samples a group for each prompt, has the oracle rank it,
    and writes each prompt with its different answers and their ranks, without its reference answer. Groups that the
    oracle does not order (one rank, or none) teach nothing; they are counted in the log and left out.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.loops["predict"] = RankedGroups()


class RankedGroups(Loop):
    """Rows ``id, video, question, start_s, end_s, category, answers, ranks``, in ``predictions/preferences.jsonl``."""

    #: Of the file.
    name = "preferences"

    def start(self, module: Evaluated) -> None:
        """Bind the oracle, empty the file of rows, and set the counters to zero."""
        assert isinstance(module, OracleRLAIF)
        module.oracle.bind(module.policy)
        self._predictions = Predictions(module.run_dir, self.name, module.global_rank, module.trainer.world_size)
        self._predictions.clear()
        self._written = self._silent = self._asked = self._failed = 0

    def step(self, module: Evaluated, delivery: Delivery, batch_idx: int) -> list[dict[str, Any]]:
        """Sample, rank and write the rows of P prompts; returns the rows."""
        assert isinstance(module, OracleRLAIF)
        batch = delivery.batch
        if not len(batch):
            return []
        completions = module.rollout(module.policy, batch, module.seed_step(batch, batch_idx))
        groups = candidate_groups(batch, completions, module.policy.answer_format)
        ranking = rank_groups(module.oracle, groups, module.on_oracle_failure)
        self._asked += len(groups)
        self._failed += len(ranking.failures)
        if ranking.failures:
            module.on_oracle_failure.check(self._failed, self._asked, ranking.failures[-1])
        rows = self.rows_of(groups, ranking)
        self._predictions.append(rows)
        self._written += len(rows)
        self._silent += len(groups) - len(rows)
        return rows

    def rows_of(self, groups: Sequence[CandidateGroup], ranking: Ranking) -> list[dict[str, Any]]:
        """The rows of P ranked groups, without those that are left out."""
        folder = os.path.abspath(self._predictions.folder)
        pairs = zip(groups, ranking.ranks.tolist(), strict=True)
        return [row for group, ranks in pairs if (row := preference_row(group, ranks, folder)) is not None]

    def end(self, module: Evaluated) -> None:
        """Say what was written and what was not."""
        left_out = f"; {self._silent} groups that the oracle did not order are left out" if self._silent else ""
        left_out += f" ({self._failed} of them failures)" if self._failed else ""
        log.info("%d ranked groups in %s%s", self._written, self._predictions.path, left_out)


def preference_row(group: CandidateGroup, ranks: list[int], folder: str) -> dict[str, Any] | None:
    """A ranked group as a row of a file in ``folder``; None where the ranks (-1 = not ranked) do not order it."""
    by_answer = {answer: rank for answer, rank in zip(group.answers, ranks, strict=True) if rank >= 0}
    levels = sorted(set(by_answer.values()))
    if len(levels) < 2:
        return None
    prompt = group.prompt
    row = {
        "id": prompt.id,
        **_asked(prompt, folder),
        "category": prompt.category,
        "answers": list(by_answer),
        "ranks": [levels.index(rank) for rank in by_answer.values()],
    }
    return {name: value for name, value in row.items() if value is not None}


def _asked(prompt: Prompt, folder: str) -> dict[str, Any]:
    """What is asked, and about what, as fields of a row of a file in ``folder``."""
    if prompt.video and not prompt.turns:
        video = os.path.relpath(prompt.video, folder)
        return {"video": video, "question": prompt.question, "start_s": prompt.start_s, "end_s": prompt.end_s}
    messages = []
    for turn in prompt.conversation():
        parts: list[dict[str, Any]] = []
        for part in turn.parts:
            about = {name: value for name, value in vars(part).items() if value is not None}
            if "path" in about:
                about["path"] = os.path.relpath(about["path"], folder)
            if "frames" in about:
                about["frames"] = [os.path.relpath(frame, folder) for frame in about["frames"]]
            parts.append({"type": type(part).__name__.lower(), **about})
        messages.append({"role": turn.role, "content": parts})
    return {"messages": messages}
