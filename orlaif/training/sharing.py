"""The part of the training stages that is about processes which share their prompts (``policy.sequence_parallel``).

The n processes of a sequence group are given the same prompts. Each samples some of them
(``orlaif.training.divided_rollout``); the first asks the oracle and notes what there is to say of a group; all train,
each on its own completions (``orlaif.policy.sequence``). A loss over those and what they count are this process's
parts, which are summed over all processes as ever.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from orlaif.distributed.sequence import SequenceGroup, check_divides, sequence_group
from orlaif.distributed.sync import exchange
from orlaif.policy.sequence import check_divided, check_divisible, collected, dealt, dealt_completions, divided
from orlaif.training.resumable import ResumableModule
from orlaif.types import Completions, PromptBatch


class SharesPrompts(ResumableModule):
    """A stage whose prompts may be shared by several processes.

    Args:
        args: of :class:`~orlaif.training.resumable.ResumableModule`.
    """

    #: Whether this stage can train so.
    can_share_prompts = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        #: The processes that share this one's prompts, while training, if they do.
        self.sequence: SequenceGroup | None = None

    @property
    def processes_per_prompt(self) -> int:
        """How many processes are given each prompt: :class:`~orlaif.types.DealsPrompts`."""
        return self.policy.sequence_parallel

    @property
    def leads(self) -> bool:
        """Whether this process speaks for its prompts: the first of those that share them."""
        return self.sequence is None or self.sequence.index == 0

    def passes(self, group_size: int, microbatch: int | None) -> tuple[int, str]:
        """How many passes a process makes behind each prompt, and the same in words.

        Args:
            group_size: completions of a prompt, which those that share it deal out.
            microbatch: most completions in a pass; None is all that it has.
        """
        n = self.processes_per_prompt
        own = -(-group_size // n)
        size = min(microbatch or own, own)
        number = -(-own // size)
        said = (
            f"{number} pass{'es' if number > 1 else ''} of up to {size} of {group_size} completions behind one prompt"
        )
        return number, said if n == 1 else f"{said}, on each of the {n} processes that share it"

    def check_sharing(self, processes: int) -> None:
        """Before anything is loaded: raise ValueError where prompts cannot be shared as the recipe says.

        Args:
            processes: of the run, which need not have started yet.
        """
        if (number := self.processes_per_prompt) == 1:
            return
        if not self.can_share_prompts:
            raise ValueError(
                f"policy.sequence_parallel is {number}, which {type(self).__name__} does not know; set it to 1"
            )
        check_divides(number, processes)

    def begin_sharing(self) -> None:
        """Once the policy is loaded, by all processes: find those that share this one's prompts.

        Raises:
            ValueError: a model whose rows cannot be divided.
        """
        if self.processes_per_prompt > 1 and self.sequence is None and self.trainer.training:
            check_divisible(self.policy)
            self.sequence = sequence_group(self.processes_per_prompt)
            self.notes.counts = self.leads

    def try_sharing(self) -> None:
        """Before the first step, by all processes: raise ValueError where the model is another one when divided.

        Whether the vision tower can be divided is found out as well.
        """
        if self.sequence is not None:
            with self.trainer.precision_plugin.train_step_context():
                self.sequence = check_divided(self.policy, self.sequence)

    def divided(self) -> AbstractContextManager[None]:
        """A context in which passes of the policy share their prompts, if any are shared."""
        return divided(self.policy, self.sequence)

    def own(self, x: Tensor, fill: bool | None = None) -> Tensor:
        """Of values [P, G, ...] of completions, those of this process's (:func:`~orlaif.policy.sequence.dealt`)."""
        return x if self.sequence is None else dealt(x, self.sequence, fill)

    def own_completions(self, completions: Completions) -> Completions:
        """This process's completions; all of them where it shares with none."""
        return dealt_completions(completions, self.sequence)

    def of_all(self, own: Tensor | None, group_size: int) -> Tensor | None:
        """Reverses :meth:`own`, without gradient; all processes that share prompts must call."""
        return None if own is None else collected(own, group_size, self.sequence)

    def check_same_prompts(self, batch: PromptBatch) -> None:
        """Raise RuntimeError on all processes where any that share prompts were given others; all must call."""
        if self.sequence is None:
            return
        everyone, n = exchange([prompt.id for prompt in batch.prompts]), self.sequence.size
        for index, ids in enumerate(everyone):
            if ids != everyone[index - index % n]:
                raise RuntimeError(
                    f"process {index} shares the prompts of process {index - index % n} (policy.sequence_parallel: "
                    f"{n}), but was given others: a video that can be read on one and not on the other?"
                )
