"""What the training stages share: the optimizer, the exact normaliser, greedy evaluation, and the run's folder.

**The normaliser.** A loss is a weighted sum over tokens divided by what the tokens count together, over all accumulated
batches and all processes. How much that is, is only known when the last batch has been sampled. So every batch
contributes its undivided sum, and the gradients are divided once, after the last backward pass and before clipping.
Accumulating n batches then gives the update of one n-times larger batch, whatever the lengths of the answers.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from orlaif.distributed.checkpoint_io import SafeCheckpointIO
from orlaif.distributed.sync import check_same, num_processes
from orlaif.evaluation.answers import Accuracy, WrittenAnswers
from orlaif.evaluation.graded_test import GradedTest
from orlaif.evaluation.loop import Loop, Stage
from orlaif.policy import Policy
from orlaif.training.averaging import check_averaging
from orlaif.training.schedules import scheduled
from orlaif.training.sharing import SharesPrompts
from orlaif.training.step_state import Given, StepState
from orlaif.types import Delivery, PromptBatch

#: Metrics for the progress bar, which has 80 columns.
_SHOWN = ("train/loss", "train/kl", "train/pair_accuracy", "oracle/mean_score", "groups/set_aside_rate")


def _number(key: str) -> int:
    return random.Random(key).getrandbits(63)


def prompt_generators(batch: PromptBatch, key: str, device: torch.device) -> list[torch.Generator]:
    """A generator for each prompt of a batch, a function of ``key`` and the prompt's id."""
    return [torch.Generator(device).manual_seed(_number(f"{key}/{prompt.id}")) for prompt in batch.prompts]


