"""What the training stages share: the optimizer, the exact normaliser, greedy evaluation, and the run's folder.

**The normaliser.** A loss is a weighted sum over tokens divided by what the tokens count together, over all accumulated
batches and all ranks. How much that is, is only known when the last batch has been sampled. So every batch contributes
its undivided sum, and the gradients are divided once, after the last backward pass and before clipping. Accumulating n
batches then gives the update of one n-times larger batch, whatever the lengths of the answers.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from lightning import Trainer
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from orlaif.distributed.changes import is_allowed
from orlaif.distributed.checkpoint_io import SafeCheckpointIO
from orlaif.evaluation.answers import Accuracy, WrittenAnswers
from orlaif.evaluation.graded_test import GradedTest
from orlaif.evaluation.loop import Evaluated, Loop, Stage
from orlaif.policy import Policy
from orlaif.policy import lora as adapters
from orlaif.training.averaging import check_averaging
from orlaif.training.notes import StepNotes
from orlaif.training.resume import base_fingerprint, stated_settings, use_stated
from orlaif.training.step_state import Given, StepState
from orlaif.types import AsksQuestions, Delivery, PromptBatch

log = logging.getLogger(__name__)

#: Metrics for the progress bar, beside the seconds of each stage.
_SHOWN = ("train/kl", "train/pair_accuracy", "oracle/mean_score")


def _number(key: str) -> int:
    return random.Random(key).getrandbits(63)


def prompt_generators(batch: PromptBatch, key: str, device: torch.device) -> list[torch.Generator]:
    """A generator for each prompt of a batch, a function of ``key`` and the prompt's id."""
    return [torch.Generator(device).manual_seed(_number(f"{key}/{prompt.id}")) for prompt in batch.prompts]


