"""Is it getting better? The policy's answers against those of the policy that the run started from, by the oracle."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from lightning import Callback, LightningModule, Trainer

from orlaif.distributed.sync import exchange, raise_together
from orlaif.evaluation.report import paired_difference
from orlaif.oracles import rank_groups
from orlaif.samples.shards import json_line
from orlaif.training.callbacks.fixed_prompts import FixedPrompts
from orlaif.training.rlaif import OracleRLAIF
from orlaif.types import CandidateGroup, PromptBatch

log = logging.getLogger(__name__)

FILE = "win_rate.jsonl"


class WinRate(Callback):
    """At every validation, ``val/win_rate``: how often the oracle prefers the policy's greedy answer to the first one.

    The first one is the greedy answer of the policy that the run started from, which it gives before its first step and
    which is kept in ``<run_dir>/win_rate.jsonl``. The oracle sees the two in both orders, each counts one half; a tie
    is half a win, and so are two answers that are the same, about which it is not asked. It needs no reference answers
    where the oracle needs none. A group that the oracle cannot rank is left out, as ``on_oracle_failure`` says.

    ``val/win_rate/low`` and ``.../high`` are the 95 % percentile interval of its bootstrap over the prompts (1,000
    resamples). 0.5 is no better than at the start; as a ``monitor`` use ``mode: max``.

    Args:
        num_prompts: the first so many of the validation data.
        batch_size: prompts that are answered together.
        keep_mb: most memory of the CPU for prompts that are kept as they were decoded, on each process; those beyond
            it are decoded anew at each validation.

    Raises:
        ValueError: a setting out of its range; before training, no validation data, or a run that goes on without
            the file.
    """

    def __init__(self, num_prompts: int = 64, batch_size: int = 8, keep_mb: int = 1000) -> None:
        self.prompts = FixedPrompts("WinRate", num_prompts, batch_size, keep_mb)
        self._first: dict[str, str] = {}
        #: How often an answer has beaten the first one, by prompt id and answer.
        self._told: dict[tuple[str, str], float] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Answer before the first step, or read what was answered then; all processes must call."""
        if not isinstance(pl_module, OracleRLAIF):
            return
        path = Path(trainer.default_root_dir) / FILE
        self._told = {}
        self.prompts.forget()
        if not trainer.global_step:
            self._first = {}
            with pl_module.policy.gathered():
                for batch in self.prompts.batches(trainer, pl_module, "first answers"):
                    self._first |= dict(zip(_ids(batch), pl_module.answer(batch), strict=True))
            self._first = {key: answer for one in exchange(self._first) for key, answer in one.items()}
            if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("".join(json_line({"id": k, "answer": a}) for k, a in self._first.items()))
            return
        if not path.exists():
            raise ValueError(
                f"WinRate compares with the answers that the run gave before its first step, and {path} is not there; "
                "take WinRate out of the recipe to go on with this run"
            )
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        self._first = {line["id"]: line["answer"] for line in lines}

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Answer, ask the oracle, and log; all processes must call."""
        if trainer.sanity_checking or not self._first or not isinstance(pl_module, OracleRLAIF):
            return
        wins: dict[str, float] = {}
        with pl_module.policy.gathered():
            error: Exception | None = None
            try:
                for batch in self.prompts.batches(trainer, pl_module, "win rate"):
                    wins |= self._wins(pl_module, batch, pl_module.answer(batch))
            except Exception as problem:  # whatever it is, the other processes must not wait for this one
                error = problem
            raise_together(error)
        wins = {key: win for one in exchange(wins) for key, win in one.items()}
        if not wins:
            log.warning("the oracle could rank none of the pairs for val/win_rate this time")
            return
        rates = np.array([wins[key] for key in sorted(wins)])
        mean, low, high = paired_difference(np.zeros_like(rates), rates, resamples=1000, seed=0)
        pl_module.log("val/win_rate", mean, prog_bar=True)
        pl_module.log("val/win_rate/low", low)
        pl_module.log("val/win_rate/high", high)

    def _wins(self, module: OracleRLAIF, batch: PromptBatch, answers: Sequence[str]) -> dict[str, float]:
        """By prompt id, 1 where the new answer is better, 0 where it is worse, in between for ties and disagreement."""
        pairs = []
        for prompt, clip, new in zip(batch.prompts, batch.clips, answers, strict=True):
            old = self._first.get(prompt.id)
            if old == new:
                self._told[prompt.id, new] = 0.5
            elif old is not None and (prompt.id, new) not in self._told:
                pairs.append((prompt, clip, old, new))
        if pairs:
            kind = module.policy.answer_format
            groups = [CandidateGroup.of(p, c, (old, new), kind) for p, c, old, new in pairs]
            groups += [CandidateGroup.of(p, c, (new, old), kind) for p, c, old, new in pairs]
            with module.ahead.turns if module.ahead is not None else nullcontext():
                ranks = rank_groups(module.oracle, groups, module.on_oracle_failure).ranks.tolist()
            for (prompt, _, _, new), (old_1, new_1), (new_2, old_2) in zip(
                pairs, ranks[: len(pairs)], ranks[len(pairs) :], strict=True
            ):
                if min(old_1, new_1, old_2, new_2) >= 0:
                    self._told[prompt.id, new] = (_win(new_1, old_1) + _win(new_2, old_2)) / 2
        told = {prompt.id: self._told.get((prompt.id, new)) for prompt, new in zip(batch.prompts, answers, strict=True)}
        return {key: win for key, win in told.items() if win is not None}


def _win(mine: int, other: int) -> float:
    return 0.5 if mine == other else float(mine < other)


def _ids(batch: PromptBatch) -> list[str]:
    return [prompt.id for prompt in batch.prompts]
