"""What of a model a question about a video reaches; the rest is not trained.

An Omni model's ear, where it hears nothing, gets no gradient, and nor does a bias that only chooses among experts. DDP
waits for the gradient of every weight that is to be trained: so these are frozen, and get no adapter.

Asked of the graph of one pass over a synthetic prompt; nothing goes backward.
"""

from __future__ import annotations

import logging
import re
from typing import Any

import torch
from torch import nn

from orlaif.policy.asking import leaves
from orlaif.policy.families import Family
from orlaif.policy.prefix.probe import alone
from orlaif.types import PromptBatch

log = logging.getLogger(__name__)

#: Of experts that are modules of their own: which are reached, is another matter for each prompt.
_ONE_EXPERT = re.compile(r"experts\.\d+\.")


def freeze_unreached(model: Any, batch: PromptBatch, family: Family) -> list[nn.Module]:
    """Freeze the weights that a video does not reach; the log names them.

    Args:
        model: of transformers, before it has an adapter.
        batch: one synthetic prompt.
        family: of the model.

    Returns:
        The largest modules that are not reached.
    """
    with torch.enable_grad():
        logits = alone(model, batch, batch.input_ids[0, -1:], family)
    return freeze_others(model, leaves(logits))


def freeze_others(model: Any, reached: set[int]) -> list[nn.Module]:
    """Freeze all but these; the log names them.

    Args:
        model: of transformers, before it has an adapter.
        reached: ids of the parameters that a video reaches.

    Returns:
        The largest modules that are not reached.
    """
    unreached = {
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and id(parameter) not in reached and not _ONE_EXPERT.search(name)
    }
    for name in unreached:
        model.get_parameter(name).requires_grad_(False)
    names = [
        name
        for name, module in model.named_modules()
        if (inner := {f"{name}.{own}" for own, _ in module.named_parameters()}) and inner <= unreached
    ]
    largest = [name for name in names if not any(name.startswith(f"{other}.") for other in names)]
    if unreached:
        rest = sorted(name for name in unreached if not any(name.startswith(f"{other}.") for other in largest))
        log.info("not trained, since a question about a video does not reach it: %s", ", ".join([*largest, *rest]))
    return [model.get_submodule(name) for name in largest]
