"""What stands around a question, and what the chat template is told."""

from __future__ import annotations

from typing import Any

import pytest

from orlaif.policy.chat import Chat
from orlaif.policy.encoding import render
from orlaif.prompt import Prompt, Text, Video, VideoPrompt, assistant, user


class Template:
    """A processor that keeps what its chat template was given."""

    def apply_chat_template(self, messages: Any, **settings: Any) -> str:
        self.settings = settings
        return "\n".join(f"{m['role']}: {' '.join(p.get('text', '[v]') for p in m['content'])}" for m in messages)


def test_the_template_stands_around_the_last_question_only() -> None:
    chat = Chat(prompt_template="Look. {question} Think.", chat_template_kwargs={"enable_thinking": False})
    processor = Template()
    prompt = VideoPrompt(id="1", video="a.mp4", question="Why?", history=(("What?", "red"),))
    said = "system: Be brief.\nuser: [v] What?\nassistant: red\nuser: Look. Why? Think."
    assert render(processor, prompt, "Be brief.", chat) == said
    assert processor.settings == {"add_generation_prompt": True, "tokenize": False, "enable_thinking": False}
    assert render(processor, prompt) == "user: [v] What?\nassistant: red\nuser: Why?"
    assert chat.asked(prompt).video == "a.mp4"


def test_of_several_texts_it_stands_around_all() -> None:
    last = user("first", Video("b.mp4"), "then")
    prompt = Prompt(id="1", turns=(user(Video("a.mp4"), "What?"), assistant("red"), last))
    asked = Chat(prompt_template="<{question}>").asked(prompt)
    assert asked.turns[-1].parts == (Text("<first"), Video("b.mp4"), Text("then>"))
    assert asked.turns[:-1] == prompt.turns[:-1]
    assert Chat().asked(prompt) is prompt


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"policy.chat.prompt_template is 'Look'; it must hold '\{question\}' exactly"):
        Chat(prompt_template="Look")
    with pytest.raises(ValueError, match=r"policy.chat.chat_template_kwargs has 'tokenize', which orlaif gives itself"):
        Chat(chat_template_kwargs={"tokenize": True})
