"""A small judge behind ``transformers serve`` that writes nothing: how surely it would say yes about each answer.

A language model too small to write an order as JSON still leans one way or the other. ``/v1/systemone`` of
``transformers serve`` (5.24 or later) gives the probability of yes over yes and no, from one forward pass for each
answer. It judges text alone: neither frames nor images are sent, and what the video shows must stand in the reference
answer.

Shapes: P groups, G answers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from orlaif.answer_format import Sees
from orlaif.openai_client import ChatClient
from orlaif.oracles.asking import AsksServer, all_of
from orlaif.oracles.base import Exchange, ranking_of, values_of
from orlaif.types import CandidateGroup, Prompt, Ranking

FIELDS = ("{question}", "{answer}", "{reference}")


class DecisionJudge(AsksServer):
    """Ranks by the probability with which a server says yes to one question about each answer.

    Args:
        client: the server. Of its settings those of sampling and length do not matter here.
        state: what the question is about: a text with ``{answer}``, and ``{question}`` and ``{reference}`` where the
            judge is to see the prompt's question and its reference answer.
        question: to be answered with yes or no, such as ``Do both sentences say the same?``
        sees: what of a completion the judge is shown: ``answer``, ``thoughts``, or ``both`` (the text as it is).

    Raises:
        ValueError: ``state`` without ``{answer}``, or an empty question.
    """

    def __init__(self, client: ChatClient, state: str, question: str, sees: Sees = "answer") -> None:
        if "{answer}" not in state:
            raise ValueError(f"oracle.state is {state!r}; it must have {{answer}}, where the answer is to stand")
        if not question.strip():
            raise ValueError("oracle.question is empty; it must be a question to be answered with yes or no")
        super().__init__(client, sees)
        self.state, self.question = state, question

    def lacks(self, prompt: Prompt) -> str | None:
        """A reference answer, where ``state`` shows it."""
        return "a reference answer" if "{reference}" in self.state and prompt.answer is None else None

    def rank(self, groups: Sequence[CandidateGroup]) -> Ranking:
        """Order the answers of each group.

        Args:
            groups: P groups; each different answer is asked about once.

        Returns:
            Dense ranks i64[P, G], and the probabilities of yes f32[P, G] as scores; groups of which a request failed in
            ``failures``.
        """
        outcomes, size = self.ask_about(groups, self._one), len(groups[0].answers)
        return replace(ranking_of(outcomes, size), scores=values_of(outcomes, size).float())

    async def _one(self, group: CandidateGroup) -> Tensor:
        """f64[G], probabilities of yes."""
        texts = list(dict.fromkeys(group.answers))
        sure = await all_of([self._sure(group, text) for text in texts])
        return torch.tensor([sure[texts.index(answer)] for answer in group.answers], dtype=torch.float64)

    async def _sure(self, group: CandidateGroup, answer: str) -> float:
        state = filled(self.state, (group.prompt.question, answer, group.prompt.answer or ""))
        yes = await self.client.decide(state, self.question)
        asked = f"{state}\n\n{self.question}"
        self.keep_exchanges([Exchange(prompt_id=group.prompt.id, asked=asked, replied=f"yes: {yes:.4f}")])
        return yes


def filled(state: str, texts: Sequence[str]) -> str:
    """``state`` with its fields replaced, each by one line; a field that stands in a text stays as it is."""
    lines = {field: " ".join(text.split()) for field, text in zip(FIELDS, texts, strict=True)}
    parts = re.split(f"({'|'.join(map(re.escape, FIELDS))})", state)
    return "".join(lines.get(part, part) for part in parts)
