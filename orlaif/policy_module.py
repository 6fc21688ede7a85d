"""What the training stages share: the optimizer, the exact normaliser, greedy evaluation, and the run's folder.

**The normaliser.** A loss is a weighted sum over tokens divided by what the tokens count together, over all accumulated
batches and all ranks. How much that is, is only known when the last batch has been sampled. So every batch contributes
its undivided sum, and the gradients are divided once, after the last backward pass and before clipping. Accumulating n
batches then gives the update of one n-times larger batch, whatever the lengths of the answers.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn

from orlaif.evaluated import Evaluated
from orlaif.policy import Policy
from orlaif.types import PromptBatch


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
        super().__init__(policy, eval_max_new_tokens)
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        self.num_tokens = 0
        self.num_bad_videos = 0
        self._normalizer: Tensor | None = None
        self._stepping = False
        self._part_done = False
        self._policy_start = 0.0
        self._first_batch_at: float | None = None
        self._waited = 0.0

    # ---------------------------------------------------------------- set-up

    def configure_model(self) -> None:
        """Load the policy, and shard it where the strategy is ModelParallelStrategy (FSDP2); idempotent."""
        self.policy.load()
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

    def export(self, folder: str) -> None:
        """Write what was trained to ``folder``."""
        self.policy.export(folder)

    def configure_optimizers(self) -> Any:
        """The recipe's optimizer over all trainable parameters, and its scheduler per step."""
        optimizer = self.optimizer(self.trained_parameters())
        if self.lr_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.lr_scheduler(optimizer), "interval": "step"}}

    def seed_step(self, batch_idx: int) -> torch.Generator:
        """A generator for this batch, a function of (seed, epoch, batch, rank); also seeds torch, for dropout.

        So nothing random has to be saved in a checkpoint for a resumed run to equal the uninterrupted one.
        """
        key = f"{self.seed}/{self.current_epoch}/{batch_idx}/{self.global_rank}"
        number = random.Random(key).getrandbits(63)
        torch.manual_seed(number)
        return torch.Generator(self.device).manual_seed(number)

    # -------------------------------------------------------------- training

    def accumulate(self, total: Tensor, normalizer: Tensor, batch_idx: int) -> Tensor:
        """Hand a batch's undivided loss to Lightning; :meth:`on_after_backward` divides the gradients.

        Args:
            total: 0-dim weighted sum over the batch's tokens, with gradient.
            normalizer: 0-dim, what those tokens count together.
            batch_idx: of the training step.
        """
        self._normalizer = normalizer if self._normalizer is None else self._normalizer + normalizer
        n = self.trainer.accumulate_grad_batches
        self._stepping = (batch_idx + 1) % n == 0 or self.trainer.is_last_batch
        return total

    def backward_part(self, total: Tensor, batch_idx: int) -> None:
        """Backward pass of a part of a batch, whose last part goes to Lightning by :meth:`accumulate`.

        So that the activations of one part are freed before the next part is computed; the gradients add up.

        Args:
            total: 0-dim weighted sum over the part's tokens, with gradient.
            batch_idx: of the training step.
        """
        n = self.trainer.accumulate_grad_batches
        if not self._part_done and batch_idx % n == 0:
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()  # Lightning would do it behind the training step, and wipe this part out
        self._part_done, self._stepping = True, False
        strategy, precision = self.trainer.strategy, self.trainer.precision_plugin
        scaler = getattr(precision, "scaler", None)
        total = total / n if scaler is None else scaler.scale(total / n)
        alone = strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()
        with alone, torch.autocast(self.device.type, enabled=False):
            precision.backward(total, self, None)  # without Lightning's hooks, which are for the batch

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Lightning's, unless a part of this batch has left its gradients already."""
        if not self._part_done:
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def on_train_batch_start(self, batch: PromptBatch, batch_idx: int) -> None:
        """No part of this batch is done yet."""
        self._part_done = False

    def on_after_backward(self) -> None:
        """Once the last accumulated batch is in, divide the gradients by the normaliser of all batches and ranks."""
        self.log("time/policy", self._elapsed(self._policy_start), prog_bar=True)
        if not self._stepping:
            return
        assert self._normalizer is not None
        normalizer = self.trainer.strategy.reduce(self._normalizer, reduce_op="sum")
        self._normalizer = None
        # Lightning divided each loss by the number of batches and averages over ranks; both are undone here.
        factor = float(self.trainer.accumulate_grad_batches * self.trainer.world_size / normalizer.clamp(min=1))
        for parameter in self.trained_parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

    def empty_step(self, batch: PromptBatch, batch_idx: int) -> Tensor:
        """The step of a batch whose videos were all left out."""
        self.log_batch(batch, 0)
        self._policy_start = time.perf_counter()
        return self.accumulate(self.zero_loss(), torch.zeros((), device=self.device), batch_idx)

    def zero_loss(self) -> Tensor:
        """A loss of zero that reaches every parameter: an empty batch carries no weight but keeps ranks in step."""
        return torch.stack([p.sum() * 0.0 for p in self.trained_parameters()]).sum()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the norm of the gradients before clipping."""
        grads = [p.grad for p in self.trained_parameters() if p.grad is not None]
        self.log("train/grad_norm", nn.utils.get_total_norm(grads))

    def _elapsed(self, start: float) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - start

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Log the seconds spent inside as ``time/<name>``."""
        start = time.perf_counter()
        yield
        self.log(f"time/{name}", self._elapsed(start), prog_bar=True)

    def log_batch(self, batch: PromptBatch, num_tokens: int) -> None:
        """Log what every stage logs: decoding time; bad videos and tokens seen so far on this rank."""
        self.num_tokens += num_tokens
        self.log("time/decode", batch.decode_s, prog_bar=True, batch_size=max(1, len(batch)))
        self._log_wait(batch)
        self.log("train/num_tokens", float(self.num_tokens))
        self.num_bad_videos += len(batch.skipped)
        self.log("data/bad_videos", float(self.num_bad_videos))

    def _log_wait(self, batch: PromptBatch) -> None:
        """``time/data_wait``, and ``time/data_wait_share`` of all seconds since the first batch came."""
        self.log("time/data_wait", batch.wait_s)
        now = time.perf_counter()
        if self._first_batch_at is None:  # nothing can be decoded ahead of the first
            self._first_batch_at, self._waited = now, 0.0
            return
        self._waited += batch.wait_s
        share = self._waited / (now - self._first_batch_at)
        self.log("time/data_wait_share", share, prog_bar=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the reference out where it is the checkpoint that the run started from."""
        checkpoint["counts"] = {"num_tokens": self.num_tokens, "num_bad_videos": self.num_bad_videos}
        for name in self._reloaded_keys(checkpoint["state_dict"]):
            del checkpoint["state_dict"][name]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the reference, reloaded from its own checkpoint, back where the state dict needs it."""
        self.num_tokens = checkpoint["counts"]["num_tokens"]
        self.num_bad_videos = checkpoint["counts"]["num_bad_videos"]
        own = self.state_dict()
        checkpoint["state_dict"].update({name: own[name] for name in self._reloaded_keys(own)})

    def _reloaded_keys(self, names: Any) -> list[str]:
        """Keys of the state dict that come from the policy's own checkpoint, not from Lightning's."""
        return [name for name in names if name.startswith("policy.reference.")]
