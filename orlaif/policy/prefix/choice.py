"""From ``prefix`` as a recipe asks for it to the layout that the loaded model runs on, and what is said about it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from orlaif.policy.families import Family
from orlaif.policy.prefix.attention import PrefixAttention, enable_grouping
from orlaif.policy.prefix.forward import duplicate_forward, shared_forward
from orlaif.policy.prefix.probe import Forward, Head, Probe, structural_reason
from orlaif.types import Completions, PromptBatch

log = logging.getLogger(__name__)

Prefix = Literal["auto", "shared", "duplicate"]
Layout = Literal["shared", "duplicate"]


@dataclass(frozen=True, kw_only=True)
class PrefixChoice:
    """How groups go through a loaded model.

    Args:
        layout: a group in one row, or the prompt again for each completion.
        attentions: what a shared prefix may run on (``orlaif.policy.prefix.attention``); empty for ``duplicate``.
        head: whether the LM head may be fused with the loss.
        shares_cache: whether decoding reads a prompt's keys and values once for its group.
    """

    layout: Layout
    attentions: tuple[str, ...] = ()
    head: Head = field(default_factory=Head)
    shares_cache: bool = False


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
        ValueError: the recipe insists on a shared prefix, and the model gives other log-probs then; a model that takes
            no video, or whose batches are not what their sequences are alone.
    """
    kind = model.config.model_type
    probe = Probe(model, processor(), family)
    pad_id = int(probe.processor.tokenizer.pad_token_id)

    def shared(name: str) -> Forward:
        def forward(batch: PromptBatch, completions: Completions, hidden: bool) -> Tensor:
            positions = family.prompt_positions(model, batch)
            return shared_forward(model, batch, completions, positions, (name,), family, hidden)

        return forward

    def duplicate(batch: PromptBatch, completions: Completions, hidden: bool) -> Tensor:
        positions = family.prompt_positions(model, batch)
        return duplicate_forward(model, batch, completions, positions, pad_id, family, hidden)

    insists = prefix == "shared" or prefix_attention != "auto"
    if prefix != "duplicate":
        if attn_implementation == "sdpa":
            enable_grouping(model)
        names, reason = usable(probe, shared, wanted_attentions(prefix_attention, attn_implementation))
        if names:
            log.info("prefix: %s chose 'shared' for model type %r: %s", prefix, kind, reason)
            shares = attn_implementation == "sdpa" and can_decode(probe, share=True)
            if not shares:
                can_decode(probe, share=False)
            return PrefixChoice(
                layout="shared", attentions=names, head=probe.head(shared(names[0])), shares_cache=shares
            )
        if insists:
            raise ValueError(f"policy.prefix is {prefix!r}, but not for model type {kind!r}: {reason}")
        log.info("prefix: auto chose 'duplicate' for model type %r: %s", kind, reason)
    try:
        difference, _ = probe.compare(duplicate)
    except Exception as error:  # whatever a model that we do not know may raise
        raise ValueError(
            f"model type {kind!r} cannot run a batch of prompts: {type(error).__name__}: {error}"
        ) from error
    if not difference <= 10 * probe.tolerance:
        raise ValueError(
            f"model type {kind!r} gives other log-probs in a batch than for each sequence alone (off by "
            f"{difference:.2g}); it cannot be trained on batches"
        )
    if difference > probe.tolerance:
        log.warning("prefix: duplicate: log-probs of a batch differ from those alone by %.2g", difference)
    can_decode(probe, share=False)
    return PrefixChoice(layout="duplicate", head=probe.head(duplicate))


def can_decode(probe: Probe, share: bool) -> bool:
    """Whether two tokens, one after the other behind the cache, get the model's own log-probs; the log says why not.

    Args:
        probe: of the model.
        share: a prompt's keys and values are kept once for its group, instead of for each completion.

    Raises:
        ValueError: it cannot, and a cache for each completion is the last way.
    """
    kind = probe.model.config.model_type
    try:
        difference = probe.decode(share)
        reason = f"log-probs differ from the model's own by {difference:.2g}"
    except Exception as error:  # whatever a model that we do not know may raise
        difference, reason = float("inf"), f"{type(error).__name__}: {error}"
    if difference <= probe.tolerance:
        return True
    if share:
        log.info("rollout: each completion has a cache of its own for model type %r: a shared one: %s", kind, reason)
    elif not difference <= 10 * probe.tolerance:
        raise ValueError(f"model type {kind!r} cannot decode behind a cache: {reason}")
    else:
        log.warning("rollout: for model type %r decoding behind a cache is inexact: %s", kind, reason)
    return False


def wanted_attentions(prefix_attention: PrefixAttention, attn_implementation: str) -> tuple[str, ...]:
    """The implementations of a shared prefix that a recipe allows; none beside transformers' other attentions."""
    if attn_implementation == "sdpa":
        return ("mask", "split") if prefix_attention == "auto" else (prefix_attention,)
    return ("mask",) if attn_implementation == "eager" else ()


def usable(probe: Probe, shared: Callable[[str], Forward], wanted: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
    """Those of the ``wanted`` implementations that give the model's own log-probs, and in words what the probe saw."""
    if not wanted:
        return (), "policy.attn_implementation is neither 'sdpa' nor 'eager'"
    if reason := structural_reason(probe.model.config.get_text_config(decoder=True)):
        return (), reason
    said, names, errors = [], [], []
    for name in wanted:
        try:
            difference, leak = probe.compare(shared(name))
        except Exception as error:  # whatever a model that we do not know may raise: it is then not shared
            said.append(f"{name} fails: {type(error).__name__}: {error}")
            continue
        if not difference <= probe.tolerance:
            said.append(f"{name} gives log-probs that differ from the model's own by {difference:.2g}")
        elif leak > 1e-6:
            said.append(f"{name} lets one completion see another (log-probs move by {leak:.2g})")
        else:
            names.append(name)
            errors.append(difference)
    if names:
        said.append(f"log-probs equal the model's own to {max(errors):.1g} ({', '.join(names)})")
    return tuple(names), "; ".join(said)
