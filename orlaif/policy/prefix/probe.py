"""What a loaded model does with a video, asked of the loaded model itself.

Two synthetic prompts of unequal lengths, two random completions behind each. Every completion alone, unpadded, through
the model as transformers runs it, is the truth; a layout must give the same log-probs for the padded batch of both. A
change of one completion must not move the other at all, which also finds a leak that low precision would hide; a change
of the video must move something, or the model is blind. The LM head on the last hidden states must make the logits, or
a fused head is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from orlaif.policy.asking import per_token
from orlaif.policy.encoding import ProcessorEncoder
from orlaif.policy.families import Family
from orlaif.policy.prefix.decode import expanded_step, prefill, shared_step
from orlaif.policy.prefix.group_cache import GroupCache, padding_bias, prefilled
from orlaif.types import Completions, PromptBatch, VideoClip, VideoPrompt

#: Largest difference of a log-prob that is rounding.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3, torch.float16: 0.1, torch.bfloat16: 0.25}
#: Seconds between the frames of the synthetic video: long and low, so that time exceeds height and width.
SPACING_S = 4.0
Forward = Callable[[PromptBatch, Completions, bool], Tensor]


def structural_reason(config: Any) -> str | None:
    """What in a text model's config rules a shared prefix out, or None."""
    kinds = set(getattr(config, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    if kinds:
        return f"it has layers of {', '.join(sorted(kinds))}, whose state runs on from one completion to the next"
    if getattr(config, "attn_logit_softcapping", None):
        return "it caps its attention scores, which sdpa does not"
    window: int | None = getattr(config, "sliding_window", None)
    sliding = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
    if not sliding or not getattr(config, "use_sliding_window", True):
        window = None
    if window is not None and window < getattr(config, "max_position_embeddings", 0):
        return f"its attention has a window of {window} tokens, which a prompt may exceed"
    return None


def synthetic_batch(
    processor: Any,
    questions: tuple[str, ...],
    device: torch.device,
    dtype: torch.dtype,
    family: Family | None = None,
    num_frames: int = 4,
    seed: int = 0,
) -> PromptBatch:
    """Short questions about videos of noise, the same every time.

    Args:
        processor: of the model.
        questions: P of them.
        device: of the tensors.
        dtype: of the pixels.
        family: where the model differs from others.
        num_frames: of each video.
        seed: of the noise of the first; the next have the next ones.
    """
    prompts, clips = [], []
    for i, question in enumerate(questions):
        generator = torch.Generator().manual_seed(seed + i)
        frames = torch.randint(0, 256, (num_frames, 3, 56, 56), generator=generator, dtype=torch.uint8)
        pts_s = torch.arange(num_frames, dtype=torch.float64) * SPACING_S
        clips.append(VideoClip(frames=frames, pts_s=pts_s, duration_s=num_frames * SPACING_S, path="probe"))
        prompts.append(VideoPrompt(id="probe", video="probe", question=question, answer="a"))
    batch = ProcessorEncoder(processor, family=family)(prompts, clips)

    def cast(value: Any) -> Any:
        if isinstance(value, list):
            return [cast(one) for one in value]
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    return replace(batch, mm_inputs={name: cast(value) for name, value in batch.mm_inputs.items()}).to(device)


def synthetic_prompt(
    processor: Any, device: torch.device, dtype: torch.dtype, family: Family | None = None
) -> PromptBatch:
    """A short question about a video of noise; see :func:`synthetic_batch`."""
    num_frames = 4 if family is None else family.probe_frames
    return synthetic_batch(processor, ("what is this",), device, dtype, family, num_frames)


def random_tokens(processor: Any, placeholders: list[int], shape: tuple[int, ...]) -> Tensor:
    """Ordinary tokens i64[shape], the same every time."""
    special = {*placeholders, *processor.tokenizer.all_special_ids}
    vocabulary = torch.tensor([i for i in range(len(processor.tokenizer)) if i not in special])
    return vocabulary[torch.randint(len(vocabulary), shape, generator=torch.Generator().manual_seed(0))]


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
class Head:
    """What a fused head may take for the LM head.

    Args:
        scale: of the logits, before a cap.
        softcap: of the logits.
        reason: why it must not be fused; None where it may.
    """

    scale: float = 1.0
    softcap: float | None = None
    reason: str | None = None


class Probe:
    """The truth about one loaded model, to compare layouts with.

    Args:
        model: of transformers, in eval mode.
        processor: its processor.
        family: where the model differs from others; it is told what came out.

    Raises:
        ValueError: the model or its processor cannot take a video, or does not look at it.
    """

    @torch.no_grad()
    def __init__(self, model: Any, processor: Any, family: Family) -> None:
        self.model, self.processor, self.family = model, processor, family
        self.kind = model.config.model_type
        parameter = next(model.parameters())
        self.dtype = parameter.dtype
        #: Largest difference of log-probs that is rounding.
        self.tolerance = TOLERANCE[parameter.dtype]
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
        self.family.settle(self.model, singles[0])
        self.family.probe_frames = num_frames
        tokens = random_tokens(self.processor, self.family.placeholder_ids(self.model.config), (2, 3, 3)).to(device)
        self.ids = tokens[:, 1:]
        # The completion that changes lies first, so that what follows it would see the change.
        self.changed = torch.stack([tokens[:, 0], tokens[:, 2]], 1)
        rows = [
            [alone(self.model, single, ids, self.family) for ids in self.ids[p]] for p, single in enumerate(singles)
        ]
        self.expected = self._logps(torch.stack([torch.stack(row) for row in rows]), self.ids)
        self.sees = not torch.equal(alone(self.model, other, self.ids[0, 0], self.family), rows[0][0])

    def _logps(self, logits: Tensor, ids: Tensor) -> Tensor:
        """Log-probs f64[P, G, T] of ``ids`` i64[P, G, T] under logits, computed in f64."""
        logps = logits.double().log_softmax(-1).view(*ids.shape, -1)
        return logps.gather(-1, ids.unsqueeze(-1)).squeeze(-1)

    def _completions(self, ids: Tensor) -> Completions:
        texts = ((("a",) * ids.shape[1]),) * ids.shape[0]
        return Completions(ids=ids, mask=torch.ones_like(ids, dtype=torch.bool), texts=texts)

    @torch.no_grad()
    def compare(self, forward: Forward) -> tuple[float, float]:
        """How far a layout is from the truth, and how far one completion moves when another changes.

        Args:
            forward: a pass over P prompts and their completions: logits, or hidden states where told so.
        """
        logps, moved = (
            self._logps(forward(self.batch, self._completions(ids), False), ids) for ids in (self.ids, self.changed)
        )
        return float((logps - self.expected).abs().max()), float((logps[:, 1] - moved[:, 1]).abs().max())

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
    def head(self, forward: Forward) -> Head:
        """Whether the LM head on hidden states makes the logits, with which scale and soft cap."""
        head: Any = self.family.head(self.model)
        if type(head) is not nn.Linear:
            return Head(reason=f"the LM head is a {type(head).__name__}, not a plain nn.Linear")
        completions = self._completions(self.ids)
        logits, hidden = (forward(self.batch, completions, taken).double() for taken in (False, True))
        plain = hidden @ head.weight.double().T + (0.0 if head.bias is None else head.bias.double())
        softcap = getattr(self.model.config.get_text_config(decoder=True), "final_logit_softcapping", None)
        allowed = {torch.float64: 1e-6, torch.float32: 1e-4}.get(self.dtype, 0.03) * float(logits.abs().max())
        fitted = float((logits * plain).sum() / (plain * plain).sum())
        differences = []
        for scale, cap in ((1.0, softcap), (1.0, None), (fitted, None)):
            made = scale * plain if cap is None else cap * torch.tanh(scale * plain / cap)
            differences.append(float((made - logits).abs().max()))
            if differences[-1] <= allowed:
                return Head(scale=scale, softcap=cap)
        return Head(reason=f"its logits are not what its LM head makes of hidden states (off by {differences[0]:.2g})")
