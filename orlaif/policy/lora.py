"""LoRA and QLoRA by PEFT: attaching, quantising the base, and a second, frozen adapter that is the reference.

With LoRA the reference is the base model, adapter off. Where the policy does not start as its base (it starts from an
adapter), or ``reference.refresh: epoch`` wants a newer one, a second adapter of the same shape, :data:`REFERENCE`,
keeps the policy of that moment: a few megabytes instead of a model.

Source: LoRA (Hu et al. 2021, arXiv 2106.09685), QLoRA (Dettmers et al. 2023, arXiv 2305.14314).
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from orlaif.policy.merging import fold

log = logging.getLogger(__name__)

#: PEFT's name of the adapter that is trained.
POLICY = "default"
#: And of the frozen one.
REFERENCE = "reference"


def arguments(model: nn.Module, lora: dict[str, Any], untouched: Sequence[nn.Module]) -> dict[str, Any]:
    """``lora`` with parts of the model excluded, unless it excludes something itself."""
    if not untouched or "exclude_modules" in lora:
        return lora
    parts = {id(module) for module in untouched}
    names = [re.escape(name) for name, module in model.named_modules() if id(module) in parts]
    return {**lora, "exclude_modules": rf"(.*\.)?({'|'.join(names)})(\..*)?"}


#: Ways to start an adapter under which the base stays as its checkpoint has it, and all that is trained is kept.
_STARTS = (True, False, "gaussian", "orthogonal")
#: Variants of LoRA that change the base, draw noise, or look at the ids of a row: PEFT's arguments for them.
_VARIANTS = (
    *("kasa_config", "monteclora_config", "velora_config", "arrow_config", "alora_invocation_tokens"),
    *("use_bdlora", "use_qalora", "megatron_config", "eva_config", "corda_config", "lora_ga_config"),
)


def check_settings(lora: dict[str, Any]) -> None:
    """Raise ValueError for arguments of ``LoraConfig`` under which base, reference or export would not be true.

    PiSSA, OLoRA, LoftQ, CorDA and LoRA-GA take a part out of the base's weights and put it into the adapter: the base
    with the adapter off is then no longer the checkpoint, a resumed run makes another base, and an exported adapter
    belongs to none. EVA, CorDA and LoRA-GA look at data first, and MiCA freezes what it draws from the base.
    """
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


def attach(model: Any, lora: dict[str, Any], untouched: Sequence[nn.Module] = ()) -> Any:
    """The model with a LoRA adapter of these ``peft.LoraConfig`` arguments, its base frozen.

    Args:
        model: of transformers.
        lora: the arguments.
        untouched: parts of the model that get no adapter, whatever the names of its layers.

    Raises:
        ValueError: PEFT refuses the arguments, or finds no module to adapt; or see :func:`check_settings`.
    """
    from peft import LoraConfig, get_peft_model

    check_settings(lora)
    try:
        return get_peft_model(model, LoraConfig(**arguments(model, lora, untouched)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"policy.lora: {error}") from None


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


#: What an adapter trains besides low-rank matrices; PEFT itself keeps what was there before.
_EXTRAS = ("modules_to_save", "trainable_token_indices", "target_parameters")


def needs_copy(lora: dict[str, Any]) -> bool:
    """Whether a fresh adapter of these settings adds something (if only by rounding), so that it is no longer its base.

    With an extra that cannot be kept twice the base is taken all the same: what differs is rounding, or a random start.
    """
    starts_as_base = lora.get("init_lora_weights", True) in (True, "gaussian") and not lora.get("use_dora")
    return not starts_as_base and not any(lora.get(name) for name in _EXTRAS)


def check_reference(lora: dict[str, Any]) -> None:
    """Raise ValueError where the base with the adapter off is not the base: trained biases stay."""
    if lora.get("bias", "none") != "none":
        raise ValueError(
            f"policy.lora.bias is {lora['bias']!r}, which trains biases of the base itself: with the adapter off they "
            "would still be there, and it would be no reference; use 'none' (or loss.kl_coef: 0, for no reference)"
        )


def add_reference(model: Any, lora: dict[str, Any]) -> None:
    """Add a frozen copy of the trained adapter; before the model is sharded.

    Raises:
        ValueError: the adapter trains more than low-rank matrices, which would have to be kept twice.
    """
    from peft import LoraConfig

    for name in _EXTRAS:
        if lora.get(name):
            raise ValueError(
                f"policy.lora.{name} is given, which cannot be kept a second time for a reference that is an adapter: "
                "reference.refresh is 'epoch', or the policy starts from an adapter; use 'never' and a whole model "
                "(orlaif export --merge), or loss.kl_coef: 0"
            )
    excluded = model.peft_config[POLICY].exclude_modules
    settings = {**lora, "exclude_modules": excluded, "init_lora_weights": True}
    model.add_adapter(REFERENCE, LoraConfig(**settings))
    for name, parameter in model.named_parameters():
        if _is(REFERENCE, name):
            parameter.requires_grad_(False)
    refresh_reference(model)


def _is(adapter: str, name: str) -> bool:
    return adapter in name.split(".")


def is_reference(name: str) -> bool:
    """Whether a parameter of this name belongs to the frozen adapter."""
    return ".lora_" in name and _is(REFERENCE, name)


@torch.no_grad()
def refresh_reference(model: nn.Module) -> None:
    """Copy the trained adapter into the frozen one, each process its own shard."""
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if is_reference(name):
            words = [POLICY if word == REFERENCE else word for word in name.split(".")]
            parameter.copy_(parameters[".".join(words)])


@contextmanager
def adapter_active(model: nn.Module, adapter: str) -> Iterator[None]:
    """Compute with this adapter; PEFT's own ``set_adapter`` would also change what is trained."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    before = [layer._active_adapter for layer in layers]
    for layer in layers:
        layer._active_adapter = [adapter]
    try:
        yield
    finally:
        for layer, active in zip(layers, before, strict=True):
            layer._active_adapter = active


def adapted_weights(base: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and values of the weights that the trained adapter changes, adapter added; the model stays as it is.

    Raises:
        ValueError: the adapter is more than a product of two matrices beside each layer.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.integrations import dequantize_module_weight

    for name, module in base.named_modules():
        if isinstance(module, BaseTunerLayer):
            layer: Any = module
            if getattr(layer, "use_dora", {}).get(POLICY):
                raise ValueError("policy.lora.use_dora: an engine beside the trainer cannot be given DoRA's weights")
            weight = dequantize_module_weight(layer.get_base_layer())
            yield f"{name}.weight", weight + layer.get_delta_weight(POLICY).to(weight.dtype)


def quantization_config(quantization: dict[str, Any]) -> Any:
    """``transformers.BitsAndBytesConfig`` of these arguments.

    Raises:
        ValueError: bitsandbytes is not installed, or an argument that it does not know.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("policy.quantization needs bitsandbytes, which is not installed: pip install orlaif[qlora]")
    settings = dict(quantization)
    for name in ("bnb_4bit_compute_dtype", "bnb_4bit_quant_storage"):
        if isinstance(value := settings.get(name), str):
            settings[name] = getattr(torch, value, None)
            if settings[name] is None:
                raise ValueError(f"policy.quantization.{name} is {value!r}; it must be a dtype such as 'bfloat16'")
    return BitsAndBytesConfig(**settings)
