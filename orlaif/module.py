"""Oracle-RLAIF as a LightningModule: policy, frozen reference and oracle; the training step reads as the hand-overs.

It differs from the paper (arXiv 2510.02561) in its default mapping, ``dcg`` instead of ``ndcg_penalty`` (see
``orlaif.advantages``), and in keeping the reference fixed unless ``reference.refresh`` says ``epoch``.

Shapes: P prompts, G completions per prompt, T completion tokens.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from orlaif_kernels.arguments import choose
from torch import Tensor

from orlaif.advantages import DCG, Advantage
from orlaif.evaluation.ranks import rank_metrics
from orlaif.losses import GRPORankLoss, grpo_rank_loss, linear_grpo_rank_loss, loss_weights
from orlaif.oracles import Asked, Oracle, OracleFailure, order_consistency
from orlaif.policy import Policy
from orlaif.policy_module import PolicyModule
from orlaif.rollout import Rollout
from orlaif.types import CandidateGroup, Completions, OracleError, PromptBatch, Ranking

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The frozen reference of the KL term.

    Args:
        refresh: ``never`` keeps the checkpoint that the run started from; ``epoch`` takes the policy as it is at the
            start of each epoch, as the paper does (full fine-tuning only).
    """

    refresh: Literal["never", "epoch"] = "never"

    def __post_init__(self) -> None:
        if self.refresh not in ("never", "epoch"):
            raise ValueError(f"reference.refresh is {self.refresh!r}; it must be 'never' or 'epoch'")


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

    Raises:
        ValueError: settings that contradict each other.
    """

    def __init__(
        self,
        policy: Policy,
        oracle: Oracle,
        rollout: Rollout | None = None,
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
        self._groups = 0
        self._failed_groups = 0
        if self.reference.refresh == "epoch" and policy.lora is not None:
            raise ValueError(
                "reference.refresh is 'epoch', but with policy.lora the reference is the base model; use 'never'"
            )

    def prepare_reference(self) -> None:
        """Freeze the reference, where the loss needs one."""
        if self.loss.kl_coef and self.policy.reference is None:
            self.policy.load_reference()

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
        passes, shared = -(-g // size), self.policy.prefix == "shared"
        times = passes if shared else g
        cost = f"each prompt goes once through the rollout and {times} x through the policy"
        if self.loss.kl_coef:
            cost += f" and {times} x through the reference"
        if not shared:
            return f"{cost}: prefix: duplicate pays for it with each of {g} completions"
        return f"{cost}: {passes} pass{'es' if passes > 1 else ''} of up to {size} of {g} completions behind one prompt"

    def on_train_epoch_start(self) -> None:
        """Refresh the reference where the recipe says so."""
        if self.reference.refresh == "epoch" and self.current_epoch > 0 and self.policy.reference is not None:
            self.policy.refresh_reference()

    def _reloaded_keys(self, names: Any) -> list[str]:
        return [] if self.reference.refresh == "epoch" else super()._reloaded_keys(names)

    def training_step(self, batch: PromptBatch, batch_idx: int) -> Tensor:
        """One step: rollout, oracle, advantage, reference, loss."""
        generator = self.seed_step(batch_idx)
        if not len(batch):
            return self.empty_step(batch, batch_idx)

        with self.stage("rollout"):
            completions = self.rollout(self.policy, batch, generator)
        groups = candidate_groups(batch, completions)
        asked = Asked(self.oracle, groups, self.on_oracle_failure)

        parts = completions.split(self.microbatch)
        reference: list[Tensor | None] = [None] * len(parts)
        if self.loss.kl_coef:
            with self.stage("reference"):
                reference = [self._reference_logps(batch, part) for part in parts]

        ranking = asked.result()
        self._log_oracle(ranking, asked)
        advantages = self.advantage(ranking, completions).to(self.device)
        # A group that was not ranked at all carries no weight: neither in the sum nor in what it is divided by.
        ranked = (ranking.ranks >= 0).any(-1).to(self.device)
        mask = completions.mask & ranked[:, None, None]

        self._policy_start = time.perf_counter()
        sizes = [part.group_size for part in parts]
        weights = [part.sum() for part in mask.split(sizes, 1)]
        all_metrics: list[dict[str, Tensor]] = []
        for i, (part, part_mask, part_advantages) in enumerate(
            zip(parts, mask.split(sizes, 1), advantages.split(sizes, 1), strict=True)
        ):
            total, metrics = self._policy_loss(batch, part, part_mask, part_advantages, reference[i])
            all_metrics.append(metrics)
            if i + 1 < len(parts):
                self.backward_part(total, batch_idx)
        metrics = _merged(all_metrics, torch.stack(weights))
        _, normalizer = loss_weights(mask.flatten(0, 1), self.loss.loss_type, self.rollout.sampling.max_new_tokens)
        metrics["loss"] = metrics["loss"] / normalizer.clamp(min=1)
        self._log_step(batch, completions, ranking, advantages, metrics)
        if (every := self.order_consistency_every_n_steps) and self.global_step % every == 0 and not ranking.failures:
            self._log_order_consistency(groups, ranking, batch_idx)
        return self.accumulate(total, normalizer, batch_idx)

    def _reference_logps(self, batch: PromptBatch, completions: Completions) -> Tensor:
        """f32[P * G, T]."""
        return self.policy.completion_logps(
            batch,
            completions,
            reference=True,
            temperature=self.rollout.sampling.temperature,
            fused_head=self.loss.fused_head,
            implementation=self.loss.implementation,
        ).flatten(0, 1)

    def _policy_loss(
        self,
        batch: PromptBatch,
        completions: Completions,
        mask: Tensor,
        advantages: Tensor,
        ref_logps: Tensor | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a part of the groups, undivided, and its metrics."""
        flat_ids = completions.ids.flatten(0, 1)
        settings = {
            "advantages": advantages.flatten(),
            "mask": mask.flatten(0, 1),
            "ref_logps": ref_logps,
            "temperature": self.rollout.sampling.temperature,
            "normalizer": 1.0,
            **self.loss.arguments,
        }
        if self.loss.fused_head:
            hidden, head = self.policy.completion_hidden(batch, completions)
            return linear_grpo_rank_loss(hidden, head.pop("weight"), flat_ids, **head, **settings)
        logits = self.policy.completion_logits(batch, completions)
        return grpo_rank_loss(logits, flat_ids, inplace=True, **settings)

    def _log_oracle(self, ranking: Ranking, asked: Asked) -> None:
        """Log what the oracle cost, and the groups it failed on; raise past ``on_oracle_failure.max_rate``."""
        self.log("time/oracle", asked.seconds, prog_bar=True)
        self.log("time/oracle_wait", asked.waited)
        self.log_dict({f"oracle/{name}": value for name, value in self.oracle.take_counts().items()})
        self._groups += len(ranking.ranks)
        self._failed_groups += len(ranking.failures)
        rate = self._failed_groups / self._groups
        self.log("oracle/failure_rate", rate)
        if self._groups >= 20 and rate > self.on_oracle_failure.max_rate and ranking.failures:
            last = ranking.failures[-1]
            cause = f"{last.cause}; {self._failed_groups} of {self._groups} groups so far have failed, more than "
            raise OracleError(
                last.oracle,
                last.prompt_id,
                f"{cause}on_oracle_failure.max_rate allows ({self.on_oracle_failure.max_rate:g})",
            )

    def _log_order_consistency(self, groups: list[CandidateGroup], ranking: Ranking, batch_idx: int) -> None:
        try:
            consistency = order_consistency(self.oracle, groups, ranking, torch.Generator().manual_seed(batch_idx))
        except OracleError:  # a second opinion only; the failure rate counts the first
            return
        self.log("oracle/order_consistency", consistency)

    def _log_step(
        self,
        batch: PromptBatch,
        completions: Completions,
        ranking: Ranking,
        advantages: Tensor,
        metrics: dict[str, Tensor],
    ) -> None:
        lengths = completions.lengths
        last = completions.ids.gather(-1, (lengths - 1).clamp(min=0).unsqueeze(-1)).squeeze(-1)
        ended = torch.isin(last, torch.tensor(self.policy.eos_ids, device=last.device))
        self.log_batch(batch, int(batch.attention_mask.sum()) + int(lengths.sum()))
        self.log_dict({f"train/{name}": value for name, value in metrics.items() if name not in ("loss", "kl")})
        self.log("train/loss", metrics["loss"])
        if "kl" in metrics:
            self.log("train/kl", metrics["kl"], prog_bar=True)
        self.log("train/completions/mean_length", lengths.float().mean())
        self.log("train/completions/clipped_ratio", 1 - ended.float().mean())
        sequence_logps = None if completions.logps is None else (completions.logps * completions.mask).sum(-1).cpu()
        self.log_dict(rank_metrics(ranking.ranks, advantages.cpu(), lengths.cpu(), sequence_logps))
        if ranking.scores is not None:
            self.log("oracle/mean_score", ranking.scores.nanmean(), prog_bar=True)


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