class PolicyModule(SharesPrompts):
    """Base of the training stages.

    Args:
        policy: the model to be trained.
        optimizer: from parameters to an optimizer.
        lr_scheduler: from an optimizer to a scheduler, stepped once per optimizer step; None keeps the rate.
        eval_max_new_tokens: longest greedy answer in validation, test and prediction.
        seed: of everything random in a training step; by default that of ``seed_everything``.
    """

    def __init__(
        self,
        policy: Policy,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable | None,
        eval_max_new_tokens: int,
        seed: int | None,
    ) -> None:
        loops: dict[Stage, Loop] = {"validate": Accuracy(), "test": GradedTest(), "predict": WrittenAnswers()}
        super().__init__(policy, eval_max_new_tokens, loops)
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        self.step_state = StepState()

    # ---------------------------------------------------------------- set-up

    def setup(self, stage: str) -> None:
        """Refuse callbacks that cannot work, before anything is loaded."""
        if stage == "fit":
            check_averaging(self.trainer.callbacks)  # type: ignore[attr-defined]
            self.check_sharing(num_processes())
        super().setup(stage)

    def configure_model(self) -> None:
        """Load the policy, and shard it where the strategy is FSDP2 (``orlaif.distributed.fsdp2``); idempotent."""
        device = None
        if self._trainer is not None:
            strategy = self.trainer.strategy
            device = strategy.root_device
            if type(strategy.checkpoint_io) is TorchCheckpointIO:  # complete files, and folders of sharded runs
                strategy.checkpoint_io = SafeCheckpointIO()
        self.policy.load(device, later=self.device_mesh is not None)
        self.agree_on_layout()
        self.begin_sharing()
        self.know_base()
        self.prepare_reference()
        if self.device_mesh is not None:
            self.policy.shard(self.device_mesh["data_parallel"])

    def agree_on_layout(self) -> None:
        """Make sure that processes, each of which has asked its own copy of the model, make equally many passes."""
        choice = self.policy.choice
        assert choice is not None
        check_same("policy.prefix", {"layout": choice.layout, "attentions": choice.attentions})

    def prepare_reference(self) -> None:
        """Before the policy is sharded: freeze a copy, for stages that need one."""

    def on_fit_start(self) -> None:
        """Training mode for the policy; from_pretrained leaves it in eval mode.

        Raises:
            ValueError: an attention of the shared prefix that cannot train on this device.
        """
        if self.policy.prefix_attention == "flex" and self.device.type != "cuda":
            raise ValueError("policy.prefix_attention is 'flex', which trains on CUDA only; use 'auto' here")
        self.try_sharing()
        self.policy.network.train()

    def export(self, folder: str, merge: bool = False) -> None:
        """Write what was trained to ``folder``; an adapter ``merge``-d into its base, or as one."""
        self.policy.export(folder, merge)

    def configure_optimizers(self) -> Any:
        """The recipe's optimizer over all trainable parameters, and its scheduler per step, or as a plateau needs it.

        Raises:
            ValueError: a scheduler that watches a metric which the recipe does not name, or which no validation gives;
                settings that an optimizer or scheduler refuses.
        """
        optimizer = _made("optimizer", self.optimizer, self.trained_parameters())
        scheduler = None if self.lr_scheduler is None else _made("lr_scheduler", self.lr_scheduler, optimizer)
        self.know_stated(optimizer, scheduler)
        if scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": scheduled(scheduler, self.trainer)}

    def seed_step(self, batch: PromptBatch, batch_idx: int) -> list[torch.Generator]:
        """A generator for each prompt, a function of (seed, epoch, prompt); also seeds torch, for dropout.

        So nothing random has to be saved in a checkpoint for a resumed run to equal the uninterrupted one, and a prompt
        is given the same answers on any number of processes.
        """
        torch.manual_seed(_number(f"{self.seed}/{self.current_epoch}/{batch_idx}/{self.global_rank}"))
        return self.generators_of(batch)

    def generators_of(self, batch: PromptBatch) -> list[torch.Generator]:
        """A generator for each prompt in this epoch."""
        return prompt_generators(batch, f"{self.seed}/{self.current_epoch}", self.device)

    # -------------------------------------------------------------- training

    def begins_step(self, batch_idx: int) -> bool:
        """Whether this batch is the first one behind a step of the optimizer."""
        return batch_idx % self.trainer.accumulate_grad_batches == 0

    def is_stepping(self, batch_idx: int) -> bool:
        """Whether this batch is the last one before the optimizer steps."""
        return (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0 or self.trainer.is_last_batch

    def accumulate(self, total: Tensor, normalizer: Tensor, batch_idx: int) -> Tensor:
        """Hand a batch's undivided loss to Lightning; :meth:`on_after_backward` divides the gradients.

        Args:
            total: 0-dim weighted sum over the batch's tokens, with gradient.
            normalizer: 0-dim, what those tokens count together.
            batch_idx: of the training step.
        """
        self.step_state.hand_over(normalizer, self.is_stepping(batch_idx))
        return total

    def postponed(self) -> Tensor:
        """For a batch whose loss comes with a later one: a zero, since Lightning wants something to go back from."""
        self.step_state.postpone()
        return torch.zeros((), device=self.device, requires_grad=True)

    def backward_part(self, total: Tensor) -> None:
        """Backward pass of a part of a batch, whose last part goes to Lightning by :meth:`accumulate`.

        So that the activations of one part are freed before the next part is computed; the gradients add up.

        Args:
            total: 0-dim weighted sum over the part's tokens, with gradient.
        """
        n = self.trainer.accumulate_grad_batches
        strategy, precision = self.trainer.strategy, self.trainer.precision_plugin
        scaler = getattr(precision, "scaler", None)
        total = total / n if scaler is None else scaler.scale(total / n)
        alone = strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()
        with alone, torch.autocast(self.device.type, enabled=False):
            precision.backward(total, self, None)  # without Lightning's hooks, which are for the batch

    def inner_update(self, normalizer: Tensor) -> None:
        """Step the optimizer within a training step, on the gradients of :meth:`backward_part`, clipped as ever.

        Lightning counts a step for the training step as a whole, and schedulers step with that count.

        Args:
            normalizer: 0-dim, of all parts on this process.
        """
        if self.trainer.world_size > 1 and not self.policy.is_sharded:  # DDP's hooks are off within a training step
            for parameter in self.trained_parameters():
                if parameter.grad is None:  # the others may have one
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)
                parameter.grad /= self.trainer.world_size
        self._divide_gradients(normalizer)
        self.weights_change()
        optimizer: Any = self.optimizers()
        optimizer.step(closure=lambda: torch.zeros((), device=self.device))
        optimizer.zero_grad()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Nothing: where Lightning would clear gradients, parts of the batch have left theirs already."""

    def on_train_batch_start(self, batch: Delivery, batch_idx: int) -> None:
        """Free the gradients of the step before, so that a rollout has their memory; keep the totals behind it."""
        self.batch_begins()
        self.check_same_prompts(batch.batch)
        if self.begins_step(batch_idx):
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()

    def on_train_batch_end(self, outputs: Any, batch: Delivery, batch_idx: int) -> None:
        """Log the first step, whatever ``log_every_n_steps`` says."""
        if self.global_step == 1 and self._at_step[0] == 0 and self.trainer.log_every_n_steps != 1:  # type: ignore[attr-defined]
            for logger in self.trainer.loggers:
                logger.log_metrics({name: float(x) for name, x in self.trainer.callback_metrics.items()}, step=0)

    def on_after_backward(self) -> None:
        """Once the last accumulated batch is in, divide the gradients by the normaliser of the whole step."""
        self.batch_is_done()
        self.log("time/policy", self.step_state.policy_s(self.device))
        normalizer = self.step_state.take()
        if normalizer is not None:
            self._divide_gradients(normalizer)

    def _divide_gradients(self, normalizer: Tensor) -> None:
        # Strategies sum in place, and the caller's is still this process's own.
        normalizer = self.trainer.strategy.reduce(normalizer.clone(), reduce_op="sum")
        # Each loss was divided by the number of batches and averaged over processes; both are undone here.
        factor = float(self.trainer.accumulate_grad_batches * self.trainer.world_size / normalizer.clamp(min=1))
        for parameter in self.trained_parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

    def given(self, delivery: Delivery, generators: list[torch.Generator], always: bool = False) -> Given | None:
        """What the step works on; None for an empty batch where no pass is needed: then :meth:`empty_step` is the step.

        Args:
            delivery: of the step; one that is empty is noted here.
            generators: of its prompts.
            always: a pass is needed in any case, not only where weights are sharded.
        """
        if len(delivery.batch):
            return Given(batch=delivery.batch, generators=generators, counts=True)
        self.notes.delivery(delivery, 0)
        if not always and not self.policy.is_sharded:
            return None
        batch = self.stand_in()
        return Given(batch=batch, generators=prompt_generators(batch, "stand-in", self.device), counts=False)

    def stand_in(self) -> PromptBatch:
        """A synthetic prompt that this stage can work on."""
        return self.policy.stand_in(self.device)

    def empty_step(self, batch_idx: int) -> Tensor:
        """The step of an empty batch that needs no pass."""
        self.log_noted()
        self.step_state.begin_policy()
        return self.accumulate(self.zero_loss(), torch.zeros((), device=self.device), batch_idx)

    def zero_loss(self) -> Tensor:
        """A loss of zero that reaches every parameter: an empty batch carries no weight but keeps processes in step."""
        return torch.stack([p.sum() * 0.0 for p in self.trained_parameters()]).sum()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the norm of the gradients before clipping and the rate; the policy is about to be another one."""
        self.policy.version += 1
        self.weights_change()
        grads = [p.grad for p in self.trained_parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(grads)
        self.log("train/grad_norm", norm.full_tensor() if isinstance(norm, DTensor) else norm)
        self.log("train/lr", float(optimizer.param_groups[0]["lr"]))

    def log_noted(self) -> None:
        """Log what was noted, of all processes, which must all call."""
        for name, value in self.notes.take().items():
            self.log(name, value, prog_bar=name in _SHOWN)


def _made(key: str, make: Callable[[Any], Any], given: Any) -> Any:
    """An optimizer or scheduler; PyTorch's words for a setting that cannot be do not say whose it is."""
    try:
        return make(given)
    except (ValueError, TypeError) as error:
        raise ValueError(f"model.{key} refuses its settings: {error}") from error
