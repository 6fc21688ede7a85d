"""The part of the training stages that checkpoints are about: what they hold, what they leave out, what may differ."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from orlaif.distributed.changes import is_allowed
from orlaif.evaluation.loop import Evaluated, Loop, Stage
from orlaif.policy import Policy
from orlaif.policy import lora as adapters
from orlaif.training.notes import StepNotes
from orlaif.training.resume import base_fingerprint, stated_settings, use_stated

log = logging.getLogger(__name__)


class ResumableModule(Evaluated):
    """A stage whose checkpoints a run can go on from.

    Args:
        policy: the model to be trained.
        eval_max_new_tokens: longest greedy answer in validation, test and prediction.
        loops: what is done in validation, test and prediction.
    """

    def __init__(self, policy: Policy, eval_max_new_tokens: int, loops: Mapping[Stage, Loop]) -> None:
        super().__init__(policy, eval_max_new_tokens, loops)
        self.notes = StepNotes()
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

    def trained_parameters(self) -> list[nn.Parameter]:
        """Parameters that the optimizer moves, in the order that checkpoints number them."""
        return [p for p in self.policy.network.parameters() if p.requires_grad]

    def know_base(self) -> None:
        """Once the policy is loaded: what it starts from."""
        if not self._base:
            self._base = base_fingerprint(self.policy.network)

    def know_stated(self, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
        """What the recipe states of a new optimizer and scheduler."""
        self._stated = stated_settings(optimizer, scheduler)

    def batch_begins(self) -> None:
        """A batch begins; the first one behind a step of the optimizer finds the totals that belong to that step."""
        if self.global_step != self._at_step[0]:
            self._at_step = self.global_step, dict(self.totals)
        self._is_sampling = True

    def batch_is_done(self) -> None:
        """The passes of a batch are done."""
        self._is_sampling = False

    def weights_change(self) -> None:
        """The optimizer is about to move the weights."""
        self._changed_at = self.global_step

    def on_train_start(self) -> None:
        """Of a run that goes on: use the learning rate and the other settings that its recipe states."""
        self._at_step, self._changed_at, self._is_sampling = (-1, {}), -1, False
        self.policy.version += 1  # a checkpoint may have been loaded
        before, self._stated_before = self._stated_before, {}
        if before:
            scheduler = self.trainer.lr_scheduler_configs[0].scheduler if self.trainer.lr_scheduler_configs else None
            for line in use_stated(self._stated, before, self.trainer.optimizers[0], scheduler):
                log.info("resumed with another %s, as the recipe states", line)

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
        present = self.state_dict()
        checkpoint["state_dict"].update({name: present[name] for name in self.reloaded_keys(present)})
        by_number = {name: i for i, name in enumerate(self.trained_names())}
        states = checkpoint.get("optimizer_states", [])
        checkpoint["optimizer_states"] = [state_by_number(state, by_number) for state in states]

    def _check_base(self, checkpoint: dict[str, Any]) -> None:
        if "callbacks" not in checkpoint:
            raise ValueError("the checkpoint holds weights only (save_weights_only); a run cannot go on from it")
        base = checkpoint.get("base", self._base)
        if base != self._base and not is_allowed("model.policy.path", self.resume_changed):
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
        """Those keys of a state dict that come from the policy's checkpoint, not from Lightning's."""
        frozen = {name for name, p in self.named_parameters(remove_duplicate=False) if self._is_reloaded(name, p)}
        reloaded = set()
        for key in keys:
            words = key.split(".")  # a quantised weight has further keys below its name
            if any(".".join(words[:n]) in frozen for n in range(len(words), max(0, len(words) - 3), -1)):
                reloaded.add(key)
        return reloaded

    def _is_reloaded(self, name: str, parameter: nn.Parameter) -> bool:
        return not parameter.requires_grad and not adapters.is_reference(name)


def state_by_number(state: dict[str, Any], numbers: dict[str, int]) -> dict[str, Any]:
    """An optimizer's state by the numbers of its parameters, as torch has it, from one by their names (or numbers)."""
    if not any(isinstance(key, str) for key in state["state"]):
        return state
    groups = [{**group, "params": sorted(numbers[name] for name in group["params"])} for group in state["param_groups"]]
    return {"state": {numbers[name]: value for name, value in state["state"].items()}, "param_groups": groups}
