"""Recurrent layers inside a row: the prompt once, its state forked, the completions behind it.

A layer whose state runs from token to token (Gated DeltaNet, Mamba, a short convolution) cannot be given a mask. So
where such a layer meets rows, its own forward runs twice: on the prompts with an empty cache, and, behind that cache
forked to the completions, on those. What goes in is cut from the rows, what comes out is laid back. All else of the
model, and whatever is around it (packing, PEFT, checkpointing, FSDP2), sees rows throughout.

Which layers those are is asked: during a pass that fills a cache, the modules that write a state into it.

Shapes: P prompts, G completions; R rows of L tokens; S and T the longest prompt and completion of the rows.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from orlaif.policy.asking import base_of
from orlaif.policy.prefix.current import current, laid
from orlaif.policy.prefix.divided import Division
from orlaif.policy.prefix.layout import GroupRows
from orlaif.policy.prefix.states import hand_in, let_gradients_through, states_of


@dataclass(frozen=True, kw_only=True)
class Mixer:
    """What is known of a layer with a state.

    Args:
        layer: its number in a cache.
        cache: the name under which its ``forward`` takes the cache.
        state: the layer of an empty cache that holds its state.
    """

    layer: int
    cache: str
    state: Any

    def empty_cache(self) -> DynamicCache:
        """A cache for this layer alone, through which gradients flow."""
        cache = DynamicCache()
        cache.layers = [None] * self.layer + [let_gradients_through(copy.deepcopy(self.state))]
        return cache


# ---------------------------------------------------------------- finding them


def find_mixers(model: Any, fill: Callable[[DynamicCache], object]) -> dict[nn.Module, Mixer]:
    """The modules of a decoder that write a state into its cache.

    Args:
        model: of transformers.
        fill: a pass of the model that fills the cache it is given.

    Raises:
        ValueError: a state is written by a module that is not given the cache.
    """
    base = base_of(model)
    config = base.config.get_text_config(decoder=True)
    cache, empty = DynamicCache(config=config), DynamicCache(config=config)
    found: dict[nn.Module, Mixer] = {}
    running: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = []

    def spy(number: int, update: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def updated(*args: Any, **kwargs: Any) -> Tensor:
            module, given, named = running[-1]
            named = _by_name(module.forward, given, named)
            name = next((name for name, value in named.items() if value is cache), None)
            if name is None:
                raise ValueError(f"{type(module).__name__} keeps a state in a cache that its forward is not given")
            found[module] = Mixer(layer=number, cache=name, state=empty.layers[number])
            return update(*args, **kwargs)

        return updated

    names = ("update_conv_state", "update_recurrent_state")
    for number, layer in enumerate(cache.layers):
        for name in names:
            if hasattr(layer, name):
                setattr(layer, name, spy(number, getattr(layer, name)))

    def leave(*_: Any) -> None:
        running.pop()

    handles = []
    for module in base.get_decoder().modules():
        handles += [
            module.register_forward_pre_hook(lambda *call: running.append(call), with_kwargs=True),
            module.register_forward_hook(leave),
        ]
    try:
        fill(cache)
    finally:
        for handle in handles:
            handle.remove()
    return found


def run_in_rows(mixers: dict[nn.Module, Mixer]) -> None:
    """Let these modules run as this file says wherever they meet rows; elsewhere nothing changes."""
    for module, mixer in mixers.items():
        known: Any = module
        if not hasattr(known, "orlaif_mixer"):
            # Bound methods, so that a deep copy of the model calls its own.
            known.orlaif_alone, known.orlaif_mixer = known.forward, mixer
            known.forward = MethodType(_forward, known)


# --------------------------------------------------------------- running them


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Rows in parts: what a recurrent layer runs on.

    Args:
        prompts: i64[P * S], the place in [R * L] of each prompt token, padded on the left with place 0.
        real: bool[P, S], False at padding; None where there is none.
        completions: i64[P * G * T], the same for completions, padded on the right.
        owner: i64[P * G], the prompt of each completion.
        back: i64[R * L], the place of each token of the rows in prompts followed by completions.
        size: P, S, G and T.
    """

    prompts: Tensor
    real: Tensor | None
    completions: Tensor
    owner: Tensor
    back: Tensor
    size: tuple[int, int, int, int]

    def prompts_of(self, x: Tensor) -> Tensor:
        """[R, L, ...] to [P, S, ...], 0 at padding."""
        p, s, _, _ = self.size
        out = x.flatten(0, 1).index_select(0, self.prompts).view(p, s, *x.shape[2:])
        return out if self.real is None else out.masked_fill(~self.real.view(p, s, *(1,) * (x.ndim - 2)), 0)

    def completions_of(self, x: Tensor) -> Tensor:
        """[R, L, ...] to [P * G, T, ...]; whatever stands behind a completion, no token of it sees."""
        p, _, g, t = self.size
        return x.flatten(0, 1).index_select(0, self.completions).view(p * g, t, *x.shape[2:])

    def lay(self, prompts: Tensor, completions: Tensor, shape: tuple[int, int]) -> Tensor:
        """[P, S, ...] and [P * G, T, ...] to [R, L, ...]; anything at the padding of rows."""
        flat = torch.cat([prompts.flatten(0, 1), completions.flatten(0, 1)])
        return flat.index_select(0, self.back).view(*shape, *prompts.shape[2:])


