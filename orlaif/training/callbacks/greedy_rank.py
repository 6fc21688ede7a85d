"""Where the policy's greedy answer stands among those that it samples, by the oracle."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from contextlib import nullcontext

from lightning import Callback, LightningModule, Trainer

from orlaif.distributed.sync import exchange, raise_together
from orlaif.oracles import rank_groups
from orlaif.rollout import generate
from orlaif.training.base import prompt_generators
from orlaif.training.callbacks.fixed_prompts import FixedPrompts
from orlaif.training.rlaif import OracleRLAIF
from orlaif.types import CandidateGroup, PromptBatch

log = logging.getLogger(__name__)


def normalized_rank(ranks: Sequence[int], place: int) -> float | None:
    """Share of the others that rank before the answer at ``place``, ties half: 0 = best, 1 = worst.

    Args:
        ranks: of a group, 0 = best, -1 = not ranked; those that are not ranked do not count.
        place: of the answer.

    Returns:
        None where it is not ranked, or no other is.
    """
    mine, others = ranks[place], [rank for i, rank in enumerate(ranks) if i != place and rank >= 0]
    if mine < 0 or not others:
        return None
    return sum(1.0 if rank < mine else 0.5 * (rank == mine) for rank in others) / len(others)


class GreedyRank(Callback):
    """At every validation, ``val/greedy_rank``: the mean normalised rank of the greedy answer among G sampled ones.

    The oracle ranks the greedy answer together with G answers that the policy of this moment samples to the same
    prompt, as in training; where among them it is shown is drawn by the prompt. 0 = it beats all samples, 0.5 = it is
    as good as they are (:func:`normalized_rank`). At 0.5 for long, there is nothing to be gained from the samples that
    the policy does not do already. Groups that the oracle cannot rank are left out, as ``on_oracle_failure`` says.

    Args:
        num_prompts: the first so many of the validation data; each costs G samples and a group for the oracle.
        batch_size: prompts that are answered together.
        keep_mb: most memory of the CPU for prompts that are kept as they were decoded, on each process; those beyond
            it are decoded anew at each validation.
        seed: of the samples, the same at every validation.

    Raises:
        ValueError: a setting out of its range; at the first validation, no validation data.
    """

    def __init__(self, num_prompts: int = 16, batch_size: int = 8, keep_mb: int = 1000, seed: int = 0) -> None:
        self.prompts, self.seed = FixedPrompts("GreedyRank", num_prompts, batch_size, keep_mb), seed

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the prompts of another run."""
        self.prompts.forget()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Answer, sample, ask the oracle, and log; all processes must call."""
        if trainer.sanity_checking or not isinstance(pl_module, OracleRLAIF):
            return
        ranks: dict[str, float] = {}
        with pl_module.policy.gathered():
            error: Exception | None = None
            try:
                for batch in self.prompts.batches(trainer, pl_module, "greedy rank"):
                    ranks |= self._ranks(pl_module, batch)
            except Exception as problem:  # whatever it is, the other processes must not wait for this one
                error = problem
            raise_together(error)
        ranks = {key: rank for one in exchange(ranks) for key, rank in one.items()}
        if not ranks:
            log.warning("the oracle could rank no group for val/greedy_rank this time")
            return
        pl_module.log("val/greedy_rank", sum(ranks.values()) / len(ranks))

    def _ranks(self, module: OracleRLAIF, batch: PromptBatch) -> dict[str, float]:
        """By prompt id, the normalised rank of the greedy answer."""
        generators = prompt_generators(batch, f"greedy_rank/{self.seed}", module.device)
        greedy = module.answer(batch)
        rollout = module.rollout
        sampled = generate(module.policy, batch, rollout.group_size, rollout.sampling, generators).texts
        places = [random.Random(prompt.id).randrange(rollout.group_size + 1) for prompt in batch.prompts]
        groups = [
            CandidateGroup.of(prompt, clip, (*texts[:place], answer, *texts[place:]), module.policy.answer_format)
            for prompt, clip, texts, answer, place in zip(
                batch.prompts, batch.clips, sampled, greedy, places, strict=True
            )
        ]
        with module.ahead.turns if module.ahead is not None else nullcontext():
            rows = rank_groups(module.oracle, groups, module.on_oracle_failure).ranks.tolist()
        found = {p.id: normalized_rank(row, place) for p, row, place in zip(batch.prompts, rows, places, strict=True)}
        return {key: rank for key, rank in found.items() if rank is not None}
