"""What a step of the optimizer carries from one hook of Lightning to the next; what stands in for an empty batch."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from orlaif.stages import stage
from orlaif.training.notes import elapsed
from orlaif.types import PromptBatch


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a training step works on: the batch of its delivery, or a stand-in for an empty one.

    Where weights are sharded, and where several updates wait for all batches of a rollout, all processes must run the
    same layers, so one without a prompt runs a synthetic one, which carries no weight.

    Args:
        batch: P prompts.
        generators: P, for what is random about them.
        counts: whether it is the delivery's.
    """

    batch: PromptBatch
    generators: list[torch.Generator]
    counts: bool

    def weigh(self, total: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """A loss and what it counts, 0-dim; zero for a stand-in, whose gradients are then zeros."""
        return (total, count) if self.counts else (total * 0.0, count * 0)


class StepState:
    """One step of the optimizer, from its first batch to its gradients. Used in this order:

    1. in ``training_step``, for each accumulated batch: :meth:`begin_policy` where the passes of the policy begin, and
       :meth:`hand_over` at its end, with what the batch counts, or :meth:`postpone`, where its loss comes later;
    2. Lightning goes backward;
    3. ``on_after_backward``: :meth:`policy_s`, and :meth:`take`, which gives the normaliser once all batches are in.
    """

    def __init__(self) -> None:
        self._normalizer: Tensor | None = None
        self._is_last = False
        self._policy_start = 0.0
        self._passes = ExitStack()

    def begin_policy(self) -> None:
        """Note the time: the policy's passes of this batch begin now."""
        self._passes.close()
        self._passes.enter_context(stage("policy"))
        self._policy_start = time.perf_counter()

    def hand_over(self, normalizer: Tensor, is_last: bool) -> None:
        """The loss of a batch goes to Lightning.

        Args:
            normalizer: 0-dim, what its tokens count together.
            is_last: the optimizer steps behind it.
        """
        self._normalizer = normalizer if self._normalizer is None else self._normalizer + normalizer
        self._is_last = is_last

    def postpone(self) -> None:
        """Nothing of this batch goes backward yet."""
        self._is_last = False
        self.begin_policy()

    def policy_s(self, device: torch.device) -> float:
        """Seconds since :meth:`begin_policy`, once ``device`` has finished its work."""
        self._passes.close()
        return elapsed(self._policy_start, device)

    def take(self) -> Tensor | None:
        """What all batches of the step count together, 0-dim; None where further ones come. Begins the next step."""
        if not self._is_last:
            return None
        normalizer, self._normalizer = self._normalizer, None
        assert normalizer is not None, "take() behind hand_over()"
        return normalizer
