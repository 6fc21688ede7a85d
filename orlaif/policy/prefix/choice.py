"""From ``prefix`` as a recipe asks for it to the layout that the loaded model runs on, and what is said about it.

Three layouts, each exact where it serves, each dearer than the one before: ``shared`` (a group in one row), ``fork``
(the completions behind their prompt's cache), ``duplicate`` (the prompt again for each completion). ``auto`` takes the
first that gives the loaded model's own log-probs and gradient; a recipe that names one gets that one, or an error.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from orlaif.policy.families import Family
from orlaif.policy.prefix.attention import PrefixAttention, enable_grouping
from orlaif.policy.prefix.fork import CHECKPOINTING, fork_forward
from orlaif.policy.prefix.forward import duplicate_forward, shared_forward
from orlaif.policy.prefix.probe import Forward, Head, Probe, Seen, structural_reason
from orlaif.types import Completions, PromptBatch

if TYPE_CHECKING:
    from orlaif.policy.policy import Policy

log = logging.getLogger(__name__)

Prefix = Literal["auto", "shared", "fork", "duplicate"]
Layout = Literal["shared", "fork", "duplicate"]
LAYOUTS: tuple[Layout, ...] = ("shared", "fork", "duplicate")


@dataclass(frozen=True, kw_only=True)
class PrefixChoice:
    """How groups go through a loaded model.

    Args:
        layout: a group in one row, completions behind their prompt's cache, or the prompt again for each completion.
        attentions: what a shared prefix may run on (``orlaif.policy.prefix.attention``); empty for the others.
        head: whether the LM head may be fused with the loss.
        shares_cache: whether decoding reads a prompt's keys and values once for its group.
    """

    layout: Layout
    attentions: tuple[str, ...] = ()
    head: Head = field(default_factory=Head)
    shares_cache: bool = False

    def outputs(
        self,
        model: Any,
        batch: PromptBatch,
        completions: Completions,
        positions: Tensor,
        pad_id: int,
        family: Family,
        hidden: bool,
    ) -> Tensor:
        """Groups through the model.

        Args:
            model: of transformers, or PEFT's around one.
            batch: P prompts.
            completions: their P x G completions.
            positions: of the prompts, i64[P, S] or i64[3, P, S].
            pad_id: a token that the model can embed.
            family: of the model.
            hidden: hidden states instead of logits.

        Returns:
            [P * G, T, V] or [P * G, T, H] at the positions that predict completion tokens.
        """
        if self.layout == "shared":
            return shared_forward(model, batch, completions, positions, self.attentions, family, hidden)
        forward = fork_forward if self.layout == "fork" else duplicate_forward
        return forward(model, batch, completions, positions, pad_id, family, hidden)


def choose_prefix(policy: Policy, model: Any) -> PrefixChoice:
    """Settle ``policy.prefix`` by what the loaded model does; the log says what was chosen and why.

    Args:
        policy: whose settings, family and processor are used.
        model: of transformers, in eval mode; its decoder learns to look for a grouping where that is needed.

    Raises:
        ValueError: the recipe insists on a layout, and the model gives other log-probs or another gradient then; a
            model that takes no video, or whose batches are not what their sequences are alone.
    """
    kind = model.config.model_type
    probe = Probe(model, policy.processor, policy.family)
    insisted = policy.prefix
    if insisted == "auto" and policy.prefix_attention != "auto":  # which is of a row
        insisted = "shared"
    falls: list[str] = []
    for layout in LAYOUTS if insisted == "auto" else [layout for layout in LAYOUTS if layout == insisted]:
        attentions, forward, seen, said = _try(policy, probe, layout)
        if seen is not None:
            break
        if layout == "duplicate":
            raise ValueError("; ".join([f"model type {kind!r} cannot be trained on batches: duplicate {said}", *falls]))
        if insisted == layout:
            raise ValueError(f"policy.prefix is {policy.prefix!r}, but not for model type {kind!r}: {said}")
        falls.append(f"not {layout!r}: {said}")
    assert seen is not None
    assert forward is not None
    log.info("prefix: %s chose %r for model type %r: %s", policy.prefix, layout, kind, "; ".join([said, *falls]))
    shares = layout == "shared" and policy.attn_implementation == "sdpa" and can_decode(probe, share=True)
    if not shares:
        can_decode(probe, share=False)
    head = probe.head(forward, seen.logits)
    return PrefixChoice(layout=layout, attentions=attentions, head=head, shares_cache=shares)


def _try(policy: Policy, probe: Probe, layout: Layout) -> tuple[tuple[str, ...], Forward | None, Seen | None, str]:
    """The attentions that a layout may run on, itself, what it gave (None: it must not be taken), and why in words."""
    if layout == "fork" and policy.gradient_checkpointing:
        return (), None, None, CHECKPOINTING
    if layout != "shared":
        forward = _forward(probe, PrefixChoice(layout=layout))
        # Behind the last way there is none: a difference that is more than rounding is told, and lived with.
        seen, said = _beside_the_truth(probe, forward, patience=10 if layout == "duplicate" else 1)
        return (), forward, seen, said
    wanted = wanted_attentions(policy.prefix_attention, policy.attn_implementation)
    if not wanted:
        return (), None, None, "policy.attn_implementation is neither 'sdpa' nor 'eager'"
    if reason := structural_reason(probe.model.config.get_text_config(decoder=True)):
        return (), None, None, reason
    if policy.attn_implementation == "sdpa":
        enable_grouping(probe.model)
    forwards = {name: _forward(probe, PrefixChoice(layout="shared", attentions=(name,))) for name in wanted}
    # FlexAttention goes backward on CUDA only, and a model that will go there is asked on the CPU.
    backward = {name: name != "flex" or probe.ids.device.type == "cuda" for name in wanted}
    trials = {name: _beside_the_truth(probe, forwards[name], has_gradient=backward[name]) for name in wanted}
    said = "; ".join(f"{name} {said}" for name, (seen, said) in trials.items() if seen is None)
    passed = {name: seen for name, (seen, _) in trials.items() if seen is not None}
    if not passed:
        return (), None, None, said
    names = tuple(passed)
    equal = f"{_equal(*passed.values())} ({', '.join(names)})"
    return names, forwards[names[0]], passed[names[0]], f"{said}; {equal}" if said else equal


def _forward(probe: Probe, choice: PrefixChoice) -> Forward:
    """A layout, as the probe asks for it."""
    model, family = probe.model, probe.family
    pad_id = int(probe.processor.tokenizer.pad_token_id)

    def forward(batch: PromptBatch, completions: Completions, hidden: bool) -> Tensor:
        positions = family.prompt_positions(model, batch)
        return choice.outputs(model, batch, completions, positions, pad_id, family, hidden)

    return forward


def _beside_the_truth(
    probe: Probe, forward: Forward, patience: float = 1, has_gradient: bool = True
) -> tuple[Seen | None, str]:
    """What a layout gave, None where it must not be taken; and in words what the probe saw.

    Args:
        probe: of the model.
        forward: the layout.
        patience: so many times what is rounding passes, with a warning.
        has_gradient: false where it has no backward pass on this device.
    """
    try:
        seen = probe.compare(forward, has_gradient)
    except Exception as error:  # whatever a model that we do not know may raise
        return None, f"fails: {type(error).__name__}: {error}"
    if fault := seen.fault(patience * probe.tolerance, patience * probe.gradient_tolerance):
        return None, fault
    if fault := seen.fault(probe.tolerance, probe.gradient_tolerance):
        log.warning("prefix: for model type %r a batch %s", probe.kind, fault)
    return seen, _equal(seen)


def _equal(*seen: Seen) -> str:
    said = f"log-probs equal the model's own to {max(one.difference for one in seen):.1g}"
    gradients = [one.gradient for one in seen if one.gradient is not None]
    return f"{said}, a gradient to {max(gradients):.1g} of its norm" if gradients else said


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
