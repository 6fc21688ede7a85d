"""LoRA and QLoRA by PEFT: attaching, quantising the base, and a second, frozen adapter that is the reference.

With LoRA the reference is the base model, adapter off. Where ``reference.refresh: epoch`` wants a newer one, a second
adapter of the same shape, :data:`REFERENCE`, keeps the policy of that moment: a few megabytes instead of a model.

Source: LoRA (Hu et al. 2021, arXiv 2106.09685), QLoRA (Dettmers et al. 2023, arXiv 2305.14314).
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

#: PEFT's name of the adapter that is trained.
POLICY = "default"
#: And of the frozen one.
REFERENCE = "reference"


def arguments(model: nn.Module, lora: dict[str, Any], untouched: nn.Module | None) -> dict[str, Any]:
    """``lora`` with a part of the model excluded, unless it excludes something itself."""
    if untouched is None or "exclude_modules" in lora:
        return lora
    name = next(name for name, module in model.named_modules() if module is untouched)
    return {**lora, "exclude_modules": rf"(.*\.)?{re.escape(name)}\..*"}


def attach(model: Any, lora: dict[str, Any], untouched: nn.Module | None = None) -> Any:
    """The model with a LoRA adapter of these ``peft.LoraConfig`` arguments, its base frozen.

    Args:
        model: of transformers.
        lora: the arguments.
        untouched: a part of the model that gets no adapter, whatever the names of its layers.

    Raises:
        ValueError: PEFT refuses the arguments, or finds no module to adapt.
    """
    from peft import LoraConfig, get_peft_model

    try:
        return get_peft_model(model, LoraConfig(**arguments(model, lora, untouched)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"policy.lora: {error}") from None


def add_reference(model: Any, lora: dict[str, Any]) -> None:
    """Add a frozen copy of the trained adapter; before the model is sharded.

    Raises:
        ValueError: the adapter trains whole modules too, which would have to be kept twice.
    """
    from peft import LoraConfig

    if lora.get("modules_to_save"):
        raise ValueError("reference.refresh is 'epoch', which cannot keep policy.lora.modules_to_save; use 'never'")
    excluded = model.peft_config[POLICY].exclude_modules
    model.add_adapter(REFERENCE, LoraConfig(**{**lora, "exclude_modules": excluded}))
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
    """Names and values of the weights that the trained adapter changes, adapter added; the model stays as it is."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.integrations import dequantize_module_weight

    for name, module in base.named_modules():
        if isinstance(module, BaseTunerLayer):
            layer: Any = module
            weight = dequantize_module_weight(layer.get_base_layer())
            yield f"{name}.weight", weight + layer.get_delta_weight(POLICY).to(weight.dtype)


def merged(path: str, adapter: str, dtype: str) -> Any:
    """The base checkpoint at ``path`` in ``dtype``, on the CPU, with the adapter in that folder merged into it."""
    from peft import PeftModel

    base = AutoModelForImageTextToText.from_pretrained(path, dtype=getattr(torch, dtype))
    return PeftModel.from_pretrained(base, adapter).merge_and_unload()


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
