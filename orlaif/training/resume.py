"""What a checkpoint of a training stage says of the run that it is of, and what the run that goes on makes of it."""

from __future__ import annotations

import hashlib
import logging
from typing import Any

import torch
from torch import nn

log = logging.getLogger(__name__)

#: Values of each weight that the fingerprint looks at.
_SAMPLED = 16


def base_fingerprint(network: nn.Module) -> str:
    """A hash of some values of every weight of a loaded model, an adapter's (which are drawn anew) aside."""
    digest = hashlib.sha256()
    values: list[torch.Tensor] = []
    for name, parameter in sorted(network.named_parameters()):
        if ".lora_" in name or ".modules_to_save." in name or not parameter.numel() or parameter.is_meta:
            continue
        digest.update(
            f"{name.replace('.base_layer', '').removeprefix('base_model.model.')}/{tuple(parameter.shape)}".encode()
        )
        flat = parameter.detach().flatten()
        number = min(_SAMPLED, flat.numel())
        # In integers: under precision bf16-true, linspace would count in bfloat16, and reach beyond the end.
        places = torch.arange(number, device=flat.device) * (flat.numel() - 1) // max(1, number - 1)
        values.append(flat[places].double())
    if values:
        digest.update(torch.cat(values).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def stated_settings(optimizer: torch.optim.Optimizer, scheduler: Any = None) -> dict[str, Any]:
    """What a recipe states of a new optimizer's groups (learning rates, weight decay, ...) and of its scheduler."""
    groups = [
        {name: value for name, value in group.items() if name != "params" and _is_plain(value)}
        for group in optimizer.param_groups
    ]
    for group in groups:
        group["lr"] = group.pop("initial_lr", group["lr"])  # a new scheduler has set the first rate already
    return {"groups": groups, "scheduler": None if scheduler is None else _settings(scheduler)}


def _settings(scheduler: Any) -> dict[str, Any]:
    """Of a scheduler, what does not change while it runs."""
    moving = {"last_epoch", "_step_count", "_last_lr", "base_lrs", "best", "num_bad_epochs", "cooldown_counter"}
    return {name: value for name, value in vars(scheduler).items() if name not in moving and _is_plain(value)}


def _is_plain(value: Any) -> bool:
    items = value if isinstance(value, (list, tuple)) else [value]
    return all(item is None or isinstance(item, (bool, int, float, str)) for item in items)


def use_stated(
    now: dict[str, Any], before: dict[str, Any], optimizer: torch.optim.Optimizer, scheduler: Any
) -> list[str]:
    """Where a recipe states other settings than the checkpoint's did, put those in use; restoring took the old ones.

    Args:
        now: :func:`stated_settings` of this run's recipe.
        before: of the checkpoint's.
        optimizer: as restored.
        scheduler: as restored, or None.

    Returns:
        What was changed, a line each. A rate that a scheduler has moved keeps its share of the stated one.
    """
    changed: list[str] = []
    for i, (new, old) in enumerate(zip(now["groups"], before["groups"], strict=False)):
        group = optimizer.param_groups[i]
        for name in sorted(name for name in new if name in old and new[name] != old[name]):
            changed.append(f"{name}: {old[name]} -> {new[name]}")
            if name != "lr":
                group[name] = new[name]
                continue
            share = group["lr"] / old["lr"] if old["lr"] else 1.0
            group["lr"] = new["lr"] * share
            if "initial_lr" in group:
                group["initial_lr"] = new["lr"]
            if hasattr(scheduler, "base_lrs"):
                scheduler.base_lrs[i] = new["lr"]
                scheduler._last_lr[i] = group["lr"]
    new, old = now["scheduler"] or {}, before["scheduler"] or {}
    for name in sorted(name for name in new if name in old and new[name] != old[name]):
        changed.append(f"lr_scheduler.{name}: {old[name]} -> {new[name]}")
        setattr(scheduler, name, new[name])
    return changed
