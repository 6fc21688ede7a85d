"""Training a preference ranker: the paper's oracle, from answers that have been compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from orlaif.distributed import sharding
from orlaif.distributed.sharding import Sharding
from orlaif.distributed.sync import exchange
from orlaif.evaluation.loop import Evaluated, Loop
from orlaif.oracles.preference import bradley_terry_loss, plackett_luce_loss
from orlaif.oracles.ranker_model import ListwiseRanker, Ranker
from orlaif.policy import Policy
from orlaif.training.base import PolicyModule
from orlaif.types import Delivery, PreferencePrompt, PromptBatch

PreferenceLoss = Literal["bradley_terry", "plackett_luce"]


class PreferenceRankerTraining(PolicyModule):
    """Fits a scalar head on a video-language model, and the model with it, to preferences.

    The loss is averaged over all pairs (or choices) of all accumulated batches and processes. Validation and test log
    ``<stage>/pair_accuracy``, the share of ordered pairs whose scores are in that order.

    Args:
        policy: the backbone.
        loss: ``bradley_terry`` (all pairs that the ranks order) or ``plackett_luce`` (the ranking as a whole).
        optimizer: from parameters to an optimizer.
        lr_scheduler: from an optimizer to a scheduler, stepped once per optimizer step.
        system_prompt: goes before every question in the oracle, if given; the same as in the data's recipe.
        seed: of everything random in a training step; by default that of ``seed_everything``.

    Raises:
        ValueError: an unknown loss.
    """

    def __init__(
        self,
        policy: Policy,
        loss: PreferenceLoss = "bradley_terry",
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-5),
        lr_scheduler: LRSchedulerCallable | None = None,
        system_prompt: str | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(policy, optimizer, lr_scheduler, 1, seed)
        if loss not in get_args(PreferenceLoss):
            raise ValueError(f"loss is {loss!r}; it must be 'bradley_terry' or 'plackett_luce'")
        self.loss = loss
        self.system_prompt = system_prompt
        self.head: nn.Linear | None = None
        self.loops = {"validate": PairAccuracy("val"), "test": PairAccuracy("test"), "predict": Scores()}

    @property
    def ranker(self) -> Ranker:
        """The model that is trained: backbone and head, as the oracle will run them."""
        return Ranker(self.policy, self.head, self.system_prompt)

    def configure_model(self) -> None:
        """Load the backbone and make the head; idempotent."""
        super().configure_model()
        if self.head is None:
            head = self.ranker.load().head
            assert head is not None
            self.head = head.to(self.device)
            if self.device_mesh is not None:
                sharding.shard(self.head, self.head, self.device_mesh["data_parallel"], Sharding())

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Within it, sharded weights are whole, those of the head too."""
        with super().gathered(), sharding.gathered(self.head):
            yield

    def trained_parameters(self) -> list[nn.Parameter]:
        """Parameters that the optimizer moves: the backbone's, then the head's."""
        assert self.head is not None
        return [*super().trained_parameters(), *self.head.parameters()]

    def export(self, folder: str, merge: bool = True) -> None:
        """Write the folder that ``PreferenceRanker`` loads; an adapter is merged in any case."""
        self.ranker.export(folder)

    def scores_of(
        self, batch: PromptBatch, answers: Sequence[Sequence[str]], generators: Sequence[torch.Generator] | None
    ) -> Tensor:
        """Scores f32[P, G], NaN where there is no answer; ``generators`` of the prompts in training only."""
        return self.ranker(batch, answers)

    def scored(self, batch: PromptBatch, generators: Sequence[torch.Generator] | None = None) -> tuple[Tensor, Tensor]:
        """Scores f32[P, G] and ranks i64[P, G], -1 where there is no answer."""
        prompts: list[PreferencePrompt] = []
        for prompt in batch.prompts:
            if not isinstance(prompt, PreferencePrompt):
                raise ValueError(f"prompt {prompt.id!r} has no compared answers; train a ranker on preference data")
            prompts.append(prompt)
        scores = self.scores_of(batch, [prompt.answers for prompt in prompts], generators)
        ranks = torch.full(scores.shape, -1, dtype=torch.int64)
        for row, prompt in zip(ranks, prompts, strict=True):
            row[: len(prompt.ranks)] = torch.tensor(prompt.ranks)
        ranks = ranks.to(scores.device)
        return scores.masked_fill(ranks < 0, 0.0), ranks

    def training_step(self, delivery: Delivery, batch_idx: int) -> Tensor:
        """Loss (a scalar) of the orders of one batch of compared answers."""
        given = self.given(delivery, self.seed_step(delivery.batch, batch_idx))
        if given is None:
            return self.empty_step(batch_idx)
        self.step_state.begin_policy()
        scores, ranks = self.scored(given.batch, given.generators)
        likelihood = bradley_terry_loss if self.loss == "bradley_terry" else plackett_luce_loss
        total, count = given.weigh(*likelihood(scores, ranks))
        self.notes.note("train/loss", total.detach() / count.clamp(min=1), count)
        if given.counts:
            right, pairs = pair_accuracy(scores.detach(), ranks)
            self.notes.note("train/pair_accuracy", right / pairs.clamp(min=1), pairs)
            self.notes.delivery(delivery, int(given.batch.attention_mask.sum()))
        self.log_noted()
        return self.accumulate(total, count.float(), batch_idx)

    def stand_in(self) -> PromptBatch:
        """A synthetic prompt with two answers."""
        batch = super().stand_in()
        compared = [PreferencePrompt(**vars(prompt), answers=("a", "b"), ranks=(0, 1)) for prompt in batch.prompts]
        return replace(batch, prompts=tuple(compared))


