"""From ``prefix`` as a recipe asks for it to the layout that the loaded model runs on, and what is said about it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from orlaif.policy.families import Family
from orlaif.policy.prefix.attention import PrefixAttention, enable_grouping
from orlaif.policy.prefix.probe import usable_attentions

log = logging.getLogger(__name__)

Prefix = Literal["auto", "shared", "duplicate"]
Layout = Literal["shared", "duplicate"]


@dataclass(frozen=True, kw_only=True)
class PrefixChoice:
    """How groups go through a loaded model.

    Args:
        layout: a group in one row, or the prompt again for each completion.
        attentions: what a shared prefix may run on (``orlaif.policy.prefix.attention``); empty for ``duplicate``.
    """

    layout: Layout
    attentions: tuple[str, ...] = ()


def choose_prefix(
    model: Any,
    processor: Callable[[], Any],
    prefix: Prefix,
    prefix_attention: PrefixAttention,
    attn_implementation: str,
    family: Family,
) -> PrefixChoice:
    """Settle ``prefix`` by what the loaded model does; the log says what was chosen and why.

    Args:
        model: of transformers, in eval mode; its decoder learns to look for a grouping where that is needed.
        processor: gives its processor.
        prefix: as asked for.
        prefix_attention: as asked for.
        attn_implementation: that the model was loaded with.
        family: where the model differs from others.

    Raises:
        ValueError: the recipe insists on a shared prefix, and the model gives other log-probs then.
    """
    if prefix == "duplicate":
        return PrefixChoice(layout="duplicate")
    kind = model.config.model_type
    attentions: tuple[str, ...] = ()
    reason = f"attn_implementation is {attn_implementation!r}, not 'sdpa' or 'eager'"
    if attn_implementation in ("sdpa", "eager"):
        wanted: tuple[str, ...] = ("mask",)
        if attn_implementation == "sdpa":
            enable_grouping(model)
            wanted = ("mask", "split") if prefix_attention == "auto" else (prefix_attention,)
        attentions, reason = usable_attentions(model, processor, wanted, family)
    if attentions:
        log.info("prefix: %s chose 'shared' for model type %r: %s", prefix, kind, reason)
        return PrefixChoice(layout="shared", attentions=attentions)
    if prefix == "shared" or prefix_attention != "auto":
        raise ValueError(f"policy.prefix is {prefix!r}, but not for model type {kind!r}: {reason}")
    log.info("prefix: auto chose 'duplicate' for model type %r: %s", kind, reason)
    return PrefixChoice(layout="duplicate")
