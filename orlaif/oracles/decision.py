"""A small judge behind ``transformers serve`` that writes nothing: how surely it would say yes about each answer.

A language model too small to write an order as JSON still leans one way or the other. ``/v1/systemone`` of
``transformers serve`` (5.24 or later) gives the probability of yes over yes and no, from one forward pass for each
answer. It judges text alone: neither frames nor images are sent, and what the video shows must stand in the reference
answer.

Shapes: P groups, G answers.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from orlaif.answer_format import Sees
from orlaif.near_misses import near
from orlaif.openai_client import ChatClient
from orlaif.oracles.asking import AsksServer, all_of
from orlaif.oracles.base import Exchange, ranking_of, values_of
from orlaif.types import CandidateGroup, Prompt, Ranking

FIELDS = ("question", "answer", "reference")


class DecisionJudge(AsksServer):
    """Ranks by the probability with which a server says yes to one question about each answer.

    Args:
        client: the server. Of its settings those of sampling and length do not matter here.
        state: what the question is about: a text with ``{answer}``, and ``{question}`` and ``{reference}`` where the
            judge is to see the prompt's question and its reference answer; a brace that is text is written twice.
        question: to be answered with yes or no, such as ``Do both sentences say the same?``
        sees: what of a completion the judge is shown: ``answer``, ``thoughts``, or ``both`` (the text as it is).

    Raises:
        ValueError: ``state`` without ``{answer}``, with another field or a brace left open; an empty question.
    """

    gives_scores = True

    def __init__(self, client: ChatClient, state: str, question: str, sees: Sees = "answer") -> None:
        template = Template.of(state)
        if "answer" not in template.fields:
            raise ValueError(f"oracle.state is {state!r}; it must have {{answer}}, where the answer is to stand")
        if not question.strip():
            raise ValueError("oracle.question is empty; it must be a question to be answered with yes or no")
        super().__init__(client, sees)
        self.state, self.template, self.question = state, template, question

    def lacks(self, prompt: Prompt) -> str | None:
        """A reference answer, where ``state`` shows it."""
        return "a reference answer" if "reference" in self.template.fields and prompt.answer is None else None

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
        prompt = group.prompt
        state = self.template.filled(question=prompt.question, answer=answer, reference=prompt.answer or "")
        yes = await self.client.decide(state, self.question)
        asked = f"{state}\n\n{self.question}"
        self.keep_exchanges([Exchange(prompt_id=prompt.id, asked=asked, replied=f"yes: {yes:.4f}")])
        return yes


@dataclass(frozen=True, kw_only=True)
class Template:
    """``state`` as it is read: texts, and behind each the field that follows it.

    Args:
        parts: pairs of a text and a name of :data:`FIELDS`; None behind the last text, where no field ends it.
    """

    parts: tuple[tuple[str, str | None], ...]

    @classmethod
    def of(cls, state: str) -> Template:
        """``state`` read by the rules of ``str.format``; raises ValueError for what is no field, or is left open."""
        rule = f"it may have {', '.join(f'{{{name}}}' for name in FIELDS)}, and a brace that is text is written twice"
        try:
            parsed = list(string.Formatter().parse(state))
        except ValueError as error:
            raise ValueError(f"oracle.state is {state!r}: {error}; {rule}") from None
        for _, name, spec, conversion in parsed:
            if name is not None and (name not in FIELDS or spec or conversion):
                close = near(name, FIELDS)
                meant = f"; did you mean {{{close}}}?" if close else ""
                whole = name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
                raise ValueError(f"oracle.state is {state!r}: there is no field {{{whole}}}{meant}; {rule}")
        return cls(parts=tuple((text, name) for text, name, _, _ in parsed))

    @property
    def fields(self) -> frozenset[str]:
        """Names of the fields that it has."""
        return frozenset(name for _, name in self.parts if name is not None)

    def filled(self, **texts: str) -> str:
        """With each field replaced by its text, as one line; a field that stands in a text stays as it is."""
        lines = {name: " ".join(text.split()) for name, text in texts.items()}
        return "".join(text + (lines[name] if name is not None else "") for text, name in self.parts)
