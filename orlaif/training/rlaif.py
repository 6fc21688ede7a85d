"""Oracle-RLAIF as a LightningModule: policy, frozen reference and oracle; the training step reads as the hand-overs.

It differs from the paper (arXiv 2510.02561) in its default mapping, ``dcg`` instead of ``ndcg_penalty`` (see
``orlaif.advantages``), and in keeping the reference fixed unless ``reference.refresh`` says ``epoch``.

Shapes: P prompts, G completions per prompt, T completion tokens.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from orlaif_kernels.arguments import choose
from torch import Tensor, nn

from orlaif.advantages import DCG, Advantage
from orlaif.distributed.sync import exchange, raise_together
from orlaif.losses import GRPORankLoss, grpo_rank_loss, linear_grpo_rank_loss, loss_weights
from orlaif.oracles import Asked, Oracle, OracleFailure, order_consistency
from orlaif.policy import Policy, evaluating
from orlaif.rollout import BaseRollout, Rollout
from orlaif.training.base import PolicyModule, prompt_generators
from orlaif.training.metrics import rank_metrics
from orlaif.types import CandidateGroup, Completions, Delivery, OracleError, PromptBatch, Ranking

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


@dataclass(frozen=True, kw_only=True)
class Experience:
    """A batch after its rollout: all that updates need, in parts of the groups (``microbatch``).

    Args:
        batch: P prompts.
        parts: their completions, P x g each.
        masks: bool[P, g, T], the tokens that count.
        advantages: f32[P, g].
        reference: f32[P * g, T], log-probs of the frozen reference, where the loss has a KL term.
        old: f32[P * g, T], log-probs of the policy that sampled, where several updates use this rollout.
        normalizer: 0-dim, what all tokens count together.
    """

    batch: PromptBatch
    parts: tuple[Completions, ...]
    masks: tuple[Tensor, ...]
    advantages: tuple[Tensor, ...]
    reference: tuple[Tensor | None, ...]
    old: tuple[Tensor | None, ...]
    normalizer: Tensor


class OracleRLAIF(PolicyModule):
    """Reinforcement learning from an oracle's ranking of each group of answers.

    Args:
        policy: the model to be trained.
        oracle: orders the answers of each group.
        rollout: samples the groups.
        advantage: from an oracle's ranking to advantages.
        loss: settings of the GRPO_rank loss.
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

    Raises:
        ValueError: settings that contradict each other.
    """

    def __init__(
        self,
        policy: Policy,
        oracle: Oracle,
        rollout: BaseRollout | None = None,
        advantage: Advantage | None = None,
        loss: GRPORankLoss | None = None,
        reference: Reference | None = None,
        on_oracle_failure: OracleFailure | None = None,
        order_consistency_every_n_steps: int = 50,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-6),
        lr_scheduler: LRSchedulerCallable | None = None,
        eval_max_new_tokens: int = 64,
        seed: int | None = None,
        microbatch: int | None = None,
        num_updates: int = 1,
    ) -> None:
        super().__init__(policy, optimizer, lr_scheduler, eval_max_new_tokens, seed)
        self.oracle = oracle
        self.rollout = rollout or Rollout()
        self.advantage = advantage or DCG()
        self.loss = loss or GRPORankLoss()
        self.reference = reference or Reference()
        self.on_oracle_failure = on_oracle_failure or OracleFailure()
        self.order_consistency_every_n_steps = order_consistency_every_n_steps
        self.microbatch = microbatch
        if microbatch is not None and microbatch < 1:
            raise ValueError(f"microbatch is {microbatch}; it must be 1 or more completions, or null for whole groups")
        if num_updates < 1:
            raise ValueError(f"num_updates is {num_updates}; it must be 1 or more passes over a rollout")
        self.num_updates = num_updates
        self._pending: list[Experience] = []
        self._held: Tensor | None = None
        self._reference_loaded = False

    def prepare_reference(self) -> None:
        """Freeze the reference, where the loss needs one."""
        if self.loss.kl_coef and not self._reference_loaded:
            self.policy.load_reference(refreshed=self.reference.refresh == "epoch")
            self._reference_loaded = True

    def on_fit_start(self) -> None:
        """Refuse an implementation of the loss that cannot run on this device, before anything is sampled.

        Raises:
            ValueError: ``loss.implementation`` is ``triton`` where it cannot run.
        """
        super().on_fit_start()
        self.oracle.bind(self.policy)
        log.info("plan: %s", self.prompt_cost)
        try:
            choose(self.loss.implementation, torch.empty(0, device=self.device))
        except RuntimeError as error:
            raise ValueError(f"loss.implementation: {error}; use 'auto'") from None

    @property
    def prompt_cost(self) -> str:
        """How often a step pays for a prompt and its video, in words."""
        g = self.rollout.group_size
        size = min(self.microbatch or g, g)
        passes, shared = -(-g // size), self.policy.layout == "shared"
        times = passes if shared else g
        cost = f"each prompt goes once through the rollout and {times} x through the policy"
        if self.loss.kl_coef:
            cost += f" and {times} x through the reference"
        if not shared:
            return f"{cost}: prefix: duplicate pays for it with each of {g} completions"
        return f"{cost}: {passes} pass{'es' if passes > 1 else ''} of up to {size} of {g} completions behind one prompt"

    def on_train_epoch_start(self) -> None:
        """Refresh the reference where the recipe says so."""
        if self.reference.refresh == "epoch" and self.current_epoch > 0 and self.loss.kl_coef:
            self.policy.refresh_reference()

    def _is_reloaded(self, name: str, parameter: nn.Parameter) -> bool:
        if self.reference.refresh == "epoch" and name.startswith("policy.reference."):
            return False
        return super()._is_reloaded(name, parameter)

    def training_step(self, delivery: Delivery, batch_idx: int) -> Tensor:
        """One batch: rollout, oracle, advantage, reference, and, where it is its turn, the loss."""
        batch = delivery.batch
        generators = self.seed_step(batch, batch_idx)
        if not len(batch) and self.num_updates == 1 and not self.policy.is_sharded:
            self._rank(None)
            return self.empty_step(delivery, batch_idx)
        self._pending.append(self._experience(delivery, generators, batch_idx))
        if self.num_updates > 1 and not self.is_stepping(batch_idx):
            self.log_noted()
            self._stepping, self._policy_start = False, time.perf_counter()
            return torch.zeros((), device=self.device, requires_grad=True)  # Lightning wants something to go back from
        pending, self._pending = self._pending, []
        self._policy_start = time.perf_counter()
        updates: list[tuple[dict[str, Tensor], Tensor]] = []
        for _ in range(self.num_updates - 1):
            updates.append(self._pass(pending))
            self.inner_update(sum_of([one.normalizer for one in pending]))
        updates.append(self._pass(pending, hold_last=True))
        total, self._held = self._held, None
        assert total is not None
        for name in updates[0][0]:
            values = torch.stack([metrics[name] for metrics, _ in updates])
            tokens = torch.stack([weight for _, weight in updates])
            normalizer = sum_of([one.normalizer for one in pending])
            self.note(f"train/{name}", values.mean(), normalizer if name == "loss" else tokens.sum())
        self.log_noted()
        return self.accumulate(total, sum_of([one.normalizer for one in pending]), batch_idx)

    def _pass(self, pending: list[Experience], hold_last: bool = False) -> tuple[dict[str, Tensor], Tensor]:
        """Forward and backward passes over all parts; the backward pass of the last can be left to Lightning.

        Returns:
            The metrics of the whole, and how many tokens count.
        """
        parts = [(one, i) for one in pending for i in range(len(one.parts))]
        all_metrics: list[dict[str, Tensor]] = []
        tokens: list[Tensor] = []
        for number, (one, i) in enumerate(parts):
            total, metrics = self._policy_loss(one, i)
            all_metrics.append(metrics)
            tokens.append(one.masks[i].sum())
            if hold_last and number + 1 == len(parts):
                self._held = total
            else:
                self.backward_part(total)
        merged = _merged(all_metrics, torch.stack(tokens))
        merged["loss"] = merged["loss"] / sum_of([one.normalizer for one in pending]).clamp(min=1)
        return merged, sum_of(tokens)

    def _experience(self, delivery: Delivery, generators: list[torch.Generator], batch_idx: int) -> Experience:
        """Rollout, ranking, advantages and log-probs of a batch; of a stand-in that carries no weight if it is empty.

        Where weights are sharded all processes must run the same layers, so one without a prompt runs a synthetic one.
        """
        batch = delivery.batch
        empty = not len(batch)
        if empty:
            self.note_delivery(delivery, 0)
            batch = self.policy.stand_in(self.device)
            generators = prompt_generators(batch, "stand-in", self.device)
        with self.stage("rollout"):
            completions = self.rollout(self.policy, batch, generators)
        groups = candidate_groups(batch, completions)
        asked = None if empty else Asked(self.oracle, groups, self.on_oracle_failure)

        parts = completions.split(self.microbatch)
        reference: list[Tensor | None] = [None] * len(parts)
        old: list[Tensor | None] = [None] * len(parts)
        if self.loss.kl_coef:
            with self.stage("reference"):
                reference = [self._logps(batch, part, reference=True) for part in parts]
        if self.num_updates > 1 or self.rollout.importance_cap is not None:
            with self.stage("old_logps"):
                old = [self._logps(batch, part) for part in parts]

        with self.policy.gathered() if self.oracle.borrows_policy else nullcontext():
            ranking = self._rank(asked) or Ranking(ranks=torch.full(completions.ids.shape[:2], -1))
        advantages = self.advantage(ranking, completions).to(self.device)
        # A group that was not ranked at all carries no weight: neither in the sum nor in what it is divided by.
        ranked = (ranking.ranks >= 0).any(-1).to(self.device)
        mask = completions.mask & ranked[:, None, None]
        if self.rollout.importance_cap is not None:
            advantages = advantages * self._importance(completions, old, mask)
        if not empty:
            self._note_completions(delivery, batch, completions, ranking, advantages)
        every = self.order_consistency_every_n_steps
        if every and self.global_step % every == 0:
            with self.policy.gathered() if self.oracle.borrows_policy else nullcontext():
                if not empty and not ranking.failures:
                    self._note_order_consistency(groups, ranking, batch_idx)
        if self.oracle.borrows_policy:  # which has taken the place of this batch's features where it was asked
            self.policy.forget_features()
        sizes = [part.group_size for part in parts]
        return Experience(
            batch=batch,
            parts=parts,
            masks=mask.split(sizes, 1),
            advantages=advantages.split(sizes, 1),
            reference=tuple(reference),
            old=tuple(old) if self.num_updates > 1 else (None,) * len(parts),  # None: the ratio is exactly 1
            normalizer=loss_weights(mask.flatten(0, 1), self.loss.loss_type, self.rollout.sampling.max_new_tokens)[1],
        )

    def _importance(self, completions: Completions, old: list[Tensor | None], mask: Tensor) -> Tensor:
        """Truncated importance weights f32[P, G] of the trainer's answers over the sampler's; the mismatch noted.

        Raises:
            ValueError: the rollout gave no log-probs.
        """
        if completions.logps is None:
            raise ValueError("rollout.importance_cap is set, but the rollout gives no log-probs; set it to null")
        p, t = completions.ids.shape[0], completions.ids.shape[-1]
        parts = [part.view(p, -1, t) for part in old if part is not None]
        difference = (torch.cat(parts, 1) - completions.logps).masked_fill(~completions.mask, 0.0)
        ratio = difference.sum(-1).exp()
        assert self.rollout.importance_cap is not None
        weights = ratio.clamp(max=self.rollout.importance_cap)
        tokens, answers = mask.sum(), mask.any(-1)
        counted = difference.masked_fill(~mask, 0.0).abs()
        self.note("train/sampling/sampling_logp_difference/mean", counted.sum() / tokens.clamp(min=1), tokens)
        self.note("train/sampling/sampling_logp_difference/max", counted.max(), tokens)
        kept = ratio[answers]
        if len(kept):
            for name, value in (("min", kept.min()), ("mean", kept.mean()), ("max", kept.max())):
                self.note(f"train/sampling/importance_sampling_ratio/{name}", value, len(kept))
            truncated = (kept > self.rollout.importance_cap).float().mean()
            self.note("train/sampling/truncated_ratio", truncated, len(kept))
        return weights

    def _logps(self, batch: PromptBatch, completions: Completions, reference: bool = False) -> Tensor:
        """f32[P * G, T] by the reference, or by the policy of this moment, without gradient."""
        with torch.no_grad(), nullcontext() if reference else evaluating(self.policy.network):
            return self.policy.completion_logps(
                batch,
                completions,
                reference=reference,
                temperature=self.rollout.sampling.temperature,
                fused_head=self.loss.fused_head,
                implementation=self.loss.implementation,
            ).flatten(0, 1)

    def _policy_loss(self, one: Experience, i: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a part of the groups, undivided, and its metrics."""
        completions = one.parts[i]
        flat_ids = completions.ids.flatten(0, 1)
        settings = {
            "advantages": one.advantages[i].flatten(),
            "mask": one.masks[i].flatten(0, 1),
            "old_logps": one.old[i],
            "ref_logps": one.reference[i],
            "temperature": self.rollout.sampling.temperature,
            "normalizer": 1.0,
            **self.loss.arguments,
        }
        if self.loss.fused_head:
            hidden, head = self.policy.completion_hidden(one.batch, completions)
            return linear_grpo_rank_loss(hidden, head.pop("weight"), flat_ids, **head, **settings)
        logits = self.policy.completion_logits(one.batch, completions)
        return grpo_rank_loss(logits, flat_ids, inplace=True, **settings)

    def _rank(self, asked: Asked | None) -> Ranking | None:
        """What the oracle answered, its cost noted; None for a process that asked nothing.

        Raises:
            OracleError: on all processes, what failed on any; or groups of all of them past
                ``on_oracle_failure.max_rate``.
        """
        ranking, error = None, None
        if asked is not None:
            try:
                ranking = asked.result()
            except Exception as problem:  # whatever it is, the other processes must not wait for this one
                error = problem
        raise_together(error)
        if ranking is not None and asked is not None:
            self.note("time/oracle", asked.seconds)
            self.note("time/oracle_wait", asked.waited)
            for name, number in self.oracle.take_counts().items():
                self.note(f"oracle/{name}", number)
        failures = () if ranking is None else ranking.failures
        last = (failures[-1].oracle, failures[-1].prompt_id, failures[-1].cause) if failures else None
        everyone = exchange((0 if ranking is None else len(ranking.ranks), len(failures), last))
        groups = self.totals["groups"] = self.totals.get("groups", 0) + sum(asked for asked, _, _ in everyone)
        failed = self.totals["failed_groups"] = self.totals.get("failed_groups", 0) + sum(n for _, n, _ in everyone)
        rate = failed / max(1, groups)
        self.log("oracle/failure_rate", rate)
        for failure in (failure for _, _, failure in everyone if failure is not None):
            self.on_oracle_failure.check(int(failed), int(groups), OracleError(*failure))
        return ranking

    def _note_order_consistency(self, groups: list[CandidateGroup], ranking: Ranking, batch_idx: int) -> None:
        try:
            consistency = order_consistency(self.oracle, groups, ranking, torch.Generator().manual_seed(batch_idx))
        except OracleError:  # a second opinion only; the failure rate counts the first
            return
        self.note("oracle/order_consistency", consistency, len(groups))

    def _note_completions(
        self, delivery: Delivery, batch: PromptBatch, completions: Completions, ranking: Ranking, advantages: Tensor
    ) -> None:
        lengths = completions.lengths
        last = completions.ids.gather(-1, (lengths - 1).clamp(min=0).unsqueeze(-1)).squeeze(-1)
        ended = torch.isin(last, torch.tensor(self.policy.eos_ids, device=last.device)) & (lengths > 0)
        self.note_delivery(delivery, int(batch.attention_mask.sum()) + int(lengths.sum()))
        self.note("train/completions/mean_length", lengths.float().mean(), lengths.numel())
        self.note("train/completions/clipped_ratio", 1 - ended.float().mean(), lengths.numel())
        sequence_logps = None if completions.logps is None else (completions.logps * completions.mask).sum(-1).cpu()
        found = rank_metrics(ranking.ranks, advantages.cpu(), lengths.cpu(), sequence_logps)
        for name, value in found.items():
            self.note(name, value, len(batch))
        if ranking.scores is not None and (scored := int((~ranking.scores.isnan()).sum())):
            self.note("oracle/mean_score", ranking.scores.nanmean(), scored)


def sum_of(values: Sequence[Tensor]) -> Tensor:
    """Of 0-dim tensors."""
    return torch.stack(list(values)).sum()


def _merged(parts: list[dict[str, Tensor]], tokens: Tensor) -> dict[str, Tensor]:
    """Metrics of a whole batch: the loss is a sum, all others are means over ``tokens`` i64[parts]."""
    merged = {}
    share = tokens / tokens.sum().clamp(min=1)
    for name in parts[0]:
        values = torch.stack([metrics[name] for metrics in parts])
        merged[name] = values.sum() if name == "loss" else (values * share).sum()
    return merged


def candidate_groups(batch: PromptBatch, completions: Completions) -> list[CandidateGroup]:
    """What the oracle is shown: P groups."""
    return [
        CandidateGroup(prompt=prompt, clip=clip, answers=answers)
        for prompt, clip, answers in zip(batch.prompts, batch.clips, completions.texts, strict=True)
    ]
