"""The groups in flight: sampled and judged ahead of their step (``orlaif.rollout.pipeline``).

At the start of a training step the weights of that moment are taken, and the batch ``staleness`` places on goes to a
thread that samples; an oracle that waits for others is asked on a thread behind it. Which weights a group comes from
is thereby a matter of the batch's number alone, not of time: the run is the same however fast its parts are.

A checkpoint holds the groups that were begun before the last step of the optimizer and are still to be trained on: a
run that goes on has no longer the weights that they come from. All others it samples again, by the same weights.

Shapes: P prompts, G completions per prompt.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from orlaif.distributed.sync import exchange
from orlaif.oracles import Asked, Exchange
from orlaif.policy import Policy
from orlaif.stages import stage
from orlaif.training.in_flight import Group, Groups, candidate_groups, groups_of, joined, overlaid
from orlaif.training.worker import Worker
from orlaif.types import Completions, Delivery, PromptBatch, Ranking

if TYPE_CHECKING:
    from orlaif.training.sampling_ahead import SamplesAhead


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A ranking that is there already, as :class:`~orlaif.oracles.Asked` has it."""

    ranking: Ranking
    seconds: float = 0.0
    waited: float = 0.0
    counts: Mapping[str, float]
    exchanges: Sequence[Exchange] = ()

    def result(self) -> Ranking:
        """The ranking of all P groups."""
        return self.ranking


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """A batch behind its rollout.

    Args:
        completions: of P prompts.
        asked: the oracle at work on them, or behind it; None for a stand-in.
        seconds: that sampling took.
    """

    completions: Completions
    asked: Asked | Answered | None
    seconds: float = 0.0


@dataclass
class Job:
    """A batch in flight.

    Args:
        epoch: of the batch.
        step: of the optimizer, at which sampling began; -1: in the run that this one goes on from.
        batch: P prompts.
        sampled: on the CPU; to be waited for.
        used_at: step of the optimizer that it was used in; None: still to be.
    """

    epoch: int
    step: int
    batch: PromptBatch
    sampled: Future[Sampled]
    used_at: int | None = None


