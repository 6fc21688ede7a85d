"""Training R policies side by side: the warm start, and a run of one mapping and voice for each rate and seed.

The step is a recipe's: answers are sampled, judged, ranked, weighed by the library's mapping, and
``grpo_rank_loss`` is taken of the logits (one update per rollout, no KL term). Adam with the field's usual betas, the
gradient of each policy clipped to norm 1, a rate that rises over the first tenth and falls linearly to 0. Policies of
one seed see the same questions in the same order and draw the same noise, whatever the mapping and the rate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.ordinal_vs_scalar.judge import grades, heard
from benchmarks.ordinal_vs_scalar.policy import LONGEST, Weights, fresh, last_word, logits_of, read, write
from benchmarks.ordinal_vs_scalar.questions import END, WORDS, Questions
from orlaif.advantages import Advantage
from orlaif.losses import grpo_rank_loss
from orlaif.types import Completions, Ranking

#: Questions of a step, answers of a group.
PROMPTS, GROUP = 16, 8
WARM_STEPS, WARM_BATCH, WARM_RATE = 100, 32, 2e-3
CLIP = 1.0


class StackedAdam:
    """Adam over R policies, each with its own rate, its gradient clipped to norm 1 before.

    Args:
        weights: [R, ...] each.
        rates: f32[R], the highest rate of each.
        steps: of the run.
    """

    def __init__(self, weights: Weights, rates: Tensor, steps: int) -> None:
        self.weights, self.rates, self.steps, self.taken = weights, rates.view(-1, 1, 1), steps, 0
        self.first = {name: torch.zeros_like(value) for name, value in weights.items()}
        self.second = {name: torch.zeros_like(value) for name, value in weights.items()}

    def schedule(self) -> float:
        """Share of the highest rate at the step that is taken next."""
        rising = max(1, self.steps // 10)
        return min((self.taken + 1) / rising, (self.steps - self.taken) / (self.steps - rising))

    @torch.no_grad()
    def step(self, loss: Tensor) -> None:
        """One step down the gradient of the policies' summed losses."""
        names = list(self.weights)
        gradients = torch.autograd.grad(loss, [self.weights[name] for name in names])
        norm = sum(g.square().sum((1, 2), keepdim=True) for g in gradients) ** 0.5
        factor, share = (CLIP / (norm + 1e-6)).clamp(max=1.0), self.schedule()
        self.taken += 1
        rates = share * self.rates / (1 - 0.9**self.taken)
        for name, gradient in zip(names, gradients, strict=True):
            gradient = gradient.mul_(factor)
            first = self.first[name].lerp_(gradient, 0.1)
            second = self.second[name].mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            scale = second.sqrt().div_((1 - 0.999**self.taken) ** 0.5).add_(1e-8)
            self.weights[name].sub_(torch.div(first, scale, out=scale).mul_(rates))


def stacked(weights: Sequence[Weights]) -> Weights:
    """Weights [1, ...] of R policies as [R, ...], ready for gradients."""
    return {name: torch.cat([w[name] for w in weights]).clone().requires_grad_() for name in weights[0]}


def warm_start(questions: Questions, seed: int) -> Weights:
    """A policy after a short warm start on reference answers, half of them a word and half ``it is`` and the word."""
    weights = stacked([fresh(seed)])
    adam = StackedAdam(weights, torch.tensor([WARM_RATE]), WARM_STEPS)
    generator = torch.Generator().manual_seed(seed)
    for step in range(WARM_STEPS):
        part = slice(step * WARM_BATCH, (step + 1) * WARM_BATCH)
        answer = questions.answer[part]
        said = torch.full((WARM_BATCH, LONGEST), END)
        said[:, 0] = answer
        long = torch.rand(WARM_BATCH, generator=generator) < 0.5
        said[long, 0], said[long, 1], said[long, 2] = WORDS.index("it"), WORDS.index("is"), answer[long]
        mask = torch.arange(LONGEST) <= (said != END).sum(-1, keepdim=True)
        context = read(weights, questions.seen[None, part], questions.kind[None, part])
        logps = logits_of(weights, context, said[None]).log_softmax(-1).gather(-1, said[None, ..., None])[..., 0]
        adam.step(-(logps * mask).sum() / mask.sum())
    return {name: value.detach() for name, value in weights.items()}


