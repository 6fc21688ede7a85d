"""A judge of single answers behind a chat-completions server: what open-ended evaluations ask.

Model, server and instructions are kept with the results: scores of two judges are not comparable (ten points between
versions of one have been seen). A reply that cannot be read is counted as such; it is never asked for ever.
"""

from __future__ import annotations

import ast
import asyncio
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from orlaif.openai_client import ChatClient, UnansweredError


class ChatGrader:
    """Any OpenAI-compatible server, with a cache on disk.

    Args:
        base_url: of the server, up to and with ``/v1``.
        model: name of the model there.
        api_key_env: environment variable that holds the key; None for servers without one.
        timeout_s: seconds for one request.
        max_retries: how often a request is made again after a time-out, a lost connection, 408, 409, 429 or 5xx.
        cache_dir: folder of the cache; None asks every time.
        replay: answer from the cache alone.
        max_tokens: longest reply.
        concurrency: requests in flight at once.
        extra_body: further fields of the request.

    Raises:
        ValueError: settings that contradict each other, or an environment variable that is not set.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key_env: str | None = None,
        timeout_s: float = 60.0,
        max_retries: int = 5,
        cache_dir: str | None = None,
        replay: bool = False,
        max_tokens: int = 128,
        concurrency: int = 32,
        extra_body: dict[str, Any] | None = None,
    ) -> None:
        self.chat = ChatClient(
            base_url,
            model,
            api_key_env=api_key_env,
            timeout_s=timeout_s,
            max_retries=max_retries,
            cache_dir=cache_dir,
            replay=replay,
            max_tokens=max_tokens,
            concurrency=concurrency,
            extra_body=extra_body,
            field="judge",
        )

    def about(self, *instructions: str) -> dict[str, Any]:
        """What pins the judge: server, model, settings, and a hash of what it was told."""
        chat = self.chat
        told = hashlib.sha256("\n".join(instructions).encode()).hexdigest()[:16]
        settings = {"max_tokens": chat.max_tokens, "temperature": 0.0, "extra_body": chat.extra_body}
        return {"base_url": chat.base_url, "model": chat.model, "instructions_sha256": told, **settings}

    def ask_all(
        self, questions: Sequence[tuple[str, str]], read: Callable[[str], dict[str, Any]]
    ) -> list[dict[str, Any] | str]:
        """Pairs of instructions and question, all in flight together; what each reply says, or why there is nothing."""

        async def one(system: str, content: str) -> dict[str, Any] | str:
            try:
                return await self.chat.ask(system, content, read)
            except (ValueError, UnansweredError) as error:
                return str(error) or type(error).__name__

        async def everything() -> list[dict[str, Any] | str]:
            return list(await asyncio.gather(*(one(system, content) for system, content in questions)))

        return self.chat.run(everything())


def read_object(reply: str) -> dict[str, Any]:
    """The one object in a reply, as JSON or as a Python dictionary, prose around it or not.

    Raises:
        ValueError: none, or more than one.
    """
    found: list[dict[str, Any]] = []
    place = reply.find("{")
    while place >= 0:
        end = reply.find("}", place)
        if end < 0:
            break
        text = reply[place : end + 1]
        value: Any = None
        try:
            value = json.loads(text)
        except ValueError:
            try:
                value = ast.literal_eval(text)
            except (ValueError, SyntaxError):
                value = None
        if isinstance(value, dict):
            found.append(value)
        place = reply.find("{", end)
    if len(found) != 1:
        short = reply if len(reply) <= 200 else f"{reply[:200]}..."
        raise ValueError(f"{len(found)} objects in the reply {short!r}")
    return found[0]


def read_score(value: Any) -> float:
    """A score from 0 to 5, as a number or its text; raises ValueError for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"the score is {value!r}; it must be a number from 0 to 5")
    try:
        score = float(value)
    except ValueError:
        raise ValueError(f"the score is {value!r}; it must be a number from 0 to 5") from None
    if not 0 <= score <= 5:
        raise ValueError(f"the score is {value!r}; it must be a number from 0 to 5")
    return score
