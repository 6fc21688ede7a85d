"""Supervised fine-tuning on reference answers: the warm start before Oracle-RLAIF.

Answers go through the same forward pass as sampled completions, as groups of one, so that both stages train exactly the
same thing: logits at the answer's positions, placeholders excluded.
"""

from __future__ import annotations

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from orlaif.policy import Policy
from orlaif.policy.ending import answer_ids
from orlaif.training.base import PolicyModule
from orlaif.types import Completions, Delivery, PromptBatch


def reference_completions(policy: Policy, batch: PromptBatch) -> Completions:
    """The prompts' reference answers as groups of one, each closed by a token at which rollouts stop.

    Args:
        policy: whose tokenizer is used.
        batch: P prompts with answers.

    Returns:
        Completions [P, 1, T] on the batch's device.

    Raises:
        ValueError: a prompt without an answer.
    """
    answers = []
    for prompt in batch.prompts:
        if prompt.answer is None:
            raise ValueError(f"prompt {prompt.id!r} has no answer; supervised fine-tuning needs one for every prompt")
        answers.append(prompt.answer)
    rows = [[answer_ids(policy, answer)] for answer in answers]
    return Completions.padded(rows, tuple((answer,) for answer in answers), policy.pad_id, batch.input_ids.device)


class SupervisedFineTuning(PolicyModule):
    """Cross-entropy on the reference answers, averaged over all answer tokens of all accumulated batches and processes.

    Args:
        policy: the model to be trained.
        optimizer: from parameters to an optimizer.
        lr_scheduler: from an optimizer to a scheduler, stepped once per optimizer step.
        eval_max_new_tokens: longest greedy answer in validation, test and prediction.
        seed: of everything random in a training step; by default that of ``seed_everything``.
    """

    can_share_prompts = True

    def __init__(
        self,
        policy: Policy,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=1e-5),
        lr_scheduler: LRSchedulerCallable | None = None,
        eval_max_new_tokens: int = 64,
        seed: int | None = None,
    ) -> None:
        super().__init__(policy, optimizer, lr_scheduler, eval_max_new_tokens, seed)

    def training_step(self, delivery: Delivery, batch_idx: int) -> Tensor:
        """Cross-entropy (a scalar) on one batch of reference answers."""
        given = self.given(delivery, self.seed_step(delivery.batch, batch_idx))
        if given is None:
            return self.empty_step(batch_idx)
        self.step_state.begin_policy()
        answers = reference_completions(self.policy, given.batch)
        completions = self.own_completions(answers)
        with self.divided():
            total = -self.policy.completion_logps(given.batch, completions).sum()
        total, count = given.weigh(total, completions.mask.sum())
        self.notes.note("train/loss", total.detach() / count.clamp(min=1), count)
        if given.counts:
            self.notes.delivery(delivery, int(given.batch.attention_mask.sum() + answers.mask.sum()))
        self.log_noted()
        return self.accumulate(total, count.float(), batch_idx)