def cut(rows: GroupRows) -> Cut:
    """Where the parts of ``rows`` lie."""
    r, length = rows.shape
    device = rows.source.device
    prompts = torch.tensor([span.prompt for span in rows.spans])
    starts = torch.tensor([span.row * length + span.start for span in rows.spans])
    lengths = torch.tensor([span.completions for span in rows.spans])
    (p, g), s = lengths.shape, int(prompts.max())
    # A layer takes a single token behind a cache for decoding, and writes its state in place.
    t = max(2, int(lengths.max()))
    behind = torch.arange(s) - (s - prompts[:, None])
    ahead = torch.arange(t).expand(p, g, t)
    first = (starts + prompts)[:, None] + lengths.cumsum(-1) - lengths
    real, written = behind >= 0, ahead < lengths[..., None]
    prompt_at = torch.where(real, starts[:, None] + behind, 0)
    completion_at = torch.where(written, first[..., None] + ahead, 0)
    back = torch.zeros(r * length, dtype=torch.long)
    numbers = torch.arange(p * s + p * g * t)
    back[prompt_at[real]] = numbers[: p * s].view(p, s)[real]
    back[completion_at[written]] = numbers[p * s :].view(p, g, t)[written]
    return Cut(
        prompts=prompt_at.flatten().to(device),
        real=None if bool(real.all()) else real.to(device),
        completions=completion_at.flatten().to(device),
        owner=torch.arange(p).repeat_interleave(g).to(device),
        back=back.to(device),
        size=(p, s, g, t),
    )


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A call of a layer with a state, to be made of parts of rows.

    Args:
        forward: its own.
        mixer: what is known of it.
        given: arguments of the call, by name.
        shape: of the rows, (R, L).
    """

    forward: Callable[..., Any]
    mixer: Mixer
    given: dict[str, Any]
    shape: tuple[int, int]

    def on(self, cache: DynamicCache, take: Callable[[Tensor], Tensor], real: Tensor | None) -> Any:
        """The layer on what ``take`` takes of the rows, behind ``cache``; ``real`` is False at padding."""
        inputs = {name: _each(value, self.shape, take) for name, value in self.given.items()}
        inputs[self.mixer.cache] = cache
        if "attention_mask" in inputs:
            inputs["attention_mask"] = real
        with laid(None):  # layers inside of this one share its cut and its cache
            return self.forward(**inputs)

    def laid_back(self, parts: Cut, prompts: Any, completions: Any) -> Any:
        """What the layer returns for the rows, of what it returned for their parts."""
        if isinstance(prompts, Tensor):
            return parts.lay(prompts, completions, self.shape)
        return parts.lay(prompts[0], completions[0], self.shape), *(None for _ in prompts[1:])


def divided_layer(layer: Layer, parts: Cut, division: Division) -> Any:
    """The layer on prompts that are divided among processes: each goes on from the state of the one before it.

    Completions go on from the state at the end of the prompt, which the last process has. One prompt at a time, since
    padding before a run would move the state that it goes on from.
    """
    device, (p, s, g, t) = parts.prompts.device, parts.size
    number, module = layer.mixer.layer, getattr(layer.forward, "__self__", None)
    trained = [x for x in layer.given.values() if isinstance(x, Tensor)]
    trained += list(module.parameters()) if isinstance(module, nn.Module) else []
    with_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in trained)
    outputs: list[tuple[Any, Any]] = []
    for span, run, behind in zip(
        division.rows.spans, parts.prompts.view(p, s), parts.completions.view(p, g * t), strict=True
    ):
        cache = layer.mixer.empty_cache()
        hand_in(cache.layers[number], division.group.receive(device, with_gradient))
        one = layer.on(cache, partial(_taken, run[s - span.prompt :], 1), None)
        states = states_of(cache.layers[number])
        if isinstance(one, Tensor):
            one = division.group.send_on(one, states)
        else:
            one = division.group.send_on(one[0], states), *one[1:]
        cache = layer.mixer.empty_cache()
        hand_in(cache.layers[number], division.group.from_last(states, with_gradient))
        cache.layers[number].reorder_cache(torch.zeros(g, dtype=torch.long, device=device))  # type: ignore[arg-type]
        outputs.append((one, layer.on(cache, partial(_taken, behind, g), None)))
    first = [one if isinstance(one, Tensor) else one[0] for one, _ in outputs]
    prompts = torch.cat([nn.functional.pad(x, (0, 0, s - x.shape[1], 0)) for x in first])
    completions = torch.cat([two if isinstance(two, Tensor) else two[0] for _, two in outputs])
    rows = parts.lay(prompts, completions, layer.shape)
    return rows if isinstance(outputs[0][0], Tensor) else (rows, *(None for _ in outputs[0][0][1:]))


def _taken(places: Tensor, number: int, x: Tensor) -> Tensor:
    """[R, L, ...] at ``places`` i64[number * N] to [number, N, ...]."""
    return x.flatten(0, 1).index_select(0, places).view(number, -1, *x.shape[2:])


def _forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    """``forward`` of a layer with a state: as ever, or in rows."""
    running, alone, mixer = current(), self.orlaif_alone, self.orlaif_mixer
    if running is None:
        return alone(*args, **kwargs)
    given = _by_name(alone, args, kwargs)
    given.pop("grouping", None)  # what attention does in rows, of which there are none in here
    layer = Layer(forward=alone, mixer=mixer, given=given, shape=running.rows.shape)
    parts = running.rows.memo("cut", cut)
    if running.division is not None:
        return divided_layer(layer, parts, running.division)
    cache = mixer.empty_cache()
    prompts = layer.on(cache, parts.prompts_of, None if parts.real is None else parts.real.long())
    cache.layers[mixer.layer].reorder_cache(parts.owner)
    completions = layer.on(cache, parts.completions_of, None)
    return layer.laid_back(parts, prompts, completions)


def _by_name(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a call, all by name."""
    signature = inspect.signature(function)
    named = dict(signature.bind(*args, **kwargs).arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            named |= named.pop(name, {})
    return named


def _each(value: Any, shape: tuple[int, int], take: Callable[[Tensor], Tensor]) -> Any:
    """``take`` of all that has a value for each token of rows, alone or in a tuple."""
    if isinstance(value, tuple):
        return tuple(_each(one, shape, take) for one in value)
    return take(value) if isinstance(value, Tensor) and value.shape[:2] == shape else value
