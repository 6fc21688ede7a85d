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
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")


class UnansweredError(Exception):
    """A request that brought no reply that can be read."""


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
        max_tokens: longest reply.
        concurrency: requests in flight at once.
        extra_body: further fields of the request, as the server understands them.
        field: what a recipe calls this, for errors: ``oracle``, ``judge``.

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
        max_tokens: int = 256,
        concurrency: int = 32,
        extra_body: dict[str, Any] | None = None,
        field: str = "oracle",
    ) -> None:
        if replay and cache_dir is None:
            raise ValueError(f"{field}.replay is true; it needs {field}.cache_dir, the folder to replay from")
        if api_key_env is not None and not os.environ.get(api_key_env) and not replay:
            raise ValueError(f"{field}.api_key_env is {api_key_env!r}, but that environment variable is not set")
        if concurrency < 1:
            raise ValueError(f"{field}.concurrency is {concurrency}; it must be 1 or more")
        if timeout_s <= 0 or max_retries < 0:
            raise ValueError(
                f"{field}.timeout_s is {timeout_s} and {field}.max_retries {max_retries}; "
                "the first must be positive, the second 0 or more"
            )
        self.base_url, self.model, self.api_key_env = base_url, model, api_key_env
        self.timeout_s, self.max_retries = timeout_s, max_retries
        self.cache_dir, self.replay, self.field = cache_dir, replay, field
        self.max_tokens, self.concurrency, self.extra_body = max_tokens, concurrency, extra_body
        #: ``requests`` and ``cache_hits`` so far.
        self.counts: Counter[str] = Counter()
        #: Unreadable replies that this process has met, by request.
        self._misread: Counter[str] = Counter()
        self._asking: WeakValueDictionary[str, asyncio.Lock] | None = None
        self._background: _Background | None = None
        self._limit: asyncio.Semaphore | None = None
        self._client: Any = None
        self._cache: Any = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine that asks, on a thread of its own where connections live on; Ctrl-C cancels it."""
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
        """
        request = {
            "model": self.model,
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": content}],
            "max_tokens": self.max_tokens,
            "temperature": 0.0,
            **({"extra_body": self.extra_body} if self.extra_body else {}),
        }
        key = hashlib.sha256(json.dumps([self.base_url, request], sort_keys=True).encode()).hexdigest()
        if self.cache_dir is None:
            return await self._ask(key, request, read)
        assert self._asking is not None
        async with self._asking.setdefault(
            key, asyncio.Lock()
        ):  # the same request at the same time waits for the cache
            return await self._ask(key, request, read)

    async def _ask(self, key: str, request: dict[str, Any], read: Callable[[str], T]) -> T:
        replies = await asyncio.to_thread(self._kept, key)
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
            raise UnansweredError(f"{self.field}.replay is true, and the reply is not in the cache")
        else:
            assert self._limit is not None
            async with self._limit:
                reply = await self._request(request)
            await asyncio.to_thread(self._keep, key, len(replies), reply)
        try:
            return read(reply)
        except ValueError:
            self._misread[key] += 1
            raise

    async def _request(self, request: dict[str, Any]) -> str:
        import openai

        if self._client is None:
            key = os.environ.get(self.api_key_env, "") if self.api_key_env else ""
            self._client = openai.AsyncOpenAI(
                base_url=self.base_url, api_key=key or "none", timeout=self.timeout_s, max_retries=self.max_retries
            )
        self.counts["requests"] += 1
        try:
            reply = await self._client.chat.completions.create(**request)
            text = reply.choices[0].message.content
        except openai.OpenAIError as error:
            raise UnansweredError(f"{type(error).__name__} from {self.base_url}: {error}") from None
        except (AttributeError, IndexError, TypeError, ValueError):
            raise UnansweredError(f"{self.base_url} did not reply with a chat completion") from None
        if not isinstance(text, str) or not text.strip():
            raise UnansweredError(f"an empty reply from {self.base_url}")
        return text

    def _open(self) -> Any:
        if self._cache is None and self.cache_dir is not None:
            import diskcache

            self._cache = diskcache.Cache(self.cache_dir, size_limit=2**62, eviction_policy="none")
        return self._cache

    def _kept(self, key: str) -> list[str]:
        """All replies to a request so far."""
        cache = self._open()
        replies: list[str] = []
        while cache is not None and (reply := cache.get((key, len(replies)))) is not None:
            replies.append(reply)
        return replies

    def _keep(self, key: str, place: int, reply: str) -> None:
        cache = self._open()
        if cache is not None:
            cache.set((key, place), reply)

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to this process."""
        own = {"_background": None, "_limit": None, "_client": None, "_cache": None, "_asking": None}
        return {**self.__dict__, **own}


class _Background:
    """An event loop on a thread of its own, so that connections live on between steps, in notebooks too."""

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
