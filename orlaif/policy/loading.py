"""From a checkpoint to the model that is trained: weights, layout of groups, frozen vision tower, adapters."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from orlaif.distributed.heap import freed_at_once
from orlaif.policy import lora as adapters
from orlaif.policy.experts import leave_out_balance
from orlaif.policy.lora_start import start_from
from orlaif.policy.merging import fold
from orlaif.policy.prefix.choice import PrefixChoice, choose_prefix
from orlaif.policy.prefix.synthetic import narrow_windows, synthetic_prompt
from orlaif.policy.reached import freeze_unreached
from orlaif.policy.recomputation import recompute
from orlaif.policy.unread import held, unread
from orlaif.stages import stage

if TYPE_CHECKING:
    from orlaif.policy.policy import Policy

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A policy's model, ready for training.

    Args:
        model: of transformers or, with LoRA, of PEFT.
        choice: how groups go through it.
        continued: whether the adapter at the policy's path is the one that is trained on.
        folded: the adapter at that path where it was merged into the base, under the one that is trained.
    """

    model: Any
    choice: PrefixChoice
    continued: bool = False
    folded: str | None = None


@stage("loading the model")
def load_model(policy: Policy, device: torch.device | None, later: bool = False) -> Loaded:
    """The model that the settings of ``policy`` ask for.

    Args:
        policy: whose settings, source, family and processor are used; its ``attn_implementation`` becomes ``eager``
            where the model has no other.
        device: where a quantised base goes; others stay on the CPU.
        later: leave weights in their files where that can be.

    Raises:
        ValueError: a quantised base without a GPU, or as :func:`~orlaif.policy.prefix.choice.choose_prefix`.
    """
    with freed_at_once() if later else nullcontext():
        return _loaded(policy, device, later)


def _loaded(policy: Policy, device: torch.device | None, later: bool) -> Loaded:
    source, family = policy.source, policy.family
    options: dict[str, Any] = {"revision": source.revision}
    if policy.quantization is not None:
        if device is None or device.type == "cpu":  # where bitsandbytes has no gradient
            raise ValueError("policy.quantization needs a GPU, and this run has none")
        options["quantization_config"] = adapters.quantization_config(policy.quantization)
        options["device_map"] = {"": device}
    with unread() if later else nullcontext():
        model: Any = family.load(
            source.model, dtype=getattr(torch, policy.dtype), attn_implementation=policy.attn_implementation, **options
        )
    if later and (whole := held(model)):
        log.info("each process holds %s, and %d more weights, whole before they are sharded", whole[0], len(whole) - 1)
    if model.get_decoder().config._attn_implementation == "eager":
        policy.attn_implementation = "eager"
    leave_out_balance(model)
    if source.adapter is not None and policy.lora is None:
        model = fold(model, source.adapter)
    with narrow_windows(model):
        choice = choose_prefix(policy, model)
    asked = synthetic_prompt(policy.processor, next(model.parameters()).device, getattr(torch, policy.dtype), family)
    tower = [*freeze_tower(policy, model), *freeze_unreached(model, asked, family)]
    continued, folded = False, None
    if policy.lora is not None and source.adapter is not None:
        model, continued = start_from(model, policy.lora, source.adapter, tower, policy.quantization is not None)
        folded = None if continued else source.adapter
    elif policy.lora is not None:
        model = adapters.attach(model, policy.lora, tower)
    recompute(model, policy.gradient_checkpointing, policy.activation_offloading)
    if policy.gradient_checkpointing and policy.lora is not None:
        model.enable_input_require_grads()
    return Loaded(model=model, choice=choice, continued=continued, folded=folded)


def freeze_tower(policy: Policy, model: Any) -> list[nn.Module]:
    """With ``freeze_vision``, freeze all that makes features of a video; the modules that get no adapter."""
    if not policy.freeze_vision:
        return []
    tower = policy.family.tower(model)
    for parameter in policy.family.tower_parameters(model):
        parameter.requires_grad_(False)
    return tower
