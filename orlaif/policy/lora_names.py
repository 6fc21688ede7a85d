"""What ``policy.lora.target_modules`` names: checked, and the linear layer in the place of a wrapper around it."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from orlaif.near_misses import did_you_mean

log = logging.getLogger(__name__)


def named_targets(model: Any, wanted: str | Sequence[str], untouched: set[int]) -> str | list[str]:
    """``target_modules`` as PEFT takes them.

    PEFT adapts linear layers, and refuses a module around one (Gemma 4 clips what goes through its tower's layers),
    which has the name by which people ask for the layer.

    Args:
        model: of transformers.
        wanted: ends of module names, or a pattern of whole ones.
        untouched: ids of modules that get no adapter, nor do those inside them.

    Returns:
        ``wanted``, or, where it names wrappers, the full names of all that it names.

    Raises:
        ValueError: none of the names is that of a module.
    """
    every = {name: module for name, module in model.named_modules() if name}
    if isinstance(wanted, str):
        chosen = [name for name in every if re.fullmatch(wanted, name)]
    else:
        chosen = [name for name in every if any(f".{name}".endswith(f".{end}") for end in wanted)]
        _check_known(wanted, list(every), chosen)
    excluded = {id(inner) for module in every.values() if id(module) in untouched for inner in module.modules()}
    kept = [name for name in chosen if id(every[name]) not in excluded]
    inner = {name: f"{name}.{within}" for name in kept if (within := _wrapped(every[name])) is not None}
    return sorted(inner.get(name, name) for name in kept) if inner else wanted  # type: ignore[return-value]


def _wrapped(module: nn.Module) -> str | None:
    """The name of the linear layer that is all that a module has of weights, if it is none itself."""
    linear = [name for name, part in module.named_modules() if name and isinstance(part, nn.Linear)]
    if len(linear) != 1:
        return None
    return linear[0] if all(name.startswith(f"{linear[0]}.") for name, _ in module.named_parameters()) else None


def _check_known(wanted: Sequence[str], every: Sequence[str], chosen: Sequence[str]) -> None:
    """Say which names are no module's; an error where none is one."""
    unknown = [end for end in wanted if not any(f".{name}".endswith(f".{end}") for name in every)]
    if not unknown:
        return
    ends = {name.rpartition(".")[2] for name in every if not name.rpartition(".")[2].isdigit()}
    said = f"policy.lora.target_modules names {unknown[0]!r}, which is no module of the model"
    said += did_you_mean(unknown[0], sorted(ends))
    if not chosen:
        raise ValueError(said)
    log.warning("%s", said)
