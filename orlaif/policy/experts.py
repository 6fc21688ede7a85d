"""Mixtures of experts: their routers and their fused weights, as the model itself tells them.

Transformers keeps the experts of a layer in one tensor of three dimensions, no layer of its own, so that an adapter on
"all linear layers" passes them by; PEFT adapts them where ``target_parameters`` names them.
"""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

from orlaif.policy.asking import base_of

log = logging.getLogger(__name__)

#: For ``policy.lora.target_parameters``: the weights of all experts.
ALL_EXPERTS = "all-experts"
#: What configs call the number of experts that a token goes through.
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_k", "top_k")


def routers(model: Any) -> list[tuple[str, nn.Module]]:
    """The modules that choose among experts, with their names: those whose outputs the model records as such.

    Args:
        model: of transformers, or PEFT's around one.
    """
    base = base_of(model)
    recorded: list[Any] = []
    for module in base.modules():
        record = (getattr(module, "_can_record_outputs", None) or {}).get("router_logits")
        recorded += record if isinstance(record, (list, tuple)) else [record]
    kinds = tuple({getattr(one, "target_class", one) for one in recorded if one is not None})
    found = [(name, module) for name, module in base.named_modules() if kinds and isinstance(module, kinds)]
    return [(name, module) for name, module in found if not _holds_experts(module)]


def _holds_experts(module: nn.Module) -> bool:
    """Whether a module is a whole block of experts, which some models record the choice of."""
    return any(parameter.ndim == 3 for parameter in module.parameters())


def expert_parameters(model: Any) -> list[str]:
    """Names of the fused weights of experts, [experts, ...], from the name of the last layer's module on.

    Args:
        model: of transformers.
    """
    names = fused_experts(base_of(model).get_decoder())
    return sorted({".".join(name.split(".")[-3:]) for name in names})


def fused_experts(decoder: nn.Module) -> dict[str, nn.Parameter]:
    """The fused weights of experts, [experts, ...], by name; weights of convolutions have three dimensions too."""
    convolutions = [module for module in decoder.modules() if isinstance(module, nn.Conv1d)]
    others = {id(parameter) for module in convolutions for parameter in module.parameters()}
    return {name: p for name, p in decoder.named_parameters() if p.ndim == 3 and id(p) not in others}


def active_share(config: Any, experts: int) -> float:
    """The share of a layer's experts that a token goes through.

    Args:
        config: of the decoder.
        experts: of a layer.

    Raises:
        ValueError: the config does not say how many.
    """
    chosen = next((getattr(config, name) for name in _CHOSEN if isinstance(getattr(config, name, None), int)), None)
    if chosen is None:
        raise ValueError(f"the config of {config.model_type!r} does not say how many experts a token goes through")
    return min(1.0, chosen / experts)


def active_parameters(model: Any, text: Any) -> int | None:
    """Of a mixture of experts, the parameters that one token goes through, embeddings and vision tower included.

    Where a family has experts for each modality, those of every modality are counted.

    Args:
        model: of transformers, or PEFT's around one.
        text: config of its decoder.

    Returns:
        How many; None for a model without experts.

    Raises:
        ValueError: the config does not say how many experts a token goes through.
    """
    experts = fused_experts(base_of(model).get_decoder()).values()
    if not experts:
        return None
    idle = sum((1 - active_share(text, len(p))) * p.numel() for p in experts)
    return sum(p.numel() for p in model.parameters()) - round(idle)


def linear_names(model: Any, untouched: set[int]) -> list[str]:
    """Names of all linear layers but the LM head and routers, as short as they are not another module's as well.

    PEFT's own ``all-linear`` shortens a layer called ``mlp.0`` to ``0``, which is a decoder's first layer too.

    Args:
        model: of transformers.
        untouched: ids of modules that get no adapter, nor do those inside them.
    """
    excluded = {id(inner) for module in model.modules() if id(module) in untouched for inner in module.modules()}
    every = {name: module for name, module in model.named_modules() if name and id(module) not in excluded}
    kept = {id(model.get_output_embeddings()), *(id(module) for _, module in routers(model))}
    linear = [name for name, module in every.items() if isinstance(module, nn.Linear) and id(module) not in kept]
    others = [f".{name}" for name in every.keys() - set(linear)]
    names = set()
    for name in linear:
        parts = name.split(".")
        shorter = (".".join(parts[-n:]) for n in range(1, len(parts) + 1))
        names.add(next((one for one in shorter if not any(other.endswith(f".{one}") for other in others)), name))
    return sorted(names)


def leave_out_balance(model: Any) -> None:
    """Train without an auxiliary loss that balances experts, and say so where the checkpoint's config asks for one.

    Args:
        model: of transformers; its passes compute none from now on.
    """
    config = base_of(model).config
    asking = [c for c in (config, config.get_text_config(decoder=True)) if getattr(c, "output_router_logits", False)]
    for one in asking:
        one.output_router_logits = False
    if asking:
        log.warning(
            "the config of model type %r has output_router_logits: true, by which transformers adds a loss that "
            "balances experts (router_aux_loss_coef %s); training here is without it",
            config.model_type,
            getattr(asking[-1], "router_aux_loss_coef", "unknown"),
        )
