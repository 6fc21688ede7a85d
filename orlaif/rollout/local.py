"""Rollout: sampling G completions for each of P prompts.

The vision tower and the prompt run once per prompt; all completions of all prompts are then decoded together
(``orlaif.rollout.decoding``), and those that have ended are dropped on the way. Randomness comes from generators that
the caller seeds, one per prompt: a completion draws the same numbers whatever is dropped, whichever prompts share its
batch and however many processes there are, so that a step can be repeated anywhere.

Shapes: P prompts, G completions per prompt, T <= ``max_new_tokens`` tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers import LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper

from orlaif.policy import Policy, evaluating
from orlaif.policy.prefix.decode import prefill
from orlaif.rollout.base import BaseRollout, SamplingParams
from orlaif.rollout.compiled import CompiledDecoder
from orlaif.rollout.correction import ImportanceCorrection
from orlaif.rollout.decoding import Decoder, ExpandedDecoder, SharedDecoder
from orlaif.stages import told
from orlaif.types import Completions, PromptBatch

#: Tokens with which a completion may go on, from the place of its prompt in the batch and its tokens so far.
Allowed: TypeAlias = Callable[[int, list[int]], list[int]]


def choose_tokens(logits: Tensor, sampling: SamplingParams, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    """One token i64[N] per row of logits f32[N, V], and its log-prob f32[N] under the untruncated distribution.

    ``noise`` f32[N, V] is exponential: the largest quotient of probability and noise is a draw from the probabilities.
    """
    logits = logits.float()
    if noise is None:
        tokens = logits.argmax(-1)
    else:
        logits = logits / sampling.temperature
        warpers = LogitsProcessorList()
        if sampling.top_k:
            warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            warpers.append(TopPLogitsWarper(sampling.top_p))
        # These warpers look at scores only; the ids that the interface asks for are not read.
        no_ids: Any = None
        tokens = (warpers(no_ids, logits).softmax(-1) / noise).argmax(-1)
    return tokens, logits.log_softmax(-1).gather(-1, tokens[:, None]).squeeze(-1)


def start(
    policy: Policy, batch: PromptBatch, group_size: int, limit: int, compile_decode: bool = False
) -> tuple[Tensor, Decoder]:
    """Logits [P, V] of the first token, and what decodes the rest."""
    model = policy.network
    with policy.features.reused(policy.family, model, batch):
        logits, cache = prefill(model, batch, policy.prompt_positions(batch), policy.family)
    decoder: Decoder
    if compile_decode:
        if not policy.reads_prompt_once:
            raise ValueError(
                "rollout.compile_decode is true; it needs prefix 'shared' and attn_implementation 'sdpa', and a model "
                f"whose cache can be shared; this policy has {policy.layout!r} and {policy.attn_implementation!r}"
            )
        decoder = CompiledDecoder(model, cache, batch, group_size, limit, policy.decode_caches)
    elif policy.reads_prompt_once:
        decoder = SharedDecoder(model, cache, batch, group_size, limit)
    else:
        decoder = ExpandedDecoder(model, cache, batch, group_size)
    return logits, decoder


@torch.no_grad()
def generate(
    policy: Policy,
    batch: PromptBatch,
    group_size: int,
    sampling: SamplingParams,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    compile_decode: bool = False,
    allowed: Allowed | None = None,
) -> Completions:
    """Sample ``group_size`` completions per prompt.

    Args:
        policy: the model; put into eval mode for the rollout and back.
        batch: P prompts, P >= 1.
        group_size: G.
        sampling: how tokens are drawn.
        generator: on the policy's device: one for each prompt, or one for all; None uses torch's global state.
        compile_decode: a compiled step over caches of fixed size (CUDA graphs on a GPU); the first rollouts compile.
        allowed: lets completions be written of certain tokens only; by default of all but placeholders.

    Returns:
        Completions with ``logps`` at the sampling temperature (at temperature 1 for greedy decoding), T the longest
        completion of this batch.

    Raises:
        ValueError: ``compile_decode`` for a policy whose prompts are not shared, generators that are not P, or a
            prompt that leaves no room for an answer in the model's context.
    """
    policy.check_context(batch, sampling.max_new_tokens)
    sampled = []
    with evaluating(policy.network), policy.gathered():
        parts = policy.parts(batch)
        for at, part in parts:
            generators, places = generator, at.tolist()
            if isinstance(generator, Sequence):
                if len(generator) != len(batch):
                    raise ValueError(f"generate was given {len(generator)} generators for {len(batch)} prompts")
                generators = [generator[i] for i in places]
            sampled.append(_sample(policy, part, group_size, sampling, generators, compile_decode, allowed, places))
    longest = max(ids.shape[-1] for ids, _, _ in sampled)
    order = torch.cat([at for at, _ in parts]).argsort()

    def together(tensors: Sequence[Tensor], padding: int) -> Tensor:
        padded = [nn.functional.pad(x, (0, longest - x.shape[-1]), value=padding) for x in tensors]
        return torch.cat(padded)[order]

    ids, mask, logps = (
        together(tensors, padding)
        for tensors, padding in zip(zip(*sampled, strict=True), (policy.pad_id, 0, 0), strict=True)
    )
    texts = policy.processor.tokenizer.batch_decode(
        [row[keep].tolist() for row, keep in zip(ids.flatten(0, 1), mask.flatten(0, 1), strict=True)],
        skip_special_tokens=True,
    )
    texts, g = [text.strip() for text in texts], group_size
    return Completions(
        ids=ids, mask=mask, texts=tuple(tuple(texts[i * g : (i + 1) * g]) for i in range(len(batch))), logps=logps
    )


def _sample(
    policy: Policy,
    batch: PromptBatch,
    g: int,
    sampling: SamplingParams,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    compile_decode: bool,
    allowed: Allowed | None,
    places: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens i64, mask bool and log-probs f32 [P, G, T] for prompts at ``places`` that are decoded together."""
    p, limit = len(batch), sampling.max_new_tokens
    logits, decoder = start(policy, batch, g, limit, compile_decode)
    logits = logits.repeat_interleave(g, 0)
    device = logits.device
    positions = policy.family.completion_positions(policy.prompt_positions(batch), limit)
    eos = torch.tensor(policy.eos_ids, device=device)
    ids = torch.full((p * g, limit), policy.pad_id, device=device)
    mask = torch.zeros(p * g, limit, dtype=torch.bool, device=device)
    logps = torch.zeros(p * g, limit, dtype=torch.float32, device=device)
    alive = torch.ones(p * g, dtype=torch.bool, device=device)
    noise = None
    if sampling.temperature:
        noise = torch.empty(p * g, logits.shape[-1], dtype=torch.float32, device=device)
        noises: list[tuple[Tensor, torch.Generator | None]]
        if generator is None or isinstance(generator, torch.Generator):
            noises = [(noise, generator)]
        else:
            noises = list(zip(noise.split(g), generator, strict=True))
    for step in told(range(limit), "rollout" if sampling.temperature else "greedy answers", "tokens at most"):
        rows = decoder.rows[decoder.real]
        if noise is not None:  # for all completions, ended or not
            for part, source in noises:
                part.exponential_(generator=source)
        logits = policy.mask_placeholders(logits)
        if allowed is not None:
            written = zip(rows.tolist(), ids[rows, :step].tolist(), strict=True)
            logits = _only(logits, [allowed(places[row // g], before) for row, before in written])
        tokens, token_logps = choose_tokens(logits, sampling, None if noise is None else noise[rows])
        live = alive[rows]
        tokens = tokens.where(live, policy.pad_id)
        ids[rows, step] = tokens
        mask[rows, step] = live
        logps[rows, step] = token_logps.masked_fill(~live, 0.0)
        alive[rows] = live & ~torch.isin(tokens, eos)
        if step + 1 == limit or not bool(alive.any()):
            break
        decoder.drop(alive)
        stepped = decoder.rows
        logits = decoder.advance(ids[stepped, step], positions[..., stepped // g, step : step + 1])
    steps = step + 1
    return ids[:, :steps].view(p, g, -1), mask[:, :steps].view(p, g, -1), logps[:, :steps].view(p, g, -1)


def _only(logits: Tensor, tokens: Sequence[Sequence[int]]) -> Tensor:
    """``logits`` f[N, V] with -inf at all but the ``tokens`` of each row."""
    kept = torch.zeros_like(logits, dtype=torch.bool)
    for row, some in zip(kept, tokens, strict=True):
        row[list(some)] = True
    return logits.masked_fill(~kept, -torch.inf)


class Rollout(BaseRollout):
    """A rollout by the policy itself, in the training process (:func:`generate`).

    Args:
        group_size: G, 2 or more.
        sampling: how tokens are drawn; training needs a temperature above 0.
        compile_decode: see :func:`generate`; for a GPU.
        importance_cap, correction: see :class:`~orlaif.rollout.base.BaseRollout`; the sampler here is the same model.
    """

    def __init__(
        self,
        group_size: int = 8,
        sampling: SamplingParams | None = None,
        compile_decode: bool = False,
        importance_cap: float | None = None,
        correction: ImportanceCorrection | None = None,
    ) -> None:
        super().__init__(group_size, sampling, importance_cap, correction)
        self.compile_decode = compile_decode

    def check_ahead(self) -> None:
        """Refuse CUDA graphs, which cannot be recorded while another thread uses the GPU."""
        if self.compile_decode:
            raise ValueError("rollout.engine.compile_decode is true, which samples in the step only; set it to false")

    def __call__(self, policy: Policy, batch: PromptBatch, generator: Sequence[torch.Generator]) -> Completions:
        """G completions of each prompt in ``batch``; ``generator`` has one for each (see :func:`generate`)."""
        return generate(policy, batch, self.group_size, self.sampling, generator, self.compile_decode)
