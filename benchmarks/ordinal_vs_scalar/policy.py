"""R small policies in one set of tensors, so that all runs of a mapping are trained by the same few products.

A policy reads a clip and the kind of its question with two layers, and writes words by a recurrent one. Each parameter
is [R, ...] and policy r never sees another's: the gradient of a sum of losses is each one's own.

Shapes: R policies, N questions each, G answers to each, T words, V words of ``WORDS``, H hidden values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.ordinal_vs_scalar.questions import END, VALUES, WORDS
from orlaif.demo.shapes import KINDS

HIDDEN = 96
#: Words of the longest answer, the end included.
LONGEST = 4

Weights = dict[str, Tensor]


def fresh(seed: int) -> Weights:
    """Weights of one policy, [1, ...]."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(rows: int, columns: int) -> Tensor:
        return torch.randn(1, rows, columns, generator=generator) / rows**0.5

    return {
        "clip": drawn(VALUES, HIDDEN),
        "kind": drawn(len(KINDS), HIDDEN),
        "mixed": drawn(HIDDEN, HIDDEN),
        "word": drawn(len(WORDS), HIDDEN),
        "state": drawn(HIDDEN, HIDDEN),
        "head": drawn(HIDDEN, len(WORDS)),
        "bias": torch.zeros(1, 1, len(WORDS)),
    }


def read(weights: Weights, seen: Tensor, kind: Tensor) -> Tensor:
    """What a policy makes of its questions: f32[R, N, D] and i64[R, N] to f32[R, N, H]."""
    asked = weights["kind"].gather(1, kind.unsqueeze(-1).expand(-1, -1, HIDDEN))
    first = (torch.bmm(seen, weights["clip"]) + asked).relu()
    return (torch.bmm(first, weights["mixed"]) + asked).relu()


def _next(weights: Weights, context: Tensor, state: Tensor, words: Tensor) -> Tensor:
    written = weights["word"].gather(1, words.unsqueeze(-1).expand(-1, -1, HIDDEN))
    return (torch.bmm(state, weights["state"]) + written + context).relu()


def _logits(weights: Weights, state: Tensor) -> Tensor:
    return torch.bmm(state, weights["head"]) + weights["bias"]


def logits_of(weights: Weights, context: Tensor, answers: Tensor) -> Tensor:
    """Logits f32[R, N, T, V] at every word of answers i64[R, N, T], given f32[R, N, H]."""
    state, found = context, []
    for at in range(answers.shape[-1]):
        found.append(_logits(weights, state))
        state = _next(weights, context, state, answers[..., at])
    return torch.stack(found, -2)


def write(weights: Weights, context: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Answers of R policies.

    Args:
        weights: theirs.
        context: f32[R, N, H].
        noise: exponential, f32[R, N, T, V]; None writes the likeliest words.

    Returns:
        words i64[R, N, T]; mask bool, up to the end or the last word; log-probs f32 of the words, 0 behind the end.
    """
    state, alive = context, torch.ones(context.shape[:2], dtype=torch.bool)
    words, masks, logps = [], [], []
    for at in range(LONGEST):
        logp = _logits(weights, state).log_softmax(-1)
        word = (logp if noise is None else logp - noise[:, :, at].log()).argmax(-1).where(alive, END)
        words.append(word)
        masks.append(alive)
        logps.append(logp.gather(-1, word.unsqueeze(-1)).squeeze(-1) * alive)
        alive = alive & (word != END)
        state = _next(weights, context, state, word)
    return torch.stack(words, -1), torch.stack(masks, -1), torch.stack(logps, -1)


def last_word(words: Tensor) -> Tensor:
    """The word of i64[..., T] that is graded: the last before the end; ``END`` where there is none."""
    length = (words != END).sum(-1, keepdim=True)
    return words.gather(-1, (length - 1).clamp(min=0)).squeeze(-1)
