"""A judge behind an OpenAI-compatible chat-completions server: vLLM, ``transformers serve``, a commercial service.

All requests of a step are in flight together, up to a bound. Time-outs, lost connections, 429 and 5xx are asked again
by the client library, with back-off and the server's own Retry-After. What still fails, and every reply that is not
exactly one order of all candidates, is an OracleError of that group. Replies are kept in a cache on disk, if it is
named, so that a resumed or repeated run asks nothing twice; one that could not be read is a failure again there, and
asked anew only when the recipe retries.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Coroutine, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.io import encode_jpeg
from torchvision.transforms.v2.functional import resize

from orlaif.oracles.aggregate import borda_points
from orlaif.oracles.base import Oracle, ranking_of
from orlaif.oracles.prompting import LISTWISE_INSTRUCTIONS, Ballot, ballots, parse_order
from orlaif.types import CandidateGroup, OracleError, Ranking, VideoClip


class HTTPJudge(Oracle):
    """Asks a server to order the candidates of each group, as a list.

    Args:
        base_url: of the server, up to and with ``/v1``.
        model: name of the model there.
        api_key_env: environment variable that holds the key; None for servers without one. The key is never logged.
        timeout_s: seconds for one request.
        max_retries: how often a request is made again after a time-out, a lost connection, 408, 409, 429 or 5xx.
        cache_dir: folder of the cache, shared by processes and runs; None asks every time.
        replay: answer from the cache alone; what is not there is an OracleError.
        num_ballots: orders in which the candidates of a group are shown; their rankings are averaged (Borda), which
            cancels a preference for places.
        num_frames: frames of the clip that are sent, evenly spaced.
        frame_height: pixels to which larger frames are shrunk.
        max_tokens: longest reply.
        concurrency: requests in flight at once.
        instructions: what the judge is told; it must ask for the reply that ``parse_order`` reads.
        extra_body: further fields of the request, as the server understands them.
        seed: of the ballots.

    Raises:
        ValueError: settings that contradict each other, or an environment variable that is not set.
    """

    mostly_waits = True

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key_env: str | None = None,
        timeout_s: float = 60.0,
        max_retries: int = 5,
        cache_dir: str | None = None,
        replay: bool = False,
        num_ballots: int = 2,
        num_frames: int = 8,
        frame_height: int = 336,
        max_tokens: int = 256,
        concurrency: int = 32,
        instructions: str = LISTWISE_INSTRUCTIONS,
        extra_body: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        if replay and cache_dir is None:
            raise ValueError("oracle.replay is true; it needs oracle.cache_dir, the folder to replay from")
        if api_key_env is not None and not os.environ.get(api_key_env) and not replay:
            raise ValueError(f"oracle.api_key_env is {api_key_env!r}, but that environment variable is not set")
        for name, value in (("num_ballots", num_ballots), ("num_frames", num_frames), ("concurrency", concurrency)):
            if value < 1:
                raise ValueError(f"oracle.{name} is {value}; it must be 1 or more")
        if timeout_s <= 0 or max_retries < 0:
            raise ValueError(
                f"oracle.timeout_s is {timeout_s} and oracle.max_retries {max_retries}; "
                "the first must be positive, the second 0 or more"
            )
        self.base_url, self.model, self.api_key_env = base_url, model, api_key_env
        self.timeout_s, self.max_retries = timeout_s, max_retries
        self.cache_dir, self.replay = cache_dir, replay
        self.num_ballots, self.num_frames, self.frame_height = num_ballots, num_frames, frame_height
        self.max_tokens, self.concurrency = max_tokens, concurrency
        self.instructions, self.extra_body, self.seed = instructions, extra_body, seed
        self._counts: Counter[str] = Counter()
        #: Unreadable replies that this process has met, by request.
        self._misread: Counter[str] = Counter()
        self._background: _Background | None = None
        self._client: Any = None
        self._cache: Any = None

    # --------------------------------------------------------------- asking

    def rank(self, groups: Sequence[CandidateGroup]) -> Ranking:
        """Order the answers of each group.

        Args:
            groups: P groups.

        Returns:
            Dense ranks i64[P, G]; groups of which a request failed or a reply could not be read in ``failures``.
        """
        if self._background is None:
            self._background = _Background()
        outcomes = self._background.run(self._rank_all(groups))
        ranking = ranking_of(outcomes, len(groups[0].answers))
        self._counts["failures"] += len(ranking.failures)
        return ranking

    async def _rank_all(self, groups: Sequence[CandidateGroup]) -> list[Tensor | OracleError]:
        limit = asyncio.Semaphore(self.concurrency)
        return list(await asyncio.gather(*(self._rank_one(group, limit) for group in groups)))

    async def _rank_one(self, group: CandidateGroup, limit: asyncio.Semaphore) -> Tensor | OracleError:
        """Points of the group's answers over all ballots, or why there are none."""
        if len(set(group.answers)) == 1:
            return torch.zeros(len(group.answers), dtype=torch.float64)  # nothing to decide
        try:
            shown = ballots(group, self.num_ballots, self.seed)
            frames = await asyncio.to_thread(_data_urls, group.clip, self.num_frames, self.frame_height)
            rankings = await asyncio.gather(*(self._ballot(ballot, frames, limit) for ballot in shown))
            return borda_points(torch.tensor(rankings))
        except (ValueError, _UnansweredError) as error:
            return OracleError(type(self).__name__, group.prompt.id, str(error))

    async def _ballot(self, ballot: Ballot, frames: list[str], limit: asyncio.Semaphore) -> list[int]:
        images = [{"type": "image_url", "image_url": {"url": url}} for url in frames]
        request = {
            "model": self.model,
            "messages": [
                {"role": "system", "content": self.instructions},
                {"role": "user", "content": [*images, {"type": "text", "text": ballot.question}]},
            ],
            "max_tokens": self.max_tokens,
            "temperature": 0.0,
            **({"extra_body": self.extra_body} if self.extra_body else {}),
        }
        key = hashlib.sha256(json.dumps([self.base_url, request], sort_keys=True).encode()).hexdigest()
        replies = await asyncio.to_thread(self._kept, key)
        # Replies that cannot be read stay where they are, so that a repeated run meets them at the same places.
        met = self._misread[key]
        readable = [reply for reply in replies if _is_readable(reply, ballot)]
        if readable or met < len(replies):
            self._counts["cache_hits"] += 1
            reply = readable[0] if readable else replies[met]
        elif self.replay:
            raise _UnansweredError("oracle.replay is true, and the reply is not in the cache")
        else:
            async with limit:
                reply = await self._request(request)
            await asyncio.to_thread(self._keep, key, len(replies), reply)
        try:
            return ballot.ranks(parse_order(reply, ballot.labels))
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
        self._counts["requests"] += 1
        try:
            reply = await self._client.chat.completions.create(**request)
            text = reply.choices[0].message.content
        except openai.OpenAIError as error:
            raise _UnansweredError(f"{type(error).__name__} from {self.base_url}: {error}") from None
        except (AttributeError, IndexError, TypeError, ValueError):
            raise _UnansweredError(f"{self.base_url} did not reply with a chat completion") from None
        if not isinstance(text, str) or not text.strip():
            raise _UnansweredError(f"an empty reply from {self.base_url}")
        return text

    # ---------------------------------------------------------------- cache

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

    def take_counts(self) -> dict[str, float]:
        """``requests``, ``cache_hits`` and ``failures`` (groups) since this was last asked."""
        counts = {name: float(self._counts[name]) for name in ("requests", "cache_hits", "failures")}
        self._counts.clear()
        return counts

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to this process."""
        return {**self.__dict__, "_background": None, "_client": None, "_cache": None}


class _UnansweredError(Exception):
    """A request that brought no reply that can be read."""


def _is_readable(reply: str, ballot: Ballot) -> bool:
    try:
        parse_order(reply, ballot.labels)
    except ValueError:
        return False
    return True


class _Background:
    """An event loop on a thread of its own, so that connections live on between steps, in notebooks too."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="orlaif-judge", daemon=True).start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run ``work`` there and wait for it; Ctrl-C cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


def _data_urls(clip: VideoClip, num_frames: int, height: int) -> list[str]:
    """Evenly spaced frames as JPEG data URLs."""
    picks = torch.linspace(0, len(clip.frames) - 1, min(num_frames, len(clip.frames))).round().long()
    frames = clip.frames[picks.to(clip.frames.device)].cpu()
    if frames.shape[-2] > height:
        frames = resize(frames, [height, max(1, round(frames.shape[-1] * height / frames.shape[-2]))])
    jpegs = [encode_jpeg(frame, quality=90).numpy().tobytes() for frame in frames]
    return [f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" for jpeg in jpegs]
