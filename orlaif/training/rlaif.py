"""Oracle-RLAIF as a LightningModule: policy, frozen reference and oracle; the training step reads as the hand-overs.

It differs from the paper (arXiv 2510.02561) in its default mapping, ``dcg`` instead of ``ndcg_penalty`` (see
``orlaif.advantages``), and in keeping the reference fixed unless ``reference.refresh`` says ``epoch``.

Shapes: P prompts, G completions per prompt, T completion tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from orlaif_kernels.arguments import choose
from torch import Tensor, nn

from orlaif.advantages import DCG, Advantage
from orlaif.losses import GRPORankLoss, Loss
from orlaif.oracles import Oracle, OracleFailure
from orlaif.policy import Policy
from orlaif.policy.encoding import ProcessorEncoder
from orlaif.rollout import BaseRollout, Rollout
from orlaif.training.dynamic_sampling import DynamicSampling, Gathering
from orlaif.training.experience import (
    KERNEL_MAPPINGS,
    Experience,
    Part,
    as_experience,
    make_experience,
    rank_together,
)
from orlaif.training.judging import check_judging, warn_of_mapping
from orlaif.training.lengths import Overlong, Truncated, check_lengths
from orlaif.training.log_probs import log_probs
from orlaif.training.sampling_ahead import SamplesAhead
from orlaif.training.step_state import Given
from orlaif.training.update import Update, merged, sum_of
from orlaif.types import Completions, Delivery, KnowsLongest, PromptBatch, Ranking

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The frozen reference of the KL term.

    Args:
        refresh: ``never`` keeps the checkpoint that the run started from; ``epoch`` takes the policy as it is at the
            start of each epoch, as the paper does: a copy of all weights, or, with LoRA, a second adapter.
    """

    refresh: Literal["never", "epoch"] = "never"

    def __post_init__(self) -> None:
        if self.refresh not in ("never", "epoch"):
            raise ValueError(f"reference.refresh is {self.refresh!r}; it must be 'never' or 'epoch'")