@torch.no_grad()
def measure(weights: Weights, start: Weights, questions: Questions) -> dict[str, list[float]]:
    """Of each policy: greedy accuracy, words of a greedy answer, and KL from the start in nats per sampled answer."""
    context = read(weights, questions.seen, questions.kind)
    words, _, _ = write(weights, context)
    right = (last_word(words) == questions.answer).float().mean(-1)
    noise = torch.empty(*questions.kind.shape, LONGEST, len(WORDS))
    noise[:] = torch.empty(noise.shape[1:]).exponential_(generator=torch.Generator().manual_seed(1))
    sampled, mask, _ = write(weights, context, noise)
    now = logits_of(weights, context, sampled).log_softmax(-1)
    before = logits_of(start, read(start, questions.seen, questions.kind), sampled).log_softmax(-1)
    kl = ((now.exp() * (now - before)).sum(-1) * mask).sum(-1).mean(-1)
    length = (words != END).sum(-1).float().mean(-1)
    drawn = (last_word(sampled) == questions.answer).float().mean(-1)
    return {"accuracy": right.tolist(), "kl": kl.tolist(), "words": length.tolist(), "sampled": drawn.tolist()}


def sample_noise(generators: dict[int, torch.Generator], seeds: Sequence[int]) -> Tensor:
    """Exponential noise f32[R, PROMPTS * GROUP, T, V], the same for policies of one seed."""
    drawn = {
        seed: torch.empty(PROMPTS * GROUP, LONGEST, len(WORDS)).exponential_(generator=generator)
        for seed, generator in generators.items()
    }
    return torch.stack([drawn[seed] for seed in seeds])


def advantages_of(mapping: Advantage, scores: Tensor, words: Tensor, mask: Tensor, logps: Tensor) -> Tensor:
    """Advantages f32[P, G] by the library's mapping; ranks in competition numbering."""
    ranks = (scores.unsqueeze(-2) > scores.unsqueeze(-1)).sum(-1)
    completions = Completions(ids=words, mask=mask, texts=(("",) * GROUP,) * len(scores), logps=logps)
    return mapping(Ranking(ranks=ranks, scores=scores), completions)


def train(
    mapping: Advantage,
    voice: str,
    start: Weights,
    seeds: Sequence[int],
    rates: Sequence[float],
    train_set: Questions,
    read_at: Sequence[int],
    watch: Callable[[Weights], Any],
) -> list[Any]:
    """Train R policies, policy r from ``start[r]`` at ``rates[r]`` on the questions of ``seeds[r]``.

    Args:
        mapping: from ranking to advantages.
        voice: of the judge.
        start: weights [R, ...].
        seeds: R of them.
        rates: R highest learning rates.
        train_set: [R, N, ...], gone through again where the steps need more.
        read_at: steps behind which ``watch`` is called; the last of them ends the run.
        watch: what is read of the weights.

    Returns:
        What was read.
    """
    weights = stacked([start])
    steps, pass_over = read_at[-1], train_set.kind.shape[1] // PROMPTS
    adam = StackedAdam(weights, torch.tensor(rates), steps)
    noises = {seed: torch.Generator().manual_seed(7919 * seed + 1) for seed in seeds}
    voices = {seed: torch.Generator().manual_seed(7919 * seed + 2) for seed in seeds}
    found = []
    for step in range(steps):
        at = step % pass_over * PROMPTS
        questions = train_set.part(at, at + PROMPTS)
        context = read(weights, questions.seen, questions.kind).repeat_interleave(GROUP, 1)
        with torch.no_grad():
            written = write(weights, context, sample_noise(noises, seeds))
            words, mask, logps = (x.view(len(seeds), PROMPTS, GROUP, LONGEST) for x in written)
            scores = _judged(voice, words, questions, voices, seeds)
            advantages = advantages_of(mapping, *(x.flatten(0, 1) for x in (scores, words, mask, logps)))
            # The loss is linear in the advantages: each policy's mean over its own tokens, all in one call.
            weighed = advantages.view(scores.shape) / mask.sum((1, 2, 3)).view(-1, 1, 1)
        logits = logits_of(weights, context, words.flatten(1, 2))
        loss, _ = grpo_rank_loss(
            logits.flatten(0, 1),
            words.flatten(0, 2),
            mask=mask.flatten(0, 2),
            advantages=weighed.flatten(),
            normalizer=1.0,
            implementation="torch",
        )
        adam.step(loss)
        if step + 1 in read_at:
            found.append(watch(weights))
    return found


def _judged(
    voice: str, words: Tensor, questions: Questions, generators: dict[int, torch.Generator], seeds: Sequence[int]
) -> Tensor:
    """Scores f32[R, P, G]; policies of one seed hear the same noise at the same place."""
    states = {seed: generator.get_state() for seed, generator in generators.items()}
    scores = []
    for seed, said, answer, options in zip(seeds, words, questions.answer, questions.options, strict=True):
        generators[seed].set_state(states[seed])
        scores.append(heard(voice, grades(said, answer, options), said, generators[seed]))
    return torch.stack(scores)