class Ahead:
    """Samples ahead for one run.

    Args:
        module: whose rollout and oracle are used.
    """

    def __init__(self, module: SamplesAhead) -> None:
        self.module = module
        self.turns = threading.Lock()
        self._worker = Worker("orlaif-rollout")
        self._jobs: dict[int, Job] = {}  # by the batch's number in the epoch
        self._restored: Groups = {}
        self._stream = torch.cuda.Stream(module.device) if module.device.type == "cuda" else None

    # -------------------------------------------------------------- a step

    def begin_step(self, delivery: Delivery, batch_idx: int) -> None:
        """Begin on the batches behind this one; on this one too, where an epoch or a run begins.

        All processes must call it.

        Args:
            delivery: of the step.
            batch_idx: of the step.

        Raises:
            ValueError: a precision that sets torch's default dtype, which all threads have in common.
        """
        if torch.get_default_dtype() != torch.float32:
            raise ValueError(
                "trainer.precision sets torch's default dtype, which sampling on another thread would meet at some "
                "times and not at others; use policy.dtype: bfloat16 with precision 32-true or bf16-mixed, or "
                "rollout.staleness: 0"
            )
        module, step = self.module, self.module.global_step
        epoch = module.current_epoch
        self._drop_done(epoch, batch_idx)
        self.wait()  # for those whose weights are about to be replaced
        policy = module.rollout.take_weights(module.policy, delivery.batch)
        left = module.trainer.num_training_batches - batch_idx
        for number, batch in enumerate((delivery.batch, *delivery.following), batch_idx):
            if batch is None or not len(batch) or number - batch_idx >= left or number in self._jobs:
                continue
            recorded = [self._restored.get((epoch, prompt.id)) for prompt in batch.prompts]
            if all(group is not None for group in recorded):
                self._jobs[number] = Job(epoch=epoch, step=-1, batch=batch, sampled=self._as_recorded(batch, recorded))
            else:
                sampled = self._begin(policy, batch.to(module.device), recorded)
                self._jobs[number] = Job(epoch=epoch, step=step, batch=batch, sampled=sampled)
        self._policy = policy

    def wait(self) -> None:
        """Until nothing is being sampled, and the rollout may be used from here."""
        wait([job.sampled for job in self._jobs.values()])

    def policy_now(self, batch: PromptBatch) -> Policy:
        """The weights of this moment, to call the rollout with from here; all processes must call.

        Args:
            batch: to be sampled.
        """
        self.wait()
        return self.module.rollout.take_weights(self.module.policy, batch)

    def _drop_done(self, epoch: int, batch_idx: int) -> None:
        """Forget the groups that a step of the optimizer has been made of."""
        step = self.module.global_step
        for number, job in list(self._jobs.items()):
            if job.epoch != epoch or (number < batch_idx and job.used_at != step):
                del self._jobs[number]
                for prompt in job.batch.prompts:
                    self._restored.pop((job.epoch, prompt.id), None)
        self._restored = {key: group for key, group in self._restored.items() if key[0] == epoch}

    def take(self, batch: PromptBatch, batch_idx: int, counts: bool) -> Sampled:
        """What was sampled for this batch, waited for if need be; a stand-in is sampled now.

        Args:
            batch: P prompts.
            batch_idx: of the step.
            counts: False for a stand-in.

        Raises:
            Exception: as the rollout.
        """
        start = time.perf_counter()
        if counts:
            job = self._jobs[batch_idx]
            job.used_at = self.module.global_step
            if [prompt.id for prompt in job.batch.prompts] != [prompt.id for prompt in batch.prompts]:
                raise RuntimeError(f"batch {batch_idx} is another one than was sampled ahead")
            future = job.sampled
        else:
            future = self._begin(self._policy, batch, (), asks=False)
        sampled = future.result()
        self.module.notes.note("time/rollout_wait", time.perf_counter() - start)
        completions = sampled.completions.to(self.module.device)
        return Sampled(completions=completions, asked=sampled.asked, seconds=sampled.seconds)

    def _begin(self, policy: Any, batch: PromptBatch, recorded: Any, asks: bool = True) -> Future[Sampled]:
        """Sample on the thread, and ask; ``recorded`` groups of an earlier run take the place of new ones."""
        module, device = self.module, self.module.device
        generators = module.generators_of(batch)
        cast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        ready = None if self._stream is None else torch.cuda.current_stream(device).record_event()

        def sample() -> Sampled:
            start = time.perf_counter()
            with ExitStack() as stack:
                stack.enter_context(stage("rollout"))
                if self._stream is not None and ready is not None:
                    stack.enter_context(torch.cuda.stream(self._stream))
                    self._stream.wait_event(ready)
                if cast is not None:  # which is a thread's own
                    stack.enter_context(torch.autocast(device.type, dtype=cast))
                completions = module.rollout(policy, batch, generators).to("cpu")
                completions = overlaid(completions, recorded, module.policy.pad_id)
            asked = self._ask(batch, completions) if asks else None
            return Sampled(completions=completions, asked=asked, seconds=time.perf_counter() - start)

        return self._worker.submit(sample)

    def _as_recorded(self, batch: PromptBatch, recorded: list[Group | None]) -> Future[Sampled]:
        """What an earlier run sampled; asked about where that run had no ranking."""
        completions, ranking = joined([group for group in recorded if group is not None], self.module.policy.pad_id)
        asked = self._ask(batch, completions) if ranking is None else Answered(ranking=ranking, counts={})
        future: Future[Sampled] = Future()
        future.set_result(Sampled(completions=completions, asked=asked))
        return future

    def _ask(self, batch: PromptBatch, completions: Completions) -> Asked:
        module = self.module
        groups = candidate_groups(batch, completions, module.policy.answer_format)
        return Asked(module.oracle, groups, module.on_oracle_failure, self.turns)

    # ------------------------------------------------------- checkpoints

    def groups(self) -> list[dict[str, Any]]:
        """The groups of all processes that a checkpoint must hold, in plain values; waits for those under way."""
        step = self.module.global_step
        mine: Groups = dict(self._restored)
        for job in self._jobs.values():
            done = job.used_at is not None and job.used_at < step
            for prompt in job.batch.prompts:
                if done:
                    mine.pop((job.epoch, prompt.id), None)
            if done or job.step == step:
                continue
            try:
                sampled = job.sampled.result()
            except Exception:  # comes up at its own step
                continue
            mine |= groups_of(job.epoch, job.batch, sampled.completions, _ranking(sampled.asked))
        return [group for one in exchange([group.plain() for group in mine.values()]) for group in one]

    def restore(self, groups: list[dict[str, Any]]) -> None:
        """Go on with the groups of a checkpoint."""
        self._restored = {(group.epoch, group.prompt_id): group for group in map(Group.of_plain, groups)}

    def close(self) -> None:
        """Wait for the thread."""
        self._worker.close()


def _ranking(asked: Asked | Answered | None) -> Ranking | None:
    """What was answered; None where the oracle is asked at the step, or has failed."""
    if asked is None or (isinstance(asked, Asked) and not asked.is_ahead):
        return None
    try:
        return asked.result()
    except Exception:  # comes up at its own step
        return None
