"""Which settings of LoRA keep the base, the reference and the export true; the others are refused by name."""

from __future__ import annotations

import dataclasses
from typing import Any

from orlaif.near_misses import did_you_mean

#: Ways to start an adapter under which the base stays as its checkpoint has it, and all that is trained is kept.
_STARTS = (True, False, "gaussian", "orthogonal")
#: Variants of LoRA that change the base, draw noise, or look at the ids of a row: PEFT's arguments for them.
_VARIANTS = (
    *("kasa_config", "monteclora_config", "velora_config", "arrow_config", "alora_invocation_tokens"),
    *("use_bdlora", "use_qalora", "megatron_config", "eva_config", "corda_config", "lora_ga_config"),
)


def check_settings(lora: dict[str, Any]) -> None:
    """Raise ValueError for keys that ``LoraConfig`` has not, and for those by which base, reference or export lie.

    PiSSA, OLoRA, LoftQ, CorDA and LoRA-GA take a part out of the base's weights and put it into the adapter: the base
    with the adapter off is then no longer the checkpoint, a resumed run makes another base, and an exported adapter
    belongs to none. EVA, CorDA and LoRA-GA look at data first, and MiCA freezes what it draws from the base.
    """
    from peft import LoraConfig

    keys = [field.name for field in dataclasses.fields(LoraConfig) if field.init]
    for name in lora:
        if name not in keys:
            raise ValueError(f"policy.lora has no key {name!r}{did_you_mean(name, keys)}")
    start = lora.get("init_lora_weights", True)
    if not any(start is known or (isinstance(known, str) and start == known) for known in _STARTS):
        raise ValueError(
            f"policy.lora.init_lora_weights is {start!r}, which changes the base's weights, or draws the adapter from "
            "them or from data: the base with the adapter off would not be the checkpoint any more; use true, "
            "'gaussian' or 'orthogonal'"
        )
    for name in _VARIANTS:
        if lora.get(name):
            raise ValueError(f"policy.lora.{name} is given: this variant of LoRA is not supported; leave it out")


#: What an adapter trains besides low-rank matrices; PEFT itself keeps what was there before.
EXTRAS = ("modules_to_save", "trainable_token_indices")


def needs_copy(lora: dict[str, Any]) -> bool:
    """Whether a fresh adapter of these settings adds something (if only by rounding), so that it is no longer its base.

    With an extra that cannot be kept twice the base is taken all the same: what differs is rounding, or a random start.
    """
    starts_as_base = lora.get("init_lora_weights", True) in (True, "gaussian") and not lora.get("use_dora")
    return not starts_as_base and not any(lora.get(name) for name in EXTRAS)


def check_reference(lora: dict[str, Any]) -> None:
    """Raise ValueError where the base with the adapter off is not the base: trained biases stay."""
    if lora.get("bias", "none") != "none":
        raise ValueError(
            f"policy.lora.bias is {lora['bias']!r}, which trains biases of the base itself: with the adapter off they "
            "would still be there, and it would be neither reference nor judge; use 'none' (or loss.kl_coef: 0)"
        )
