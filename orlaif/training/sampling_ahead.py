"""The part of a training stage that is about groups in flight: when they begin, end, and go into a checkpoint."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from orlaif.oracles import Oracle, OracleFailure
from orlaif.rollout import BaseRollout
from orlaif.training.ahead import Ahead
from orlaif.training.base import PolicyModule

log = logging.getLogger(__name__)


class SamplesAhead(PolicyModule):
    """A stage whose rollout may sample ahead of the step.

    Args:
        args: of :class:`~orlaif.training.base.PolicyModule`.
    """

    if TYPE_CHECKING:  # of the stage itself
        oracle: Oracle
        rollout: BaseRollout
        on_oracle_failure: OracleFailure

    can_share_prompts = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        #: The groups in flight, while training, where the rollout samples ahead.
        self.ahead: Ahead | None = None
        self._in_flight: list[dict[str, Any]] = []  # of the checkpoint that this run goes on from

    @property
    def batches_ahead(self) -> int:
        """How many batches the rollout samples ahead: :class:`~orlaif.types.LooksAhead`."""
        return self.rollout.staleness

    def check_sharing(self, processes: int) -> None:
        """And where the rollout is not one that a process can do for others."""
        super().check_sharing(processes)
        if self.processes_per_prompt > 1 and not self.rollout.can_be_divided:
            raise ValueError(
                f"policy.sequence_parallel is {self.processes_per_prompt}, and rollout is "
                f"{type(self.rollout).__name__}; it must be one by the policy itself, in the step and without "
                "importance weights, such as orlaif.rollout.Rollout"
            )

    def prepare_reference(self) -> None:
        """Before the policy is sharded: a copy to sample from, or engines elsewhere, where the rollout needs them."""
        super().prepare_reference()
        if self.trainer.training:
            self.rollout.begin(self.policy, whole=self.device_mesh is not None)

    def on_train_start(self) -> None:
        """Begin with the groups that the checkpoint holds, if it is one of a run that sampled ahead."""
        super().on_train_start()
        groups, self._in_flight = self._in_flight, []
        self._end_ahead()
        if self.rollout.samples_apart:
            self.ahead = Ahead(self)
            self.ahead.restore(groups)
            if self.rollout.staleness and not self.oracle.mostly_waits:
                name = type(self.oracle).__name__
                log.info("oracle %s computes where the step does: they take turns, and sampling alone is ahead", name)
        elif groups:
            log.info("rollout.staleness is 0: %d groups in flight of the checkpoint are sampled anew", len(groups))

    def _end_ahead(self) -> None:
        if self.ahead is not None:
            self.ahead.close()
            self.ahead = None

    def teardown(self, stage: str) -> None:
        """Wait for the thread that samples, and end what it samples and asks by."""
        super().teardown(stage)
        self._end_ahead()
        self.rollout.close()
        self.oracle.close()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """And the groups in flight, which this waits for."""
        super().on_save_checkpoint(checkpoint)
        if self.ahead is not None:
            checkpoint["in_flight"] = self.ahead.groups()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """And the groups in flight."""
        super().on_load_checkpoint(checkpoint)
        if self.trainer.training:
            self._in_flight = checkpoint.get("in_flight", [])
