"""How a policy is asked: what stands around each question, and what its chat template is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from orlaif.types import Prompt, Text


@dataclass(frozen=True, kw_only=True)
class Chat:
    """``policy.chat`` of a recipe; training, evaluation and prediction ask alike. ``data.system_prompt`` stands before.

    Args:
        prompt_template: the last question as the model reads it, ``{question}`` once in it; all else is text as it is.
        chat_template_kwargs: arguments of the model's own chat template, such as ``enable_thinking: false``.

    Raises:
        ValueError: a template without ``{question}`` or with several, or an argument that is not the recipe's to give.
    """

    prompt_template: str = "{question}"
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.prompt_template.count("{question}") != 1:
            raise ValueError(
                f"policy.chat.prompt_template is {self.prompt_template!r}; it must hold '{{question}}' exactly once"
            )
        ours = ("add_generation_prompt", "continue_final_message", "tokenize", "messages", "conversation")
        if taken := [name for name in self.chat_template_kwargs if name in ours]:
            raise ValueError(
                f"policy.chat.chat_template_kwargs has {taken[0]!r}, which orlaif gives itself; take it out"
            )

    def asked(self, prompt: Prompt) -> Prompt:
        """The prompt with its last question in the template; of several texts, around all of them together."""
        if self.prompt_template == "{question}":
            return prompt
        before, _, after = self.prompt_template.partition("{question}")
        if not prompt.turns:
            return replace(prompt, question=f"{before}{prompt.question}{after}")
        last = prompt.turns[-1]
        parts = list(last.parts)
        texts = [i for i, part in enumerate(parts) if isinstance(part, Text)]
        for place, head, tail in ((texts[0], before, ""), (texts[-1], "", after)):
            part = parts[place]
            assert isinstance(part, Text)
            parts[place] = Text(f"{head}{part.text}{tail}")
        turns = (*prompt.turns[:-1], replace(last, parts=tuple(parts)))
        return Prompt(id=prompt.id, turns=turns)
