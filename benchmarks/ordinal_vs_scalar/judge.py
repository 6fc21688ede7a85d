"""One judge, heard in five voices.

It grades the last word of an answer by the reference: right 1, of the right kind 1/2, other 0. Its voices:

    clean       the grade itself
    rescaled    a * grade + b, with another a = exp(1.5 * normal) and b = 3 * normal for each question
    heavy       grade + 0.3 * t, with t of Student's t with 2 degrees of freedom for each answer: no finite variance
    quantised   round(1 + 4 * grade + normal) within 1 .. 5 for each answer: a noisy rater with a rubric of five levels
    length      grade + 0.15 for each word beyond the first: no order of unequal grades changes, but ties are broken

A judge draws its noise anew for each answer, as a model that is sampled does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.ordinal_vs_scalar.policy import last_word
from benchmarks.ordinal_vs_scalar.questions import END

VOICES = ("clean", "rescaled", "heavy", "quantised", "length")


def grades(words: Tensor, answer: Tensor, options: Tensor) -> Tensor:
    """f32[P, G] of answers i64[P, G, T], the right words i64[P] and those of the right kind bool[P, V]."""
    last = last_word(words)
    return ((last == answer.unsqueeze(-1)).float() + options.gather(-1, last).float()) / 2


def heard(voice: str, grade: Tensor, words: Tensor, generator: torch.Generator) -> Tensor:
    """Scores f32[P, G] as the judge's voice has them.

    Args:
        voice: one of ``VOICES``.
        grade: f32[P, G].
        words: i64[P, G, T], the answers.
        generator: of scales and noise.

    Raises:
        ValueError: another voice.
    """
    if voice == "clean":
        return grade
    if voice == "length":
        return grade + 0.15 * ((words != END).sum(-1) - 1).clamp(min=0)
    if voice == "rescaled":
        scale, offset = torch.randn(2, grade.shape[0], 1, generator=generator)
        return (1.5 * scale).exp() * grade + 3 * offset
    noise = torch.randn(3, *grade.shape, generator=generator)
    if voice == "heavy":
        return grade + 0.3 * noise[0] / (noise[1:].square().mean(0)).sqrt()
    if voice == "quantised":
        return (1 + 4 * grade + noise[0]).round().clamp(1, 5)
    raise ValueError(f"voice is {voice!r}; it must be one of {', '.join(VOICES)}")
