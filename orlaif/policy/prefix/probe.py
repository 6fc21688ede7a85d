"""What a loaded model does with a video, asked of the loaded model itself.

Two synthetic prompts of unequal lengths, two random completions behind each. Every completion alone, unpadded, through
the model as transformers runs it, is the truth; a layout must give the same log-probs for the padded batch of both,
and the same gradient (``orlaif.policy.prefix.gradients``). A change of one completion must not move the other, which
also finds a leak that low precision would hide; a change of the video must move something, or the model is blind. The
LM head on the last hidden states must make the logits, or a fused head is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from orlaif.policy.asking import per_token
from orlaif.policy.families import Family
from orlaif.policy.prefix.decode import expanded_step, prefill, shared_step
from orlaif.policy.prefix.fused import Head, fitted_head, weight_behind
from orlaif.policy.prefix.gradients import GRADIENT_TOLERANCE, Nudge, nudged, off_by
from orlaif.policy.prefix.group_cache import GroupCache, padding_bias, prefilled
from orlaif.policy.prefix.prepare import prepare_rows
from orlaif.policy.prefix.synthetic import random_tokens, synthetic_batch
from orlaif.types import Completions, PromptBatch

log = logging.getLogger(__name__)

#: Largest difference of a log-prob that is rounding.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3, torch.float16: 0.1, torch.bfloat16: 0.25}
Forward = Callable[[PromptBatch, Completions, bool], Tensor]


def alone(model: nn.Module, batch: PromptBatch, ids: Tensor, family: Family) -> Tensor:
    """Logits f[T, V] that predict ``ids`` i64[T] behind one prompt, unpadded, by transformers' own forward."""
    t = len(ids)
    positions = family.prompt_positions(model, batch)
    given = family.inputs(model, batch)
    tokens = torch.cat([batch.input_ids, ids[None]], 1)
    logits = model(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        position_ids=torch.cat([positions, family.completion_positions(positions, t)], -1),
        use_cache=False,
        **given | {name: nn.functional.pad(value, (0, t)) for name, value in per_token(batch, given).items()},
    ).logits
    return logits[0, -t - 1 : -1]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a layout gave, beside the truth.

    Args:
        difference: largest of a log-prob.
        leak: largest move of a completion's log-prob when the one before it changes.
        traced: norm of the gradient of the one with respect to the other; None where there was no backward pass.
        gradient: difference of the gradient as a part of its norm; None where it was not compared.
        logits: f[P * G, T, V].
    """

    difference: float
    leak: float
    traced: float | None
    gradient: float | None
    logits: Tensor

    def fault(self, tolerance: float, gradient_tolerance: float) -> str | None:
        """In words what is wrong with it; None where all is rounding."""
        if not self.difference <= tolerance:
            return f"gives log-probs that differ from the model's own by {self.difference:.2g}"
        # Experts work on more or fewer tokens at once when others are routed to them, which rounds otherwise.
        if self.leak > 1e-6 and (self.traced != 0.0 or self.leak > tolerance):
            return f"lets one completion see another (log-probs move by {self.leak:.2g})"
        if self.gradient is not None and not self.gradient <= gradient_tolerance:
            return f"gives a gradient that differs from the model's own by {self.gradient:.2g} of its norm"
        return None


class Probe:
    """The truth about one loaded model, to compare layouts with.

    Args:
        model: of transformers, in eval mode.
        processor: its processor.
        family: where the model differs from others; it is told what came out.

    Raises:
        ValueError: the model or its processor cannot take a video, or does not look at it.
    """

    def __init__(self, model: Any, processor: Any, family: Family) -> None:
        self.model, self.processor, self.family = model, processor, family
        self.kind = model.config.model_type
        parameter = next(model.parameters())
        self.dtype = parameter.dtype
        #: Largest difference of log-probs that is rounding.
        self.tolerance = TOLERANCE[parameter.dtype]
        self.gradient_tolerance = GRADIENT_TOLERANCE[parameter.dtype]
        error: Exception | None = None
        for num_frames in (4, 8, 16):  # some know one number of frames only
            try:
                self._ask(parameter.device, num_frames)
                break
            except Exception as problem:  # whatever a model or processor that we do not know may raise
                error = error or problem
        else:
            raise ValueError(
                f"model type {self.kind!r} cannot be shown a video: {type(error).__name__}: {error}"
            ) from error
        if not self.sees:
            raise ValueError(
                f"model type {self.kind!r} takes no video: its log-probs are the same for another one (image and text "
                "models swallow 'videos'); name a video-language model in policy.path"
            )

    def _ask(self, device: torch.device, num_frames: int) -> None:
        def synthetic(*questions: str, seed: int = 0) -> PromptBatch:
            return synthetic_batch(self.processor, questions, device, self.dtype, self.family, num_frames, seed)

        questions = ("what is this", "what")
        singles = [synthetic(question, seed=i) for i, question in enumerate(questions)]
        self.batch, other = synthetic(*questions), synthetic(questions[0], seed=1)
        self.single = singles[0]
        self.family.settle(self.model, self.single)
        self.family.probe_frames = num_frames
        apart = [*self.family.placeholder_ids(self.model.config), *self.batch.input_ids.unique().tolist()]
        tokens = random_tokens(self.processor, apart, (2, 3, 3)).to(device)
        self.ids = tokens[:, 1:]
        # The completion that changes lies first, so that what follows it would see the change.
        self.changed = torch.stack([tokens[:, 0], tokens[:, 2]], 1)
        rows = [self._alone(single, ids) for single, ids in zip(singles, self.ids, strict=True)]
        self.expected = torch.stack([logps for logps, _, _ in rows])
        gradients = [gradient for _, _, gradient in rows if gradient is not None]
        #: f64[H], with respect to the prompts (``Nudge.gradients``); None where the model has no backward pass.
        self.gradient = torch.stack(gradients).sum(0) if len(gradients) == len(rows) else None
        with torch.no_grad():
            self.sees = not torch.equal(alone(self.model, other, self.ids[0, 0], self.family), rows[0][1])

    def _alone(self, single: PromptBatch, ids: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Log-probs f64[G, T] behind one prompt, logits [T, V] of the first completion, the gradient of the last."""
        with torch.no_grad():
            logits = [alone(self.model, single, one, self.family) for one in ids[:-1]]
        gradient = None
        try:
            with self._nudged() as nudge:
                last = alone(self.model, single, ids[-1], self.family)
                gradient, _ = nudge.gradients(self._logps(last[None], ids[-1:]))
            if not gradient.isfinite().all():
                raise ValueError("it is not finite")
        except Exception as error:  # it can still be run, if not trained
            log.warning("model type %r has no gradient: %s: %s", self.kind, type(error).__name__, error)
            gradient = None
            with torch.no_grad():
                last = alone(self.model, single, ids[-1], self.family)
        return self._logps(torch.stack([*logits, last.detach()]), ids), logits[0], gradient

    def _nudged(self) -> AbstractContextManager[Nudge]:
        return nudged(self.model, self.ids[:, 0].unique(), self.ids[:, -1].unique())

    def _logps(self, logits: Tensor, ids: Tensor) -> Tensor:
        """Log-probs f64[..., T] of ``ids`` i64[..., T] under logits, computed in f64."""
        logps = logits.double().log_softmax(-1).view(*ids.shape, -1)
        return logps.gather(-1, ids.unsqueeze(-1)).squeeze(-1)

    def _completions(self, ids: Tensor) -> Completions:
        texts = ((("a",) * ids.shape[1]),) * ids.shape[0]
        return Completions(ids=ids, mask=torch.ones_like(ids, dtype=torch.bool), texts=texts)

    def compare(self, forward: Forward, has_gradient: bool = True) -> Seen:
        """What a layout gives, beside the truth.

        Args:
            forward: a pass over P prompts and their completions: logits, or hidden states where told so.
            has_gradient: false where it has no backward pass on this device.
        """
        completions = self._completions(self.ids)
        gradient = traced = None
        if self.gradient is None or not has_gradient:
            with torch.no_grad():
                logits = forward(self.batch, completions, False)
        else:
            with self._nudged() as nudge:
                logits = forward(self.batch, completions, False)
                found, traced = nudge.gradients(self._logps(logits, self.ids))
                gradient = off_by(found, self.gradient)
        with torch.no_grad():
            logps = self._logps(logits, self.ids)
            moved = self._logps(forward(self.batch, self._completions(self.changed), False), self.changed)
        return Seen(
            difference=float((logps - self.expected).abs().max()),
            leak=float((logps[:, 1] - moved[:, 1]).abs().max()),
            traced=traced,
            gradient=gradient,
            logits=logits.detach(),
        )

    def prepare_rows(self) -> str | None:
        """Let the model run groups in rows (:func:`orlaif.policy.prefix.prepare.prepare_rows`)."""
        positions = self.family.prompt_positions(self.model, self.batch)
        return prepare_rows(self.model, lambda cache: prefill(self.model, self.batch, positions, self.family, cache))

    @torch.no_grad()
    def decode(self, share: bool) -> float:
        """How far log-probs of the second and third token of each completion are from the truth, behind a cache.

        Args:
            share: the rows of a group read one cache of its prompt, instead of one each.
        """
        p, g, t = self.ids.shape
        positions = self.family.prompt_positions(self.model, self.batch)
        _, cache = prefill(self.model, self.batch, positions, self.family)
        ahead = self.family.completion_positions(positions, t).repeat_interleave(g, -2)
        attention = self.batch.attention_mask.repeat_interleave(g, 0)
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.ids.device)
        if share:
            group = GroupCache(prefilled(cache), padding_bias(self.batch.attention_mask), g, t)
        else:
            cache.reorder_cache(torch.arange(p, device=self.ids.device).repeat_interleave(g))
        tokens, logits = self.ids.flatten(0, 1), []
        for step in range(t - 1):
            places = ahead[..., step : step + 1]
            if share:
                logits.append(shared_step(self.model, group, tokens[:, step], places, mask))
                group.advance()
            else:
                attention = nn.functional.pad(attention, (0, 1), value=1)
                logits.append(expanded_step(self.model, cache, tokens[:, step], places, attention))
        logps = self._logps(torch.stack(logits, 1), self.ids[..., 1:])
        return float((logps - self.expected[..., 1:]).abs().max())

    @torch.no_grad()
    def head(self, forward: Forward, logits: Tensor) -> Head:
        """Whether the LM head on hidden states makes the logits, with which scale and soft cap.

        Args:
            forward: a layout.
            logits: that it gave (:meth:`compare`).
        """
        head: Any = self.family.head(self.model)
        if type(head) is not nn.Linear:
            return Head(reason=f"the LM head is a {type(head).__name__}, not a plain nn.Linear")
        if behind := weight_behind(
            self.model, head, lambda: alone(self.model, self.single, self.ids[0, 0], self.family)
        ):
            return Head(reason=f"its logits depend on {behind} behind its LM head, which a fused head would not train")
        hidden = forward(self.batch, self._completions(self.ids), True)
        return fitted_head(head, hidden, logits, self.model.config.get_text_config(decoder=True))