class ListwiseRankerTraining(PreferenceRankerTraining):
    """Fits a ranker that reads a group as one row, each answer in sight of those before it.

    In training each group is read once, in an order drawn anew each time; validation and test read it as the oracle
    does, in two orders. Settings as of :class:`PreferenceRankerTraining`, but for the default of ``loss``.

    Args:
        policy: the backbone.
        loss: ``plackett_luce`` (the ranking as a whole) or ``bradley_terry`` (all pairs that the ranks order).
        optimizer: from parameters to an optimizer.
        lr_scheduler: from an optimizer to a scheduler, stepped once per optimizer step.
        system_prompt: goes before every question in the oracle, if given; the same as in the data's recipe.
        seed: of everything random in a training step; by default that of ``seed_everything``.

    Raises:
        ValueError: an unknown loss.
    """

    def __init__(
        self,
        policy: Policy,
        loss: PreferenceLoss = "plackett_luce",
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-5),
        lr_scheduler: LRSchedulerCallable | None = None,
        system_prompt: str | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(policy, loss, optimizer, lr_scheduler, system_prompt, seed)

    @property
    def ranker(self) -> ListwiseRanker:
        """The model that is trained: backbone and head, as the oracle will run them."""
        return ListwiseRanker(self.policy, self.head, self.system_prompt)

    def scores_of(
        self, batch: PromptBatch, answers: Sequence[Sequence[str]], generators: Sequence[torch.Generator] | None
    ) -> Tensor:
        """Scores f32[P, G], of mean 0 in a group, NaN where there is no answer; in training from one drawn order."""
        if generators is None:
            return self.ranker(batch, answers)
        orders = [
            [torch.randperm(len(members), generator=one, device=one.device).tolist()]
            for members, one in zip(answers, generators, strict=True)
        ]
        return self.ranker(batch, answers, orders)


class PairAccuracy(Loop):
    """``<stage>/pair_accuracy``: the share of ordered pairs whose scores are in that order, over all processes.

    Args:
        stage: first part of the metric's name.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._pairs: dict[str, tuple[float, int]] = {}

    def start(self, module: Evaluated) -> None:
        """Forget the pairs of an evaluation that was broken off."""
        self._pairs = {}

    def step(self, module: Evaluated, delivery: Delivery, batch_idx: int) -> None:
        """Count, for each prompt of a batch, the pairs that the scores put in the order of the ranks."""
        assert isinstance(module, PreferenceRankerTraining)
        if batch := delivery.batch:
            for prompt, scores, ranks in zip(batch.prompts, *module.scored(batch), strict=True):
                right, pairs = pair_accuracy(scores[None], ranks[None])
                self._pairs[prompt.id] = float(right), int(pairs)

    def end(self, module: Evaluated) -> None:
        """Log; what two processes were given counts once."""
        everyone: dict[str, tuple[float, int]] = {}
        for theirs in exchange(self._pairs):
            everyone |= theirs
        if pairs := sum(number for _, number in everyone.values()):
            accuracy = sum(right for right, _ in everyone.values()) / pairs
            module.log(f"{self.stage}/pair_accuracy", accuracy, prog_bar=True, sync_dist=True)


class Scores(Loop):
    """Scores f32[P, G] of the compared answers, returned."""

    def step(self, module: Evaluated, delivery: Delivery, batch_idx: int) -> Any:
        """Scores f32[P, G] of the answers of a batch."""
        assert isinstance(module, PreferenceRankerTraining)
        return module.scored(delivery.batch)[0]


def pair_accuracy(scores: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """How many of the pairs that the ranks order have their scores in that order; a tie of scores counts half.

    Args:
        scores: f[P, G].
        ranks: i64[P, G], -1 = no answer.

    Returns:
        Right ones and all pairs, 0-dim.
    """
    valid = ranks >= 0
    better = (ranks.unsqueeze(-1) < ranks.unsqueeze(-2)) & valid.unsqueeze(-1) & valid.unsqueeze(-2)
    margins = scores.unsqueeze(-1) - scores.unsqueeze(-2)
    right = (margins > 0).double() + 0.5 * (margins == 0).double()
    return (right * better).sum(), better.sum()
