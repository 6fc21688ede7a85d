"""A stack of layers by one or two of each kind: the others of a kind take as much again.

A decoder of 60 layers takes a minute to go through on the meta device, and two layers tell as much as sixty: bytes,
products and operations grow by the same for each further layer of a kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from orlaif.cli.plan.sizes import Used


def layers_of(module: nn.Module) -> list[nn.Module]:
    """The layers of a module, as transformers takes them."""
    return [part for part in module.modules() if isinstance(part, GradientCheckpointingLayer)]


#: What code of a model raises for layers that are not there.
MISSED = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def extrapolated(
    decoder: Any, run: Callable[[], Used], train: bool, least: int = 1, notes: list[str] | None = None
) -> Used:
    """What ``run`` gives for the whole decoder, from runs with a few of its layers.

    Args:
        decoder: whose layers are taken out for a while.
        run: a pass through it.
        train: with the backward pass; else the most that a layer takes for a moment does not grow with their number.
        least: layers of the shortest run, where only those behind them take the same.
        notes: is told where the decoder does not run with a few of its layers, and so ran whole.
    """
    stack = _stack(decoder)
    kinds = [] if stack is None else [_kind(layer, decoder.config, i) for i, layer in enumerate(stack[1])]
    counts = Counter(kinds)
    first = {kinds.index(kind) for kind in counts}
    first |= set([i for i in range(len(kinds)) if i not in first][: max(0, least - len(first))])
    left = counts - Counter(kinds[i] for i in first)
    if stack is None or len(kinds) <= len(first) + len(left):
        return run()
    try:
        with _only(decoder, *stack, sorted(first)):
            used = shortest = run()
        moment = shortest.peak - shortest.kept
        for kind, number in left.items():
            further = next(i for i, one in enumerate(kinds) if one == kind and i not in first)
            with _only(decoder, *stack, sorted([*first, further])):
                more = run()
            used = used.plus(more.plus(shortest, -1), number)
            moment = max(moment, more.peak - more.kept)
    except MISSED as error:
        told = f"its decoder ran with all of its layers: with a few of them it fails ({type(error).__name__}: {error})"
        if notes is not None and told not in notes:
            notes.append(told)
        return run()
    return used if train else replace(used, peak=used.kept + moment)


def _stack(decoder: nn.Module) -> tuple[tuple[nn.Module, str], list[nn.Module]] | None:
    """Where the decoder has its list of layers, and these; None where it has them otherwise."""
    found: list[tuple[tuple[nn.Module, str], list[nn.Module]]] = []
    for module in decoder.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and all(isinstance(x, GradientCheckpointingLayer) for x in child):
                found.append(((module, name), list(child)))
    config = getattr(decoder, "config", None)
    same = [one for one in found if len(one[1]) == getattr(config, "num_hidden_layers", 0)]
    return same[0] if len(same) == 1 else None


def _kind(layer: nn.Module, config: Any, index: int) -> Hashable:
    """What makes two layers take the same: their class, their weights, and what the config says of them."""
    weights = tuple((name, p.shape, p.dtype, p.requires_grad) for name, p in layer.named_parameters())
    said = tuple(str(value[index]) for value in _lists(config).values())
    return type(layer), weights, said


def _lists(config: Any) -> dict[str, list[Any]]:
    """What a config says of each layer, by name."""
    number = config.num_hidden_layers
    return {k: list(v) for k, v in vars(config).items() if isinstance(v, (list, tuple)) and len(v) == number}


@contextmanager
def _only(decoder: Any, at: tuple[nn.Module, str], layers: list[nn.Module], chosen: list[int]) -> Iterator[None]:
    """The decoder has these of its layers, numbered anew, and its config says so."""
    owner, name = at
    kept, said = owner._modules[name], dict(vars(decoder.config))
    inside = [(new, module) for new, i in enumerate(chosen) for module in layers[i].modules()]
    places = [(new, module) for new, module in inside if isinstance(vars(module).get("layer_idx"), int)]
    numbered = [(module, module.layer_idx) for _, module in places]
    changes = {key: [value[i] for i in chosen] for key, value in _lists(decoder.config).items()}
    vars(decoder.config).update(changes | {"num_hidden_layers": len(chosen)})
    owner._modules[name] = nn.ModuleList([layers[i] for i in chosen])
    for new, module in places:
        module.layer_idx = new  # type: ignore[assignment]
    try:
        yield
    finally:
        owner._modules[name] = kept
        vars(decoder.config).update(said)
        for module, index in numbered:
            module.layer_idx = index  # type: ignore[assignment]
