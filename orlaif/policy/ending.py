"""The end of an answer: training closes it with a token at which rollouts stop.

Tokenizer, config and generation config each name an end-of-sequence token, and in published models they disagree (the
generation config of a base model stops at another token than its tokenizer's). Rollouts, ours and the exported model's,
stop at the generation config's. An answer that is closed with another teaches a model to go on behind its answer.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from orlaif.policy.beginning import word_ids

if TYPE_CHECKING:
    from orlaif.policy.policy import Policy

log = logging.getLogger(__name__)

#: What has been said in this process.
_said: set[str] = set()


def end_ids(generation_config: Any, tokenizer: Any) -> tuple[int, ...]:
    """Tokens that end a completion: those of the generation config, else the tokenizer's.

    Raises:
        ValueError: neither names one.
    """
    ids = getattr(generation_config, "eos_token_id", None)
    if ids is None:
        ids = tokenizer.eos_token_id
    if ids is None or ids == []:
        raise ValueError(
            "neither the checkpoint's generation_config.json nor its tokenizer names an end-of-sequence token "
            "(eos_token_id), so no answer could end; name one in generation_config.json"
        )
    return tuple(int(i) for i in ids) if isinstance(ids, list | tuple) else (int(ids),)


def closing_id(policy: Policy) -> int:
    """The token that closes an answer: the tokenizer's end of sequence if rollouts stop there, else one where they do.

    Of several the one that the chat template writes is taken, else the first. A disagreement is said in the log, once.

    Args:
        policy: loaded, or it is loaded now.
    """
    tokenizer, ends = policy.processor.tokenizer, policy.eos_ids
    closing = tokenizer.eos_token_id
    if closing not in ends:
        template = str(getattr(policy.processor, "chat_template", None) or tokenizer.chat_template or "")
        written = [i for i in ends if str(tokenizer.convert_ids_to_tokens(i)) in template]
        closing = (written or list(ends))[0]
    named = {
        "tokenizer": _as_set(tokenizer.eos_token_id),
        "config": _as_set(getattr(policy.config.get_text_config(decoder=True), "eos_token_id", None)),
    }
    others = {where: ids for where, ids in named.items() if ids and closing not in ids}
    if others:
        words = "; ".join(f"the {where}'s is {_names(tokenizer, ids)}" for where, ids in others.items())
        _say_once(
            f"{policy.path}: answers are closed with {_names(tokenizer, {closing})}, since rollouts stop at the "
            f"generation config's end of sequence (eos_token_id), {_names(tokenizer, set(ends))}; {words}"
        )
    return int(closing)


def answer_ids(policy: Policy, text: str) -> list[int]:
    """The tokens of an answer, begun as the chat template does (``orlaif.policy.beginning``), and closed."""
    arguments = dict(policy.chat.chat_template_kwargs)
    return [*word_ids(policy.processor, text, arguments), closing_id(policy)]


def _as_set(ids: Any) -> set[int]:
    return set() if ids is None else set(ids) if isinstance(ids, list | tuple) else {ids}


def _names(tokenizer: Any, ids: set[int]) -> str:
    return ", ".join(f"{tokenizer.convert_ids_to_tokens(i)} ({i})" for i in sorted(ids))


def _say_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        log.warning("%s", message)