class OracleRLAIF(SamplesAhead):
    """Reinforcement learning from an oracle's ranking of each group of answers.

    Args:
        policy: the model to be trained.
        oracle: orders the answers of each group.
        rollout: samples the groups.
        advantage: from an oracle's ranking to advantages.
        loss: what a token adds to the loss; without a ``class_path``, settings of :class:`GRPORankLoss`, the default.
        reference: of the KL term; not loaded where ``loss.kl_coef`` is 0.
        on_oracle_failure: what to do with groups that the oracle cannot rank.
        order_consistency_every_n_steps: how often the oracle is asked twice, with shuffled candidates, to see if it
            looks at positions (``oracle/order_consistency``); 0 = never.
        optimizer: from parameters to an optimizer.
        lr_scheduler: from an optimizer to a scheduler, stepped once per optimizer step.
        eval_max_new_tokens: longest greedy answer in validation, test and prediction.
        seed: of everything random in a training step; by default that of ``seed_everything``.
        microbatch: completions of each group in one forward and backward pass, to save memory; a prompt is then paid
            once per pass. None: the whole group at once.
        num_updates: passes over each rollout (all accumulated batches of it), each with a step of the optimizer; above
            1 the ratio is to the log-probs of the policy that sampled, which one more forward pass computes.
        dynamic_sampling: sets groups aside that teach nothing, and samples further prompts before the optimizer steps;
            by default every group is trained on.
        truncated: what becomes of an answer that ``max_new_tokens`` cut off: ``keep`` = as the oracle says, ``mask`` =
            left out (TRL's ``mask_truncated_completions``), ``last`` = ranked behind all that ended.
        overlong: DAPO's soft penalty of answers that come close to ``max_new_tokens``; None = none.

    Raises:
        ValueError: settings that contradict each other.
    """

    def __init__(
        self,
        policy: Policy,
        oracle: Oracle,
        rollout: BaseRollout | None = None,
        advantage: Advantage | None = None,
        loss: Loss | GRPORankLoss | None = None,
        reference: Reference | None = None,
        on_oracle_failure: OracleFailure | None = None,
        order_consistency_every_n_steps: int = 50,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-6),
        lr_scheduler: LRSchedulerCallable | None = None,
        eval_max_new_tokens: int = 64,
        seed: int | None = None,
        microbatch: int | None = None,
        num_updates: int = 1,
        dynamic_sampling: DynamicSampling | None = None,
        truncated: Truncated = "keep",
        overlong: Overlong | None = None,
    ) -> None:
        super().__init__(policy, optimizer, lr_scheduler, eval_max_new_tokens, seed)
        self.oracle, self.rollout, self.advantage = oracle, rollout or Rollout(), advantage or DCG()
        self.loss: Loss = loss or GRPORankLoss()
        self.reference, self.on_oracle_failure = reference or Reference(), on_oracle_failure or OracleFailure()
        self.order_consistency_every_n_steps = order_consistency_every_n_steps
        self.microbatch, self.num_updates, self.truncated, self.overlong = microbatch, num_updates, truncated, overlong
        if microbatch is not None and microbatch < 1:
            raise ValueError(f"microbatch is {microbatch}; it must be 1 or more completions, or null for whole groups")
        if num_updates < 1:
            raise ValueError(f"num_updates is {num_updates}; it must be 1 or more passes over a rollout")
        check_lengths(truncated, overlong, self.rollout.sampling.max_new_tokens)
        check_judging(oracle, self.advantage, self.rollout.group_size)
        #: Of the batches that are accumulated, where several updates wait for all of them.
        self._experiences: list[Experience] = []
        self.gathering = None if dynamic_sampling is None else Gathering(self, dynamic_sampling)
        self._reference_loaded = False

    def prepare_reference(self) -> None:
        """Freeze the reference, where the loss needs one."""
        super().prepare_reference()
        if self.loss.kl_coef and not self._reference_loaded:
            self.policy.load_reference(refreshed=self.reference.refresh == "epoch")
            self._reference_loaded = True

    def on_fit_start(self) -> None:
        """Refuse a loss or a rollout that cannot run on this device or with this data, before anything is sampled.

        Raises:
            ValueError: ``loss.implementation`` is ``triton`` where it cannot run, or as the rollout says.
        """
        super().on_fit_start()
        self.oracle.bind(self.policy)
        data = getattr(self.trainer, "datamodule", None)
        self.rollout.prepare(self.policy, data.longest_prompt if isinstance(data, KnowsLongest) else lambda: None)
        log.info("plan: %s", self.prompt_cost)
        warn_of_mapping(self)
        try:
            choose(self.loss.implementation, torch.empty(0, device=self.device))
        except RuntimeError as error:
            raise ValueError(f"loss.implementation: {error}; use 'auto'") from None

    @property
    def prompt_cost(self) -> str:
        """How often a step pays for a prompt and its video, in words."""
        g, once = self.rollout.group_size, self.policy.layout != "duplicate"
        passes, in_words = self.passes(g, self.microbatch)
        times = passes if once else g
        cost = f"each prompt goes once through the rollout and {times} x through the policy"
        if self.loss.kl_coef:
            cost += f" and {times} x through the reference"
        if not once:
            return f"{cost}: prefix: duplicate pays for it with each of {g} completions"
        return f"{cost}: {in_words}"

    @property
    def longest_answer(self) -> int:
        """Tokens of the longest answer, sampled or greedy."""
        return max(super().longest_answer, self.rollout.sampling.max_new_tokens)

    def prompt_encoder(self, processor: str | None, system_prompt: str | None) -> ProcessorEncoder:
        """As for all stages; with dynamic sampling, another of the kind takes groups out of a batch."""
        encoder = super().prompt_encoder(processor, system_prompt)
        if self.gathering is not None:
            self.gathering.encode_by(encoder)
        return encoder

    def on_train_start(self) -> None:
        """With dynamic sampling, the optimizer steps when enough groups are gathered."""
        super().on_train_start()
        if self.gathering is not None:
            self.gathering.begin_run()

    def on_train_batch_start(self, batch: Delivery, batch_idx: int) -> None:
        """With dynamic sampling, sample and rank, for Lightning must know beforehand whether the optimizer steps."""
        super().on_train_batch_start(batch, batch_idx)
        if self.gathering is not None:
            with self.trainer.precision_plugin.train_step_context():
                self.gathering.gather(batch, batch_idx)

    def begins_step(self, batch_idx: int) -> bool:
        """Whether this batch is the first one behind a step of the optimizer."""
        return super().begins_step(batch_idx) if self.gathering is None else self.gathering.begins_step(batch_idx)

    def is_stepping(self, batch_idx: int) -> bool:
        """Whether this batch is the last one before the optimizer steps."""
        return super().is_stepping(batch_idx) if self.gathering is None else self.gathering.is_stepping

    def on_train_epoch_start(self) -> None:
        """Refresh the reference where the recipe says so."""
        if self.reference.refresh == "epoch" and self.current_epoch > 0 and self.loss.kl_coef:
            self.policy.refresh_reference()

    def _is_reloaded(self, name: str, parameter: nn.Parameter) -> bool:
        if self.reference.refresh == "epoch" and name.startswith("policy.reference."):
            return False
        return super()._is_reloaded(name, parameter)

    @final
    def advantages(self, ranking: Ranking, completions: Completions) -> Tensor:
        """f32[P, G] (or f32[P, G, T]) by the recipe's mapping, which is given both on the completions' device."""
        return self.advantage(ranking.to(completions.device), completions).to(completions.device)

    def training_step(self, delivery: Delivery, batch_idx: int) -> Tensor:
        """One batch: its experience, and, behind the last batch that is accumulated, the updates."""
        experience = self._gathered(delivery, batch_idx) if self.gathering else self._sampled(delivery, batch_idx)
        if experience is None:
            return self.empty_step(batch_idx)
        self._experiences.append(experience)
        if self.num_updates > 1 and not self.is_stepping(batch_idx):
            self.log_noted()
            return self.postponed()
        experiences, self._experiences = self._experiences, []
        normalizer = sum_of([one.normalizer for one in experiences])
        self.step_state.begin_policy()
        updates = []
        for _ in range(self.num_updates - 1):
            updates.append(self._update(experiences, normalizer))
            self.backward_part(updates[-1].last_loss)
            self.inner_update(normalizer)
        updates.append(self._update(experiences, normalizer))
        for name in updates[0].metrics:
            values = torch.stack([update.metrics[name] for update in updates])
            tokens = torch.stack([update.tokens for update in updates])
            self.notes.note(f"train/{name}", values.mean(), normalizer if name == "loss" else tokens.sum())
        self.log_noted()
        return self.accumulate(updates[-1].last_loss, normalizer, batch_idx)

    def begin_batch(self, delivery: Delivery, batch_idx: int) -> Given | None:
        """What a batch is sampled for, if anything, everything random about it seeded."""
        generators = self.seed_step(delivery.batch, batch_idx)
        if self.ahead is not None:
            self.ahead.begin_step(delivery, batch_idx)
        return self.given(delivery, generators, always=self.num_updates > 1)

    def note_delivery(self, delivery: Delivery, completions: Iterable[Completions]) -> None:
        """Note a batch that was sampled, with the tokens of its prompts and their answers."""
        read, written = delivery.batch.attention_mask.sum(), sum(int(one.lengths.sum()) for one in completions)
        self.notes.delivery(delivery, int(read) + written)

    def _sampled(self, delivery: Delivery, batch_idx: int) -> Experience | None:
        """The experience of all groups of a batch; None where there are none and no pass is needed."""
        given = self.begin_batch(delivery, batch_idx)
        if given is None:
            rank_together(self, None)
            return None
        experience = make_experience(self, given.batch, given.generators, batch_idx, given.counts)
        if given.counts:
            self.note_delivery(delivery, [experience.completions])
        return experience

    def _gathered(self, delivery: Delivery, batch_idx: int) -> Experience | None:
        """That of the groups that dynamic sampling has kept of the batch, likewise."""
        assert self.gathering is not None
        self.seed_step(delivery.batch, batch_idx)
        kept = self.gathering.take()
        return None if kept is None else as_experience(self, kept, log_probs(self, kept.batch, kept.completions))

    def _update(self, experiences: list[Experience], normalizer: Tensor) -> Update:
        """Forward passes over all parts, and backward passes over all but the last, which is left to the caller."""
        parts = [(experience.batch, part) for experience in experiences for part in experience.parts]
        metrics: list[dict[str, Tensor]] = []
        for number, (batch, part) in enumerate(parts, 1):
            total, of_part = self._loss_of(batch, part)
            metrics.append(of_part)
            if number < len(parts):
                self.backward_part(total)
        tokens = torch.stack([part.mask.sum() for _, part in parts])
        whole = merged(metrics, tokens)
        whole["loss"] = whole["loss"] / normalizer.clamp(min=1)
        return Update(last_loss=total, metrics=whole, tokens=tokens.sum())

    def _loss_of(self, batch: PromptBatch, part: Part) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a part, undivided, and its metrics."""
        of_tokens = {"mask": part.mask, "old_logps": part.old, "ref_logps": part.reference}
        of_tokens |= {"token_weights": part.weights, "advantages": part.advantages if part.ranks is None else None}
        tokens: dict[str, Any] = {name: None if x is None else x.flatten(0, 1) for name, x in of_tokens.items()}
        tokens |= {"temperature": self.rollout.sampling.temperature, "normalizer": 1.0}
        if part.ranks is not None:
            mapping = KERNEL_MAPPINGS[type(self.advantage)]
            tokens |= {"ranks": part.ranks, "group_size": part.ranks.shape[1], "mapping": mapping}
        ids = part.completions.ids.flatten(0, 1)
        with self.divided():
            if not self.loss.fused_head:
                return self.loss.of_logits(self.policy.completion_logits(batch, part.completions), ids, **tokens)
            hidden, head = self.policy.completion_hidden(batch, part.completions)
        return self.loss.of_hidden(hidden, head.pop("weight"), ids, **head, **tokens)
