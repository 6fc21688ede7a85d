"""Asking an OpenAI-compatible chat-completions server: many requests in flight, retries, and every reply kept on disk.

Time-outs, lost connections, 429 and 5xx are asked again by the client library, with back-off and the server's own
Retry-After. Replies are kept in a cache on disk, if it is named, so that a resumed or repeated run asks nothing twice;
one that could not be read is a failure again there, and asked anew only when the caller asks again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NoReturn, TypeVar
from weakref import WeakValueDictionary

from orlaif.refusals import advice, shown, words
from orlaif.reply_cache import ReplyCache

T = TypeVar("T")


class UnansweredError(Exception):
    """A request to which the server gave no reply: it refused, failed, or sent something else than a completion."""


class UnreachableError(UnansweredError, ConnectionError):
    """A server that cannot be reached, or that did not reply in time."""


class ChatClient:
    """A server and what has been heard from it; replies are texts.

    Args:
        base_url: of the server, up to and with ``/v1``.
        model: name of the model there.
        api_key_env: environment variable that holds the key; None for servers without one. The key is never logged.
        timeout_s: seconds for one request.
        max_retries: how often a request is made again after a time-out, a lost connection, 408, 409, 429 or 5xx.
        cache_dir: folder of the cache, shared by processes and runs; None asks every time.
        replay: answer from the cache alone.
        max_tokens: longest reply; None leaves the field out.
        max_completion_tokens: the same for newer services, which refuse ``max_tokens``; takes its place.
        temperature: of the sampling; None leaves the field out, for services that refuse every value but their own.
        concurrency: requests in flight at once.
        extra_body: further fields of the request, as the server understands them; they replace those above, and null
            leaves a field out.

    Attributes:
        counts: ``requests`` and ``cache_hits`` so far.

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
        max_tokens: int | None = 256,
        max_completion_tokens: int | None = None,
        temperature: float | None = 0.0,
        concurrency: int = 32,
        extra_body: dict[str, Any] | None = None,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"client.base_url is {base_url!r}; it must begin with http:// or https://")
        if replay and cache_dir is None:
            raise ValueError("client.replay is true; it needs client.cache_dir, the folder to replay from")
        if api_key_env is not None and not os.environ.get(api_key_env) and not replay:
            raise ValueError(f"client.api_key_env is {api_key_env!r}, but that environment variable is not set")
        counted = {"concurrency": concurrency, "max_tokens": max_tokens, "max_completion_tokens": max_completion_tokens}
        for name, value in counted.items():
            if value is not None and value < 1:
                raise ValueError(f"client.{name} is {value}; it must be 1 or more")
        if timeout_s <= 0 or max_retries < 0:
            raise ValueError(
                f"client.timeout_s is {timeout_s} and client.max_retries {max_retries}; "
                "the first must be positive, the second 0 or more"
            )
        if taken := {"model", "messages", "stream", "n"} & set(extra_body or {}):
            raise ValueError(f"client.extra_body has {', '.join(sorted(taken))}; that is not its to change")
        self.base_url, self.model, self.api_key_env = base_url, model, api_key_env
        self.timeout_s, self.max_retries, self.concurrency = timeout_s, max_retries, concurrency
        self.cache_dir, self.replay = cache_dir, replay
        self.settings = _settings(max_tokens, max_completion_tokens, temperature, extra_body or {})
        self.counts: Counter[str] = Counter()
        #: Unreadable replies that this process has met, by request.
        self._misread: Counter[str] = Counter()
        self._cache = None if cache_dir is None else ReplyCache(cache_dir)
        self._asking: WeakValueDictionary[str, asyncio.Lock] | None = None
        self._background: _Background | None = None
        self._limit: asyncio.Semaphore | None = None
        self._client: Any = None

    def about(self) -> dict[str, Any]:
        """What a reply depends on besides the question: server, model and the fields of the request."""
        return {"base_url": self.base_url, "model": self.model, **self.settings}

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine that asks, on a separate thread where connections live on; Ctrl-C cancels it."""
        if self._background is None:
            self._background = _Background()
            self._limit = asyncio.Semaphore(self.concurrency)
            self._asking = WeakValueDictionary()
        return self._background.run(work)

    async def ask(self, system: str, content: Any, read: Callable[[str], T]) -> T:
        """What a reply says, from the cache or from the server.

        Args:
            system: the instructions.
            content: the user's message, a text or parts.
            read: from a reply to what it says; a ValueError where it says nothing that can be read.

        Raises:
            ValueError: of ``read``.
            UnansweredError: no reply, or one that is no chat completion.
            UnreachableError: nobody there, or not in time.
            ReplyCacheError: a cache that cannot be read or written.
        """
        messages = [{"role": "system", "content": system}, {"role": "user", "content": content}]
        request = {"model": self.model, "messages": messages, **self.settings}
        return await self._heard([self.base_url, request], lambda: self._completion(request), read)

    async def decide(self, state: str, question: str) -> float:
        """How surely the model says yes, by ``/v1/systemone``, which ``transformers serve`` has; it writes nothing.

        Args:
            state: what the question is about.
            question: to be answered with yes or no.

        Returns:
            Probability of yes.

        Raises:
            UnansweredError: no reply, or one that is no probability; it is not kept.
            ValueError: no probability in the cache.
            UnreachableError, ReplyCacheError: as :meth:`ask`.
        """
        asked = {"yes": {"type": "noul", "instructions": question}}
        request = {"model": self.model, "state": state, "questions": asked}
        return await self._heard([self.base_url, "systemone", request], lambda: self._decision(request), probability)

    async def _heard(self, what: list[Any], send: Callable[[], Awaitable[str]], read: Callable[[str], T]) -> T:
        """What the reply to a request says; ``what`` tells it from every other."""
        key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
        if self._cache is None:
            return await self._ask(key, send, read)
        assert self._asking is not None
        async with self._asking.setdefault(
            key, asyncio.Lock()
        ):  # the same request at the same time waits for the cache
            return await self._ask(key, send, read)

    async def _ask(self, key: str, send: Callable[[], Awaitable[str]], read: Callable[[str], T]) -> T:
        replies = [] if self._cache is None else await asyncio.to_thread(self._cache.replies, key)
        for reply in replies:
            try:
                said = read(reply)
            except ValueError:
                continue
            self.counts["cache_hits"] += 1
            return said
        # Replies that cannot be read stay where they are, so that a repeated run meets them at the same places.
        met = self._misread[key]
        if met < len(replies):
            self.counts["cache_hits"] += 1
            reply = replies[met]
        elif self.replay:
            raise UnansweredError("client.replay is true, and the reply is not in the cache")
        else:
            assert self._limit is not None
            async with self._limit:
                reply = await send()
            if self._cache is not None:
                await asyncio.to_thread(self._cache.keep, key, len(replies), reply)
        try:
            return read(reply)
        except ValueError:
            self._misread[key] += 1
            raise

    async def _completion(self, request: dict[str, Any]) -> str:
        model, messages, fields = request["model"], request["messages"], self.settings
        # By ``extra_body`` the other fields are sent as they stand.
        reply = await self._request(
            lambda client: client.chat.completions.create(model=model, messages=messages, extra_body=fields),
            "a chat completion",
        )
        try:
            choice = reply.choices[0]
            text = choice.message.content
        except (AttributeError, IndexError, TypeError):
            raise UnansweredError(f"{self.base_url} did not reply with a chat completion") from None
        if not isinstance(text, str) or not text.strip():
            ended = f" (finish_reason {choice.finish_reason!r}, {shown(self.settings)})"
            raise UnansweredError(f"an empty reply from {self.base_url}{ended}")
        return text

    async def _decision(self, request: dict[str, Any]) -> str:
        reply = await self._request(lambda client: client.post("/systemone", body=request, cast_to=object), "JSON")
        try:
            said = reply["answers"]["yes"]["noul"]
        except (KeyError, TypeError):
            raise UnansweredError(f"{self.base_url}/systemone did not reply with a probability") from None
        try:
            if isinstance(said, bool) or not isinstance(said, int | float):
                raise ValueError(f"{said!r} is no probability; it must be a number from 0 to 1")
            return str(probability(said))
        except ValueError as error:
            raise UnansweredError(f"{self.base_url}/systemone: {error}") from None

    async def _request(self, send: Callable[[Any], Awaitable[Any]], expected: str) -> Any:
        """What comes back, as the client library has read it; ``expected`` says what that should be, in words."""
        import openai

        key = os.environ.get(self.api_key_env, "") if self.api_key_env else ""
        if self._client is None:
            self._client = openai.AsyncOpenAI(
                base_url=self.base_url, api_key=key or "none", timeout=self.timeout_s, max_retries=self.max_retries
            )
        self.counts["requests"] += 1
        try:
            return await send(self._client)
        except openai.OpenAIError as error:
            self._explain(error, key)
        except (ValueError, RecursionError):  # a body that is no JSON, or nested without end
            raise UnansweredError(f"{self.base_url} did not reply with {expected}") from None

    def _explain(self, error: Exception, key: str) -> NoReturn:
        """Raise what the client library met, in the server's words where it has spoken."""
        import openai

        tries = f"after {self.max_retries + 1} tries" if self.max_retries else "at the first try"
        if isinstance(error, openai.APITimeoutError):
            cause = f"no connection to {self.base_url}, or no reply from it, within {self.timeout_s:g} s {tries}"
            raise UnreachableError(f"{cause} (client.timeout_s)") from None
        if isinstance(error, openai.APIConnectionError):
            problem = error.__cause__ or error
            cause = f"{type(problem).__name__}: {problem}".strip(": ")
            what = "no connection to" if "Connect" in type(problem).__name__ else "lost the connection to"
            raise UnreachableError(f"{what} {self.base_url} {tries}: {cause}; is the server up?") from None
        if isinstance(error, openai.APIStatusError):
            said = words(error.response.text)
            said = said.replace(key, "[key]") if key else said  # some servers repeat it
            cause = f"{self.base_url} answered {error.status_code}: {said or 'nothing'}"
            raise UnansweredError(f"{cause}{advice(error.status_code, said, self.model, self.settings)}") from None
        raise UnansweredError(f"{type(error).__name__} from {self.base_url}: {error}") from None

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to this process."""
        return {**self.__dict__, "_background": None, "_limit": None, "_client": None, "_asking": None}


def probability(said: str | float) -> float:
    """A number from 0 to 1; raises ValueError for any other, NaN among them."""
    number = float(said) if isinstance(said, str) else said
    if not 0 <= number <= 1:
        raise ValueError(f"{said} is no probability; it must be a number from 0 to 1")
    return float(number)


def _settings(
    max_tokens: int | None, max_completion_tokens: int | None, temperature: float | None, extra: dict[str, Any]
) -> dict[str, Any]:
    """Fields of a request besides model and messages; one limit of length only, the newer name before the older."""
    fields = {"max_tokens": max_tokens, "max_completion_tokens": max_completion_tokens, "temperature": temperature}
    fields |= extra
    if fields["max_completion_tokens"] is not None and "max_tokens" not in extra:
        del fields["max_tokens"]
    return {name: value for name, value in fields.items() if value is not None}


class _Background:
    """An event loop on a separate thread, so that connections live on between steps, in notebooks too."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="orlaif-judge", daemon=True).start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` there and wait for it; Ctrl-C cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise
