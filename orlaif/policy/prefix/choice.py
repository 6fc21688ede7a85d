"""From ``prefix`` as a recipe asks for it to the layout that the loaded model runs on, and what is said about it.

Three layouts, each exact where it serves, each dearer than the one before: ``shared`` (a group in one row), ``fork``
(the completions behind their prompt's cache), ``duplicate`` (the prompt again for each completion). ``auto`` takes the
first that gives the loaded model's own log-probs and gradient; a recipe that names one gets that one, or an error.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from orlaif.distributed.sequence import SequenceGroup
from orlaif.policy.families import Family
from orlaif.policy.prefix.attention import PrefixAttention, enable_grouping
from orlaif.policy.prefix.fork import CHECKPOINTING, fork_forward
from orlaif.policy.prefix.forward import duplicate_forward, shared_forward
from orlaif.policy.prefix.fused import Head
from orlaif.policy.prefix.probe import Forward, Probe, Seen
from orlaif.types import Completions, PromptBatch

if TYPE_CHECKING:
    from orlaif.policy.policy import Policy

log = logging.getLogger(__name__)

Prefix = Literal["auto", "shared", "fork", "duplicate"]
Layout = Literal["shared", "fork", "duplicate"]
LAYOUTS: tuple[Layout, ...] = ("shared", "fork", "duplicate")
#: So many times what is rounding is told and lived with, where nothing is left to fall back to.
PATIENCE = 6


@dataclass(frozen=True, kw_only=True)
class PrefixChoice:
    """How groups go through a loaded model.

    Args:
        layout: a group in one row, completions behind their prompt's cache, or the prompt again for each completion.
        attentions: what a shared prefix may run on (``orlaif.policy.prefix.attention``); empty for the others.
        head: whether the LM head may be fused with the loss.
        shares_cache: whether decoding reads a prompt's keys and values once for its group.
        said: in words, how exact the layout is on the loaded model, and why not a cheaper one.
    """

    layout: Layout
    attentions: tuple[str, ...] = ()
    head: Head = field(default_factory=Head)
    shares_cache: bool = False
    said: str = ""

    def outputs(
        self,
        model: Any,
        batch: PromptBatch,
        completions: Completions,
        positions: Tensor,
        pad_id: int,
        family: Family,
        hidden: bool,
        sequence: SequenceGroup | None = None,
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
            sequence: processes that share the prompts, which the layout ``shared`` alone can divide.

        Returns:
            [P * G, T, V] or [P * G, T, H] at the positions that predict completion tokens.
        """
        if self.layout == "shared":
            return shared_forward(model, batch, completions, positions, self.attentions, family, hidden, sequence)
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
    trials = _Trials(policy, Probe(model, policy.processor, policy.family))
    insisted = policy.prefix
    if insisted == "auto" and policy.prefix_attention != "auto":  # which is of a row
        insisted = "shared"
    falls: list[str] = []
    for layout in LAYOUTS if insisted == "auto" else [layout for layout in LAYOUTS if layout == insisted]:
        trial = trials.of(layout)
        if trial.seen is not None:
            break
        if layout == "duplicate":
            reasons = "; ".join([f"duplicate {trial.said}", *falls])
            raise ValueError(f"model type {kind!r} cannot be trained on batches: {reasons}")
        if insisted == layout:
            raise ValueError(f"policy.prefix is {policy.prefix!r}, but not for model type {kind!r}: {trial.said}")
        falls.append(f"not {layout!r}: {trial.said}")
    assert trial.seen is not None
    assert trial.forward is not None
    said = "; ".join([trial.said, *falls])
    log.info("prefix: %s chose %r for model type %r: %s", policy.prefix, layout, kind, said)
    probe = trials.probe
    shares = layout == "shared" and policy.attn_implementation == "sdpa" and can_decode(probe, share=True)
    if not shares:
        can_decode(probe, share=False)
    head = probe.head(trial.forward, trial.seen.logits)
    return PrefixChoice(layout=layout, attentions=trial.attentions, head=head, shares_cache=shares, said=said)


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """A layout beside the truth.

    Args:
        said: in words.
        forward: itself, as the probe asks for it; None where it was not tried.
        seen: what it gave; None where it must not be taken.
        attentions: those that a shared prefix may run on.
    """

    said: str
    forward: Forward | None = None
    seen: Seen | None = None
    attentions: tuple[str, ...] = ()


class _Trials:
    """Each layout beside the truth, for one policy and its loaded model."""

    def __init__(self, policy: Policy, probe: Probe) -> None:
        self.policy, self.probe = policy, probe

    def of(self, layout: Layout) -> _Trial:
        """The layout as a whole."""
        if layout == "shared":
            return self._shared()
        if layout == "fork":
            return _Trial(said=CHECKPOINTING) if self.policy.gradient_checkpointing else self._one(layout)
        return self._duplicate

    def _shared(self) -> _Trial:
        wanted = wanted_attentions(self.policy.prefix_attention, self.policy.attn_implementation)
        if not wanted:
            return _Trial(said="policy.attn_implementation is neither 'sdpa' nor 'eager'")
        model = self.probe.model
        if self.policy.attn_implementation == "sdpa":
            enable_grouping(model)
        if reason := self.probe.prepare_rows():
            return _Trial(said=reason)
        # FlexAttention goes backward on CUDA only, and a model that will go there is asked on the CPU.
        cuda = self.probe.ids.device.type == "cuda"
        tried = {name: self._one("shared", name, has_gradient=cuda or name != "flex") for name in wanted}
        said = [f"{name} {trial.said}" for name, trial in tried.items() if trial.seen is None]
        passed = {name: trial for name, trial in tried.items() if trial.seen is not None}
        if not passed:
            return _Trial(said="; ".join(said))
        said.append(f"{_equal(*(trial.seen for trial in passed.values() if trial.seen))} ({', '.join(passed)})")
        first = next(iter(passed.values()))
        return replace(first, said="; ".join(said), attentions=tuple(passed))

    @cached_property
    def _duplicate(self) -> _Trial:
        trial = self._one("duplicate", patience=PATIENCE)
        probe = self.probe
        if trial.seen and (fault := trial.seen.fault(probe.tolerance, probe.gradient_tolerance)):
            log.warning("prefix: for model type %r a batch %s", probe.kind, fault)
        return trial

    def _one(self, layout: Layout, *attentions: str, patience: float = 1, has_gradient: bool = True) -> _Trial:
        """A layout on one attention; ``patience`` times what is rounding passes."""
        probe = self.probe
        forward = _forward(probe, PrefixChoice(layout=layout, attentions=attentions))
        try:
            seen = probe.compare(forward, has_gradient)
        except Exception as error:  # whatever a model that we do not know may raise
            return _Trial(said=f"fails: {type(error).__name__}: {error}")
        tolerance, gradient_tolerance = patience * probe.tolerance, patience * probe.gradient_tolerance
        if tolerance < seen.difference <= PATIENCE * tolerance and layout != "duplicate" and self._duplicate.seen:
            # Precision may be so low, and experts so near to each other, that rounding alone is more.
            tolerance = max(tolerance, 1.5 * self._duplicate.seen.difference)
        if fault := seen.fault(tolerance, gradient_tolerance):
            return _Trial(said=fault)
        return _Trial(said=_equal(seen), forward=forward, seen=seen)


def _forward(probe: Probe, choice: PrefixChoice) -> Forward:
    """A layout, as the probe asks for it."""
    model, family = probe.model, probe.family
    pad_id = int(probe.processor.tokenizer.pad_token_id)

    def forward(batch: PromptBatch, completions: Completions, hidden: bool) -> Tensor:
        positions = family.prompt_positions(model, batch)
        return choice.outputs(model, batch, completions, positions, pad_id, family, hidden)

    return forward


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
    elif not difference <= PATIENCE * probe.tolerance:
        raise ValueError(f"model type {kind!r} cannot decode behind a cache: {reason}")
    else:
        log.warning("rollout: for model type %r decoding behind a cache is inexact: %s", kind, reason)
    return False


def wanted_attentions(prefix_attention: PrefixAttention, attn_implementation: str) -> tuple[str, ...]:
    """The implementations of a shared prefix that a recipe allows; none beside transformers' other attentions."""
    if attn_implementation == "sdpa":
        return ("mask", "split") if prefix_attention == "auto" else (prefix_attention,)
    return ("mask",) if attn_implementation == "eager" else ()