class PolicyModule(Evaluated):
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
        self.notes = StepNotes()
        self.step_state = StepState()
        self._at_step: tuple[int, dict[str, float]] = (-1, {})  # the totals behind that step of the optimizer
        self._changed_at = -1  # the step within which weights have begun to change
        self._is_sampling = False
        #: What may differ from the run that a checkpoint is of (``--resume_changed``).
        self.resume_changed: tuple[str, ...] = ()
        self._base = ""  # fingerprint of the policy's checkpoint
        self._stated: dict[str, Any] = {}  # by the recipe, of optimizer and scheduler
        self._stated_before: dict[str, Any] = {}  # by the recipe of the checkpoint that this run goes on from

    @property
    def totals(self) -> dict[str, float]:
        """Counted over all steps and processes so far."""
        return self.notes.totals

    @totals.setter
    def totals(self, totals: dict[str, float]) -> None:
        self.notes.totals = totals

    # ---------------------------------------------------------------- set-up

    def setup(self, stage: str) -> None:
        """Refuse callbacks that cannot work, before anything is loaded."""
        if stage == "fit":
            check_averaging(self.trainer.callbacks)  # type: ignore[attr-defined]
        super().setup(stage)

    def configure_model(self) -> None:
        """Load the policy, and shard it where the strategy is FSDP2 (``orlaif.distributed.fsdp2``); idempotent."""
        device = None
        if self._trainer is not None:
            strategy = self.trainer.strategy
            device = strategy.root_device
            if type(strategy.checkpoint_io) is TorchCheckpointIO:  # complete files, and folders of sharded runs
                strategy.checkpoint_io = SafeCheckpointIO()
        self.policy.load(device)
        if not self._base:
            self._base = base_fingerprint(self.policy.network)
        self.prepare_reference()
        if self.device_mesh is not None:
            self.policy.shard(self.device_mesh["data_parallel"])

    def prepare_reference(self) -> None:
        """Before the policy is sharded: freeze a copy, for stages that need one."""

    def on_fit_start(self) -> None:
        """Training mode for the policy; from_pretrained leaves it in eval mode.

        Raises:
            ValueError: an attention of the shared prefix that cannot train on this device.
        """
        if self.policy.prefix_attention == "flex" and self.device.type != "cuda":
            raise ValueError("policy.prefix_attention is 'flex', which trains on CUDA only; use 'auto' here")
        self.policy.network.train()

    def trained_parameters(self) -> list[nn.Parameter]:
        """All that the optimizer moves."""
        return [p for p in self.policy.network.parameters() if p.requires_grad]

    def export(self, folder: str, merge: bool = False) -> None:
        """Write what was trained to ``folder``; an adapter ``merge``-d into its base, or as one."""
        self.policy.export(folder, merge)

    def configure_optimizers(self) -> Any:
        """The recipe's optimizer over all trainable parameters, and its scheduler per step, or as a plateau needs it.

        Raises:
            ValueError: a scheduler that watches a metric which the recipe does not name, or which no validation gives.
        """
        optimizer = self.optimizer(self.trained_parameters())
        scheduler = None if self.lr_scheduler is None else self.lr_scheduler(optimizer)
        self._stated = stated_settings(optimizer, scheduler)
        if scheduler is None:
            return optimizer
        if not isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
        return {"optimizer": optimizer, "lr_scheduler": plateau_settings(scheduler, self.trainer)}

    def on_train_start(self) -> None:
        """Of a run that goes on: use the learning rate and the other settings that its recipe states."""
        self._at_step, self._changed_at, self._is_sampling = (-1, {}), -1, False
        before, self._stated_before = self._stated_before, {}
        if before:
            scheduler = self.trainer.lr_scheduler_configs[0].scheduler if self.trainer.lr_scheduler_configs else None
            for line in use_stated(self._stated, before, self.trainer.optimizers[0], scheduler):
                log.info("resumed with another %s, as the recipe states", line)

    def seed_step(self, batch: PromptBatch, batch_idx: int) -> list[torch.Generator]:
        """A generator for each prompt, a function of (seed, epoch, prompt); also seeds torch, for dropout.

        So nothing random has to be saved in a checkpoint for a resumed run to equal the uninterrupted one, and a prompt
        is given the same answers on any number of processes.
        """
        torch.manual_seed(_number(f"{self.seed}/{self.current_epoch}/{batch_idx}/{self.global_rank}"))
        return prompt_generators(batch, f"{self.seed}/{self.current_epoch}", self.device)

    # -------------------------------------------------------------- training

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
        self._changed_at = self.global_step
        optimizer: Any = self.optimizers()
        optimizer.step(closure=lambda: torch.zeros((), device=self.device))
        optimizer.zero_grad()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Nothing: where Lightning would clear gradients, parts of the batch have left theirs already."""

    def on_train_batch_start(self, batch: Delivery, batch_idx: int) -> None:
        """Free the gradients of the step before, so that a rollout has their memory; keep the totals behind it."""
        if self.global_step != self._at_step[0]:
            self._at_step = self.global_step, dict(self.totals)
        self._is_sampling = True
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()

    def on_after_backward(self) -> None:
        """Once the last accumulated batch is in, divide the gradients by the normaliser of all batches and ranks."""
        self._is_sampling = False
        self.log("time/policy", self.step_state.policy_s(self.device), prog_bar=True)
        normalizer = self.step_state.take()
        if normalizer is not None:
            self._divide_gradients(normalizer)

    def _divide_gradients(self, normalizer: Tensor) -> None:
        normalizer = self.trainer.strategy.reduce(normalizer, reduce_op="sum")
        # Each loss was divided by the number of batches and averaged over ranks; both are undone here.
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
        """A loss of zero that reaches every parameter: an empty batch carries no weight but keeps ranks in step."""
        return torch.stack([p.sum() * 0.0 for p in self.trained_parameters()]).sum()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the norm of the gradients before clipping; the policy is about to be another one."""
        self.policy.version += 1
        self._changed_at = self.global_step
        grads = [p.grad for p in self.trained_parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(grads)
        self.log("train/grad_norm", norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def log_noted(self) -> None:
        """Log what was noted, of all processes, which must all call."""
        for name, value in self.notes.take().items():
            self.log(name, value, prog_bar=name in _SHOWN or name.startswith("time/"))

    # ----------------------------------------------------------- checkpoints

    @property
    def is_between_updates(self) -> bool:
        """Whether the weights are those of no step: some updates of a rollout are done, or one is under way."""
        return self._changed_at == self.global_step

    @property
    def is_interruptible(self) -> bool:
        """Whether all is as the last step of the optimizer left it: from a batch's start to the end of its passes."""
        return self._is_sampling and not self.is_between_updates

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out what the run starts from anyway: frozen weights of the policy's checkpoint, and the reference.

        Raises:
            RuntimeError: the weights are those of no step, so that no run could go on from them.
        """
        if self.is_between_updates:
            raise RuntimeError("no checkpoint can be written between the updates of a rollout; the last one stands")
        # A run that goes on takes the batches behind the last step again, and counts them again.
        checkpoint["totals"] = dict(self._at_step[1] if self._at_step[0] == self.global_step else self.totals)
        checkpoint["base"], checkpoint["stated"] = self._base, self._stated
        left_out = self.reloaded_keys(checkpoint["state_dict"])
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k not in left_out}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put what was left out, loaded from the policy's checkpoint, back where the state dict needs it.

        Raises:
            ValueError: training would go on from a checkpoint over another base, or from one with weights only.
        """
        self.totals = dict(checkpoint["totals"])
        if self.trainer.training:
            self._check_base(checkpoint)
            self._stated_before = checkpoint.get("stated", {})
        if "state_dict" not in checkpoint:  # sharded: the strategy has loaded it
            return
        own = self.state_dict()
        checkpoint["state_dict"].update({name: own[name] for name in self.reloaded_keys(own)})
        by_number = {name: i for i, name in enumerate(self.trained_names())}
        states = checkpoint.get("optimizer_states", [])
        checkpoint["optimizer_states"] = [numbered(state, by_number) for state in states]

    def _check_base(self, checkpoint: dict[str, Any]) -> None:
        if "callbacks" not in checkpoint:
            raise ValueError("the checkpoint holds weights only (save_weights_only); a run cannot go on from it")
        base = checkpoint.get("base", self._base)
        if base != self._base and not is_allowed("policy.path", self.resume_changed):
            raise ValueError(
                f"policy.path is {self.policy.path}, whose weights are not those of the base that the checkpoint was "
                f"trained on (fingerprints {self._base} and {base}); resume on the same base, or allow it with "
                "--resume_changed policy.path"
            )

    def trained_names(self) -> list[str]:
        """Names of :meth:`trained_parameters` in the state dict, in their order."""
        names = {id(p): name for name, p in self.named_parameters()}
        return [names[id(p)] for p in self.trained_parameters()]

    def reloaded_keys(self, keys: Iterable[str]) -> set[str]:
        """Those keys of a state dict that come from the policy's own checkpoint, not from Lightning's."""
        frozen = {name for name, p in self.named_parameters(remove_duplicate=False) if self._is_reloaded(name, p)}
        found = set()
        for key in keys:
            words = key.split(".")  # a quantised weight has further keys below its own
            if any(".".join(words[:n]) in frozen for n in range(len(words), max(0, len(words) - 3), -1)):
                found.add(key)
        return found

    def _is_reloaded(self, name: str, parameter: nn.Parameter) -> bool:
        return not parameter.requires_grad and not adapters.is_reference(name)


def plateau_settings(scheduler: torch.optim.lr_scheduler.ReduceLROnPlateau, trainer: Trainer) -> dict[str, Any]:
    """How Lightning is to step a plateau's scheduler: once an epoch, as LightningCLI does, when its metric is there.

    Args:
        scheduler: of ``lightning.pytorch.cli``, which knows what it watches.
        trainer: of the run.

    Raises:
        ValueError: it does not know, or watches what no validation will give.
    """
    monitor = getattr(scheduler, "monitor", None)
    if monitor is None:
        raise ValueError(
            "lr_scheduler is torch's ReduceLROnPlateau, which does not say what it watches; "
            "use lightning.pytorch.cli.ReduceLROnPlateau with monitor, such as val/accuracy"
        )
    if not monitor.startswith("val/"):
        return {"scheduler": scheduler, "monitor": monitor}
    data = getattr(trainer, "datamodule", None)
    if not trainer.limit_val_batches:
        raise ValueError(
            f"lr_scheduler.monitor is {monitor!r}, but trainer.limit_val_batches is 0; watch train/ metrics"
        )
    if isinstance(data, AsksQuestions):
        try:
            data.questions("val")
        except ValueError as error:
            raise ValueError(f"lr_scheduler.monitor is {monitor!r}, but nothing is validated: {error}") from None
    return {"scheduler": scheduler, "monitor": monitor, "frequency": trainer.check_val_every_n_epoch or 1}


def numbered(state: dict[str, Any], numbers: dict[str, int]) -> dict[str, Any]:
    """An optimizer's state by the numbers of its parameters, as torch has it, from one by their names (or numbers)."""
    if not any(isinstance(key, str) for key in state["state"]):
        return state
    groups = [{**group, "params": sorted(numbers[name] for name in group["params"])} for group in state["param_groups"]]
    return {"state": {numbers[name]: value for name, value in state["state"].items()}, "param_groups": groups}
