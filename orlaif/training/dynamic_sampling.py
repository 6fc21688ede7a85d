"""Dynamic sampling: groups that teach nothing are set aside, and further prompts sampled before the optimizer steps.

DAPO's idea (Yu et al. 2025, arXiv 2503.14476), on ranks: a group teaches where any of its answers has an advantage; all
answers tied, or none of them ranked, it does not. It differs from DAPO in where the further prompts come from: a round
is the next batch of the epoch, accumulated until the step has its ``accumulate_grad_batches`` x batch size x processes
groups. So the place in the data counts every prompt that was consumed, and a checkpoint needs nothing besides.

The groups of a step are the first that teach in the epoch's order, on however many processes; what the last round has
beyond them is dropped, and counted. A group that is set aside carries no weight, neither in the loss (its KL and
entropy terms included) nor in what that is divided by, and no pass of the policy is paid for it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from orlaif.distributed.sync import exchange
from orlaif.policy.encoding import ProcessorEncoder
from orlaif.training.experience import Ranked, judge, rank_together, sample
from orlaif.training.some_prompts import completions_of, taken
from orlaif.types import Delivery, Ranking

if TYPE_CHECKING:
    from orlaif.training.rlaif import OracleRLAIF


@dataclass(frozen=True, kw_only=True)
class DynamicSampling:
    """How long to look for groups that teach.

    Args:
        max_batches: most batches that are sampled for one step of the optimizer, those of
            ``trainer.accumulate_grad_batches`` included.
        at_limit: with fewer groups behind that many batches, ``train`` on those there are, or ``error``. At the end of
            an epoch the optimizer steps with those there are in any case.

    Raises:
        ValueError: a setting is out of its range.
    """

    max_batches: int = 10
    at_limit: Literal["train", "error"] = "train"

    def __post_init__(self) -> None:
        if self.max_batches < 1:
            raise ValueError(f"dynamic_sampling.max_batches is {self.max_batches}; it must be 1 or more batches")
        if self.at_limit not in ("train", "error"):
            raise ValueError(f"dynamic_sampling.at_limit is {self.at_limit!r}; it must be 'train' or 'error'")


@dataclass
class Counts:
    """Of the step that is being gathered for, all processes together.

    Args:
        batches: sampled.
        sampled: groups.
        teaching: groups of those that teach.
        trained: groups of those that are trained on.
    """

    batches: int = 0
    sampled: int = 0
    teaching: int = 0
    trained: int = 0


class Gathering:
    """Gathers the groups of a step: :meth:`gather` where a batch begins, :meth:`take` in its training step.

    Args:
        module: that samples and is trained.
        settings: of the recipe.

    Attributes:
        is_stepping: whether the optimizer steps behind the batch at hand.
    """

    def __init__(self, module: OracleRLAIF, settings: DynamicSampling) -> None:
        self._module = (module,)  # in a tuple, lest Lightning's module sees a module of its own
        self.settings = settings
        self._encoder: ProcessorEncoder | None = None
        self.is_stepping, self._counts = True, Counts()
        self._kept: Ranked | None = None

    def encode_by(self, encoder: ProcessorEncoder) -> None:
        """Encode as the data does, by a processor of its own: the other is called on other threads."""
        processor = copy.deepcopy(encoder.processor)
        self._encoder = copy.copy(encoder)
        self._encoder.processor = processor

    def begin_run(self) -> None:
        """Have Lightning ask here whether enough has been accumulated.

        Raises:
            ValueError: fewer batches than the step has without dynamic sampling, or another encoder than the model's.
        """
        trainer = self._module[0].trainer
        least = trainer.accumulate_grad_batches
        if self.settings.max_batches < least:
            raise ValueError(
                f"dynamic_sampling.max_batches is {self.settings.max_batches}; it must be {least} or more, the number "
                "of trainer.accumulate_grad_batches"
            )
        if self._encoder is None:
            raise ValueError(
                "dynamic_sampling takes groups out of batches by the model's processor; data.encoder must be null"
            )
        # Behind the last step of a run that goes on, or at the beginning, nothing is being accumulated.
        self.is_stepping, self._counts, self._kept = True, Counts(), None
        loop: Any = trainer.fit_loop.epoch_loop
        loop._accumulated_batches_reached = lambda: self.is_stepping  # of Lightning 2.6: asked before a training step

    def begins_step(self, batch_idx: int) -> bool:
        """Whether the batch that begins is the first one behind a step: it ended the epoch before, or was full."""
        return batch_idx == 0 or self.is_stepping

    def gather(self, delivery: Delivery, batch_idx: int) -> None:
        """Sample and rank a batch, and decide with all processes, which must call, what is kept of it.

        Args:
            delivery: of the step.
            batch_idx: of the step.

        Raises:
            ValueError: on all processes, the limit is reached and the recipe wants an error.
            OracleError: as :func:`~orlaif.training.experience.rank_together`.
        """
        module = self._module[0]
        if self.begins_step(batch_idx):
            self._counts = Counts()
        given = module.begin_batch(delivery, batch_idx)
        ranked = None
        if given is None:
            rank_together(module, None)
        else:
            sampled = sample(module, given.batch, given.generators, batch_idx, given.counts)
            ranked = judge(module, given.batch, sampled, batch_idx, given.counts)
            if given.counts:
                module.note_delivery(delivery, [ranked.completions])
        teaching = [] if ranked is None else (ranked.advantages != 0).flatten(1).any(-1).tolist()
        rows = len(delivery.batch) + len(delivery.skipped)
        places = self._agree(teaching, len(delivery.batch), rows)
        self._kept = None if ranked is None else self._cut(ranked, places)

    def take(self) -> Ranked | None:
        """The groups of this batch that are trained on; None where there are none and no pass is needed."""
        kept, self._kept = self._kept, None
        return kept

    def _agree(self, teaching: list[bool], sampled: int, rows: int) -> list[int]:
        """Which groups of this process are kept, once all have said which of theirs teach; and whether to step."""
        module, counts = self._module[0], self._counts
        everyone = exchange((teaching, sampled, rows))[:: module.processes_per_prompt]  # who speak for their prompts
        target = module.trainer.accumulate_grad_batches * sum(rows for _, _, rows in everyone)
        of_all = [marks for marks, _, _ in everyone]
        room = target - counts.trained
        kept = in_order(of_all)[:room]
        counts.batches += 1
        counts.sampled += sum(number for _, number, _ in everyone)
        counts.teaching += sum(map(sum, of_all))
        counts.trained += len(kept)
        is_full, is_last = counts.trained >= target, bool(module.trainer.is_last_batch)
        at_limit = counts.batches >= self.settings.max_batches
        if at_limit and not is_full and self.settings.at_limit == "error":
            raise ValueError(
                f"dynamic_sampling.max_batches is {self.settings.max_batches}, and of the {counts.sampled} groups in "
                f"these batches {counts.trained} teach, where a step needs {target}; allow more batches, choose "
                "prompts that the policy neither always nor never gets right, or set at_limit: train"
            )
        self.is_stepping = is_full or at_limit or is_last
        if self.is_stepping:
            self._note()
        return [i for i, process in kept if process == module.global_rank // module.processes_per_prompt]

    def _note(self) -> None:
        """What the step's groups cost."""
        counts, note = self._counts, self._module[0].notes.note
        note("groups/batches", counts.batches)
        note("groups/sampled", counts.sampled)
        note("groups/set_aside", counts.sampled - counts.teaching)
        note("groups/surplus", counts.teaching - counts.trained)
        note("groups/trained", counts.trained)
        note("groups/set_aside_rate", 1 - counts.teaching / max(1, counts.sampled))

    def _cut(self, ranked: Ranked, places: list[int]) -> Ranked | None:
        """The groups at ``places``; where a pass is needed in any case and there are none, one without weight."""
        module = self._module[0]
        if len(places) == len(ranked.batch):
            kept = ranked
        elif places:
            kept = self._of(ranked, places)
        elif module.num_updates > 1 or module.policy.is_sharded:
            one = self._of(ranked, [0]) if len(ranked.batch) > 1 else ranked
            nothing = Ranking(ranks=torch.full_like(one.ranking.ranks, -1))
            kept = replace(one, ranking=nothing, advantages=torch.zeros_like(one.advantages))
        else:
            return None
        if module.policy.is_sharded:  # some have other batches now: all run the tower again, or none
            module.policy.features.forget()
        return kept

    def _of(self, ranked: Ranked, places: list[int]) -> Ranked:
        assert self._encoder is not None
        scores = ranked.ranking.scores
        return Ranked(
            batch=taken(ranked.batch, places, self._encoder),
            completions=completions_of(ranked.completions, places),
            ranking=Ranking(ranks=ranked.ranking.ranks[places], scores=None if scores is None else scores[places]),
            advantages=ranked.advantages[places],
        )


def in_order(teaching: Sequence[Sequence[bool]]) -> list[tuple[int, int]]:
    """Place in the batch and process of every group that teaches, in the epoch's order, which is dealt out in turns.

    Args:
        teaching: of each process, whether the groups of its batch teach.
    """
    longest = max(map(len, teaching), default=0)
    places = ((i, process) for i in range(longest) for process in range(len(teaching)))
    return [(i, process) for i, process in places if i < len(teaching[process]) and teaching[process][i]]
