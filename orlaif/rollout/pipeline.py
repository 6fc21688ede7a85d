"""Sampling ahead: while a step trains, the groups of the next batches are sampled and judged.

The step's groups then come from weights that are up to ``staleness`` updates old. Their log-probs are those by which
they were sampled, and the importance correction of the rollout weighs them for the policy of the step. Who holds the
groups in flight, and puts them into a checkpoint, is ``orlaif.training.ahead``.

Timing: with sampling S, judging J and training T seconds, a step takes max(T, S + J) at ``staleness: 1``, and at 2 or
more the longest of the three.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from orlaif.policy import Policy
from orlaif.rollout.base import BaseRollout
from orlaif.rollout.correction import ImportanceCorrection
from orlaif.types import Completions, PromptBatch


class Pipelined(BaseRollout):
    """A rollout whose groups are sampled ahead of the step that trains on them.

    An engine that samples by the policy itself is given a copy of what is trained (of an adapter alone, with LoRA);
    vLLM has weights of its own. Oracles that wait for a server are asked ahead as well. Others compute where the step
    does, and take turns with it: they are asked at the step of their groups.

    Args:
        engine: samples.
        staleness: how many batches ahead, so that weights are at most so many updates old; 0 is the engine alone. The
            first batches of an epoch are sampled by the weights at its start.
        correction: for the older weights; by default the engine's, or else the default one
            (:class:`~orlaif.rollout.correction.ImportanceCorrection`).

    Raises:
        ValueError: a ``staleness`` below 0, an engine that is sampled ahead itself, or settings of the engine that only
            work in step with the training.
    """

    def __init__(self, engine: BaseRollout, staleness: int = 1, correction: ImportanceCorrection | None = None) -> None:
        if staleness < 0:
            raise ValueError(f"rollout.staleness is {staleness}; it must be 0 (off) or more batches")
        if engine.samples_apart:
            raise ValueError(f"rollout.engine is {type(engine).__name__}, which samples ahead itself; name it alone")
        if staleness:
            engine.check_ahead()
        correction = correction or engine.correction
        if staleness:
            correction = correction or ImportanceCorrection()
        super().__init__(engine.group_size, engine.sampling, engine.importance_cap, correction)
        self.engine, self.staleness = engine, staleness

    def __call__(self, policy: Policy, batch: PromptBatch, generator: Sequence[torch.Generator]) -> Completions:
        """G completions of each prompt, by the engine."""
        return self.engine(policy, batch, generator)

    def prepare(self, policy: Policy, longest: Callable[[], tuple[int, str] | None]) -> None:
        """Refuse what the engine cannot do."""
        self.engine.prepare(policy, longest)

    def check_room(self, batch: PromptBatch) -> None:
        """Refuse what the engine has no room for."""
        self.engine.check_room(batch)

    @property
    def engine_sleeps(self) -> bool:
        """Whether the engine does."""
        return self.engine.engine_sleeps

    def begin(self, policy: Policy, whole: bool) -> None:
        """As the engine needs it."""
        self.engine.begin(policy, whole)
        if self.staleness:
            self.engine.begin_ahead(policy, whole)

    def close(self) -> None:
        """Close the engine."""
        self.engine.close()

    def take_counts(self) -> dict[str, float]:
        """Those of the engine."""
        return self.engine.take_counts()

    def take_weights(self, policy: Policy, batch: PromptBatch) -> Policy:
        """What the engine samples from."""
        return self.engine.take_weights(policy, batch)

    def engine_memory(self, gpu_memory: float) -> int:
        """That of the engine."""
        return self.engine.engine_memory(gpu_memory)
