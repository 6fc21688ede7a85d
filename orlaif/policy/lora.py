"""LoRA and QLoRA by PEFT: attaching, quantising the base, and a second, frozen adapter that is the reference.

With LoRA the reference is the base model, adapter off. Where the policy does not start as its base (it starts from an
adapter), or ``reference.refresh: epoch`` wants a newer one, a second adapter of the same shape, :data:`REFERENCE`,
keeps the policy of that moment: a few megabytes instead of a model.

Source: LoRA (Hu et al. 2021, arXiv 2106.09685), QLoRA (Dettmers et al. 2023, arXiv 2305.14314).
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from orlaif.policy.experts import ALL_EXPERTS, expert_parameters, linear_names
from orlaif.policy.lora_names import named_targets
from orlaif.policy.lora_settings import EXTRAS, check_settings

#: PEFT's name of the adapter that is trained.
POLICY = "default"
#: And of the frozen one.
REFERENCE = "reference"


def arguments(model: Any, lora: dict[str, Any], untouched: Sequence[nn.Module]) -> dict[str, Any]:
    """``lora`` with parts of the model excluded, unless it excludes something itself, and what it calls "all" named.

    Raises:
        ValueError: ``target_parameters: all-experts`` for a model that has none, or see :func:`named_targets`.
    """
    parts = set() if "exclude_modules" in lora else {id(module) for module in untouched}
    settings = dict(lora)
    if parts:
        names = [re.escape(name) for name, module in model.named_modules() if id(module) in parts]
        settings["exclude_modules"] = rf"(.*\.)?({'|'.join(names)})(\..*)?"
    if lora.get("target_modules") == "all-linear":
        settings["target_modules"] = linear_names(model, parts)
    elif lora.get("target_modules") and "layers_to_transform" not in lora:  # which PEFT asks of shortened names only
        settings["target_modules"] = named_targets(model, lora["target_modules"], parts)
    if lora.get("target_parameters") == ALL_EXPERTS:
        settings["target_parameters"] = expert_parameters(model)
        if not settings["target_parameters"]:
            raise ValueError(
                f"policy.lora.target_parameters is {ALL_EXPERTS!r}, and model type {model.config.model_type!r} has no "
                "experts; leave it out"
            )
    return settings


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
    settings = arguments(model, lora, untouched)
    try:
        adapted = get_peft_model(model, LoraConfig(**settings))
    except (TypeError, ValueError) as error:
        raise ValueError(f"policy.lora: {error}") from None
    if lora.get("trainable_token_indices") and any(_is_layer(module) for module in embeddings(model)):
        raise ValueError(
            "policy.lora.trainable_token_indices is given, and target_modules has lm_head or the embedding as well, "
            "which PEFT can neither merge nor load; leave one of them out"
        )
    return adapted


def embeddings(model: Any) -> list[nn.Module]:
    """Embedding and LM head, with whatever PEFT has put around them."""
    pair = (model.get_input_embeddings(), model.get_output_embeddings())
    return [module for module in pair if module is not None]


def _is_layer(module: nn.Module) -> bool:
    """Whether a module is a layer with an adapter beside it."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return isinstance(module, BaseTunerLayer)


def check_merge(model: Any) -> None:
    """Raise ValueError for an adapter that cannot be merged into its base, before it is trained.

    Args:
        model: of PEFT.
    """
    config = model.peft_config[POLICY]
    for name, module in model.get_base_model().named_modules():
        layer: Any = module
        if config.lora_bias and _is_layer(module) and getattr(layer.get_base_layer(), "bias", None) is None:
            raise ValueError(
                f"policy.lora.lora_bias is true, and {name} has no bias to merge the adapter's into; leave it out, or "
                "export the adapter (merge: false)"
            )


def add_reference(model: Any, lora: dict[str, Any]) -> None:
    """Add a frozen copy of the trained adapter; before the model is sharded.

    Raises:
        ValueError: the adapter trains more than low-rank matrices, which would have to be kept twice.
    """
    from peft import LoraConfig

    for name in EXTRAS:
        if lora.get(name):
            raise ValueError(
                f"policy.lora.{name} is given, which cannot be kept a second time for a reference that is an adapter: "
                "reference.refresh is 'epoch', or the policy starts from an adapter; use 'never' and a whole model "
                "(orlaif export --merge), or loss.kl_coef: 0"
            )
    trained = model.peft_config[POLICY]  # in which what the settings call "all" has been named
    names = {name: getattr(trained, name) for name in ("target_modules", "target_parameters", "exclude_modules")}
    settings = {**lora, **names, "init_lora_weights": True}
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
    """Copy the trained adapter into the frozen one, each process its shard."""
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
        ValueError: the adapter is more than a product of two matrices beside each layer, or stands beside a matrix
            that the engine has once and the policy twice.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.integrations import dequantize_module_weight
    from peft.utils.other import AuxiliaryTrainingWrapper

    if any(isinstance(module, AuxiliaryTrainingWrapper) for module in base.modules()):
        raise ValueError("policy.lora trains whole modules or tokens, which an engine beside the trainer is not given")
    if base.config.tie_word_embeddings and any(_is_layer(module) for module in embeddings(base)):  # type: ignore[union-attr]
        raise ValueError(
            "policy.lora.target_modules has lm_head or the embedding, which are one matrix in this model: an engine "
            "beside the trainer could not tell them apart; leave them out, or use orlaif.rollout.Rollout"
        )
    for name, module in base.named_modules():
        if isinstance(module, BaseTunerLayer):
            layer: Any = module
            if getattr(layer, "use_dora", {}).get(POLICY):
                raise ValueError("policy.lora.use_dora: an engine beside the trainer cannot be given DoRA's weights")
            if (parameter := getattr(layer, "parameter_name", None)) is not None:  # of experts, which are no layer
                weight, layer_name = layer.get_param(), name.replace(".base_layer", "")
            else:
                weight, layer_name, parameter = dequantize_module_weight(layer.get_base_layer()), name, "weight"
            yield f"{layer_name}.{parameter}", weight + layer.get_delta_weight(POLICY).to(weight.dtype)


def quantization_config(quantization: dict[str, Any]) -> Any:
    """``transformers.BitsAndBytesConfig`` of these arguments.

    Raises:
        ValueError: bitsandbytes is not installed, or an argument that it does not know.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            "policy.quantization needs bitsandbytes, which is not installed: pip install '.[qlora]' in a checkout"
        )
    settings = dict(quantization)
    for name in ("bnb_4bit_compute_dtype", "bnb_4bit_quant_storage"):
        if isinstance(value := settings.get(name), str):
            settings[name] = getattr(torch, value, None)
            if settings[name] is None:
                raise ValueError(f"policy.quantization.{name} is {value!r}; it must be a dtype such as 'bfloat16'")
    return BitsAndBytesConfig(**settings)
