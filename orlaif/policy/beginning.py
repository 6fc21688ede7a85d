"""The beginning of an answer: the space that a chat template writes between its own words and the answer's.

SmolVLM's template asks with ``Assistant:`` and writes ``Assistant: red`` in a dialogue. To the tokenizer ``red`` with
and without the space are different tokens, and the published model has learned, and samples, the one with it. Answers
that are trained on, or judged by a ranker, begin alike.
"""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateError

#: What has been found, by processor class, template and its arguments.
_leads: dict[tuple[str, str, str], tuple[str, str]] = {}


def lead_of(processor: Any, arguments: dict[str, Any]) -> tuple[str, str]:
    """The last line of a prompt, and the spaces that the template writes between it and an answer: mostly none.

    Args:
        processor: of transformers.
        arguments: of its chat template, as the recipe has them.
    """
    template = str(getattr(processor, "chat_template", None) or processor.tokenizer.chat_template)
    key = (type(processor).__name__, template, repr(sorted(arguments.items())))
    if key not in _leads:
        asked = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "question"}]}]
        prompt = str(processor.apply_chat_template(asked, add_generation_prompt=True, tokenize=False, **arguments))
        _leads[key] = prompt.rpartition("\n")[2], _spaces(processor, asked, prompt, arguments)
    return _leads[key]


def _spaces(processor: Any, asked: list[dict[str, Any]], prompt: str, arguments: dict[str, Any]) -> str:
    """What a dialogue has between ``prompt`` and its answer, if it is spaces."""
    said = [*asked, {"role": "assistant", "content": [{"type": "text", "text": "answer"}]}]
    try:
        whole = str(processor.apply_chat_template(said, add_generation_prompt=False, tokenize=False, **arguments))
    except (TemplateError, TypeError):  # it takes no such answer, so it writes nothing before one
        return ""
    before = whole.removeprefix(prompt).partition("answer")[0]
    return before if whole.startswith(prompt) and not before.strip(" ") else ""


def word_ids(processor: Any, text: str, arguments: dict[str, Any]) -> list[int]:
    """The tokens of an answer's words, as they stand behind a prompt of this processor."""
    tokenizer = processor.tokenizer
    line, lead = lead_of(processor, arguments)
    if not lead or not text or text[0].isspace():
        return list(tokenizer(text, add_special_tokens=False).input_ids)
    before = tokenizer(line, add_special_tokens=False).input_ids
    together = tokenizer(line + lead + text, add_special_tokens=False).input_ids
    if together[: len(before)] == before:
        return list(together[len(before) :])
    return list(tokenizer(lead + text, add_special_tokens=False).input_ids)
