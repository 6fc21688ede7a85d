"""Training that starts from an adapter: it is trained on, or, with other settings, merged and another one begun."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import nn

from orlaif.policy.lora import POLICY, attach
from orlaif.policy.merging import fold

log = logging.getLogger(__name__)

#: Settings that no tensor's shape shows, and that change what an adapter's weights mean.
_MEANING = (
    *("lora_alpha", "use_rslora", "alpha_pattern", "use_dora", "lora_bias", "fan_in_fan_out", "layer_replication"),
    *("bias", "modules_to_save", "trainable_token_indices", "target_parameters", "ensure_weight_tying"),
)


def continue_from(model: Any, folder: str) -> str | None:
    """Give the trained adapter the weights of the adapter in ``folder``, where it has the same settings.

    Args:
        model: with an adapter just attached.
        folder: of a PEFT adapter.

    Returns:
        None where that was done; else what differs, in words, and the model is as it was.
    """
    from peft import PeftConfig, get_peft_model_state_dict, set_peft_model_state_dict
    from peft.utils import load_peft_weights

    there: Any = PeftConfig.from_pretrained(folder)
    here: Any = model.peft_config[POLICY]
    if there.peft_type != here.peft_type:
        return f"peft_type is {there.peft_type.value} there"
    for name in _MEANING:
        old, new = getattr(there, name, None) or None, getattr(here, name, None) or None
        if old != new and not (isinstance(old, list | set) and isinstance(new, list | set) and set(old) == set(new)):
            return f"{name} is {old!r} there and {new!r} here"
    if there.r != here.r:
        return f"r is {there.r} there and {here.r} here"
    saved, mine = load_peft_weights(folder, device="cpu"), get_peft_model_state_dict(model, adapter_name=POLICY)
    shapes = [{name: tuple(value.shape) for name, value in state.items()} for state in (saved, mine)]
    if shapes[0] != shapes[1]:
        name = min(name for name in {*shapes[0], *shapes[1]} if shapes[0].get(name) != shapes[1].get(name))
        return f"{name} is {shapes[0].get(name, 'missing')} there and {shapes[1].get(name, 'missing')} here"
    set_peft_model_state_dict(model, saved, adapter_name=POLICY)
    return None


def start_from(
    model: Any, lora: dict[str, Any], adapter: str, untouched: Sequence[nn.Module] = (), quantized: bool = False
) -> tuple[Any, bool]:
    """The model with an adapter to be trained, as the adapter in a folder left off.

    Where the settings are those of that adapter, it is trained on. Where they are others, it is merged into the base in
    memory, and a new adapter begins there.

    Args:
        model: the base of that adapter, of transformers.
        lora: arguments of ``peft.LoraConfig``.
        adapter: folder of a PEFT adapter.
        untouched: as in :func:`attach`.
        quantized: the base is, so that nothing can be merged into it.

    Returns:
        The PEFT model, and whether the adapter itself is trained on.

    Raises:
        ValueError: other settings, and a quantised base; or as :func:`attach`.
    """
    model = attach(model, lora, untouched)
    if (differs := continue_from(model, adapter)) is None:
        log.info("policy.path is an adapter, which is trained on: %s", adapter)
        return model, True
    if quantized:
        raise ValueError(
            f"policy.path is an adapter with other settings than policy.lora: {differs}; it cannot be merged into a "
            "quantised base: use its settings, or make a whole model of it first (orlaif export --merge)"
        )
    log.info("policy.path is an adapter with other settings than policy.lora, merged into its base: %s", differs)
    return attach(fold(model.unload(), adapter), lora, untouched), False
