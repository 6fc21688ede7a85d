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
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from orlaif.policy.asking import base_of
from orlaif.policy.prefix.current import current, laid
from orlaif.policy.prefix.layout import GroupRows
from orlaif.policy.prefix.states import let_gradients_through


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


def _forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    """``forward`` of a layer with a state: as ever, or in rows."""
    running, alone, mixer = current(), self.orlaif_alone, self.orlaif_mixer
    if running is None:
        return alone(*args, **kwargs)
    given = _by_name(alone, args, kwargs)
    given.pop("grouping", None)  # what attention does in rows, of which there are none in here
    parts, shape = running.rows.memo("cut", cut), running.rows.shape
    given[mixer.cache] = cache = mixer.empty_cache()

    def on(take: Callable[[Tensor], Tensor], real: Tensor | None) -> Any:
        inputs = {name: _each(value, shape, take) for name, value in given.items()}
        if "attention_mask" in inputs:
            inputs["attention_mask"] = real
        with laid(None):  # layers inside of this one share its cut and its cache
            return alone(**inputs)

    prompts = on(parts.prompts_of, None if parts.real is None else parts.real.long())
    cache.layers[mixer.layer].reorder_cache(parts.owner)
    completions = on(parts.completions_of, None)
    if isinstance(prompts, Tensor):
        return parts.lay(prompts, completions, shape)
    return parts.lay(prompts[0], completions[0], shape), *(None for _ in prompts[1:])


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
