"""Adapters into weights: merging one into its base, and two low-rank adapters into one.

A model whose LM head is its embedding (tied) has one matrix in two places. An adapter on one of them makes two matrices
of it: they are taken apart before the adapter is merged, and the config says so.
"""

from __future__ import annotations

import json
import os
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from orlaif.distributed.deferred import hold
from orlaif.policy.families import Family
from orlaif.policy.hub import ADAPTER_CONFIG, Source

_WEIGHTS = "adapter_model.safetensors"
#: Settings of LoRA with which an adapter is more than a product of two matrices beside each layer.
_MORE = (
    *("use_dora", "bias", "lora_bias", "modules_to_save", "trainable_token_indices", "target_parameters"),
    *("layer_replication", "ensure_weight_tying"),
)


def _weight_owner(module: Any) -> Any:
    """The plain layer below whatever PEFT has put around it."""
    while module is not None and hasattr(module, "get_base_layer"):
        module = module.get_base_layer()
    return getattr(module, "original_module", module)


def _say_tied(model: Any, tied: bool) -> None:
    for config in {id(c): c for c in (model.config, model.config.get_text_config(decoder=True))}.values():
        if hasattr(config, "tie_word_embeddings"):
            config.tie_word_embeddings = tied


def merge(model: Any) -> Any:
    """A PEFT model as a plain one, its active adapter merged into the weights.

    Args:
        model: of PEFT; it is used up.

    Raises:
        ValueError: an adapter of a kind that cannot be merged.
    """
    base = model.get_base_model()
    embedding, head = _weight_owner(base.get_input_embeddings()), _weight_owner(base.get_output_embeddings())
    tied = head is not None and getattr(head, "weight", None) is not None and head.weight is embedding.weight
    if tied:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
        _say_tied(base, False)
    if not hasattr(model, "merge_and_unload"):
        kind = model.peft_config[model.active_adapter].peft_type
        raise ValueError(f"an adapter of type {getattr(kind, 'value', kind)} cannot be merged into its base")
    plain = model.merge_and_unload()
    if tied:
        embedding, head = plain.get_input_embeddings(), plain.get_output_embeddings()
        tied = torch.equal(embedding.weight, head.weight)
        if tied:
            head.weight = embedding.weight
        _say_tied(plain, tied)
    return plain


def fold(model: Any, adapter: str) -> Any:
    """``model`` with the PEFT adapter in a folder merged into it; weights that are still in files are read whole."""
    from peft import PeftModel

    hold(model)
    return merge(PeftModel.from_pretrained(model, adapter))


def merged(source: Source, adapter: str, dtype: str, family: Family) -> Any:
    """The whole model that a run started from, on the CPU, with the adapter in that folder merged into it.

    Args:
        source: what the run started from.
        adapter: folder of what it trained.
        dtype: such as ``bfloat16``.
        family: by which the model is loaded.
    """
    return fold(family.load(source.model, revision=source.revision, dtype=getattr(torch, dtype)), adapter)


def add_adapters(first: str, second: str) -> None:
    """Make the low-rank adapter in folder ``second`` the sum of both, with r = r1 + r2, on the base of ``first``.

    Raises:
        ValueError: an adapter that is more than low-rank matrices (:func:`check_sum`).
    """
    from peft.utils import load_peft_weights

    settings: list[dict[str, Any]] = []
    weights: list[dict[str, torch.Tensor]] = []
    for folder in (first, second):
        with open(os.path.join(folder, ADAPTER_CONFIG), encoding="utf-8") as file:
            settings.append(json.load(file))
        weights.append(load_peft_weights(folder, device="cpu"))
    check_sum(first, settings[1])
    modules = sorted({name.rpartition(".lora_")[0] for state in weights for name in state})
    summed: dict[str, torch.Tensor] = {}
    sizes: dict[str, int] = {}
    for module in modules:
        down, up = [], []
        for about, state in zip(settings, weights, strict=True):
            if (a := state.get(f"{module}.lora_A.weight")) is not None:
                down.append(a)
                up.append(state[f"{module}.lora_B.weight"] * _scaling(about, module, len(a)))
        summed[f"{module}.lora_A.weight"] = torch.cat(down).contiguous()
        summed[f"{module}.lora_B.weight"] = torch.cat(up, 1).contiguous()
        sizes[module.removeprefix("base_model.model.")] = len(summed[f"{module}.lora_A.weight"])
    largest = max(sizes.values())
    about = {**settings[1], "r": largest, "lora_alpha": largest, "use_rslora": False, "target_modules": sorted(sizes)}
    about |= {"rank_pattern": {}, "alpha_pattern": {}, "exclude_modules": None, "layers_to_transform": None}
    for name, size in sizes.items():
        if size != largest:
            about["rank_pattern"][name] = about["alpha_pattern"][name] = size
    save_file(summed, os.path.join(second, _WEIGHTS), metadata={"format": "pt"})
    with open(os.path.join(second, ADAPTER_CONFIG), "w", encoding="utf-8") as file:
        json.dump(about, file, indent=2)


def check_sum(first: str, second: dict[str, Any]) -> None:
    """Raise ValueError where the sum of two adapters is none, since one is more than low-rank matrices.

    Args:
        first: folder of the one that the policy started from.
        second: settings of the one that is trained.
    """
    with open(os.path.join(first, ADAPTER_CONFIG), encoding="utf-8") as file:
        settings = {f"the adapter {first}": json.load(file), "policy.lora": second}
    for who, about in settings.items():
        more = [name for name in _MORE if about.get(name) not in (None, False, [], {}, "none")]
        if str(getattr(about["peft_type"], "value", about["peft_type"])) != "LORA":
            more = ["peft_type"]
        if more:
            raise ValueError(
                f"{who} has {more[0]}: {about[more[0]]!r}, so that the policy, which started from an adapter of other "
                "settings, cannot be written as one adapter; export it with merge: true"
            )


def _scaling(about: dict[str, Any], module: str, r: int) -> float:
    """What PEFT multiplies B A with."""
    from peft.utils.other import get_pattern_key

    name = module.removeprefix("base_model.model.")
    pattern: dict[str, float] = about.get("alpha_pattern") or {}
    alpha: float = pattern.get(get_pattern_key(list(pattern), name), about["lora_alpha"])
    return float(alpha / (r**0.5 if about.get("use_rslora") else r))
