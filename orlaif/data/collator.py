"""From prompts to batches: decoding on threads, encoding as the model's encoder does."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import torch

from orlaif.data.clip_cache import ClipCache
from orlaif.data.seen import decode_seen
from orlaif.data.video import PixelBudget, Sampling, decode_clip
from orlaif.stages import stage
from orlaif.types import Delivery, Prompt, PromptBatch, PromptEncoder, Seen, VideoError

log = logging.getLogger(__name__)

OnBadVideo = Literal["error", "skip"]

#: A rate is that of so many videos at least, so that one bad video at the start of a run is no rate of 100 %.
_FEWEST = 20


class Collator:
    """From prompts to a :class:`~orlaif.types.Delivery`: decodes on threads, encodes as the model's encoder does.

    Args:
        encoder: from prompts and clips to a model's inputs.
        sampling: which frames to decode.
        device: where to decode.
        num_threads: decoding threads.
        on_bad_video: ``error`` raises the VideoError; ``skip`` leaves the prompt out and lists it in the delivery.
        budget: how large frames may be.
        clip_cache: folder of decoded clips, if they are to be kept.
    """

    def __init__(
        self,
        encoder: PromptEncoder,
        sampling: Sampling,
        device: str = "cpu",
        num_threads: int = 2,
        on_bad_video: OnBadVideo = "error",
        budget: PixelBudget | None = None,
        clip_cache: str | None = None,
    ) -> None:
        self.encoder = encoder
        self.sampling = sampling
        self.device = device
        self.num_threads = num_threads
        self.on_bad_video = on_bad_video
        self.budget = budget
        self.cache = None if clip_cache is None else ClipCache(clip_cache)
        self._pool = self._threads()
        self._alone = threading.Lock()  # processors promise nothing to threads

    def _threads(self) -> ThreadPoolExecutor:
        """Shared by batches that are prepared at the same time."""
        return ThreadPoolExecutor(self.num_threads, "orlaif-decode", initializer=torch.set_num_threads, initargs=(1,))

    def __getstate__(self) -> dict[str, Any]:
        """Without the threads, which stay in their process."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_pool", "_alone")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled collator; threads and lock are made anew in each process."""
        self.__dict__.update(state)
        self._pool = self._threads()
        self._alone = threading.Lock()

    def _decode(self, prompt: Prompt) -> Seen | VideoError:
        try:
            return decode_seen(prompt, self.sampling, self.device, self.budget, self.cache or decode_clip)
        except VideoError as error:
            return error

    def decode(self, prompts: Sequence[Prompt]) -> list[Seen | VideoError]:
        """What is seen of each prompt, or why there is none, on threads that batches in work share."""
        with stage("decoding", len(prompts), "prompts", behind=True) as decoding:
            seen = []
            for one in self._pool.map(self._decode, prompts):
                seen.append(one)
                decoding.advance()
        return seen

    def __call__(self, prompts: Sequence[Prompt]) -> Delivery:
        """Decode, tokenise and pad P prompts.

        Returns:
            Their batch, without the prompts whose videos were skipped (P may then be 0), and those videos.

        Raises:
            VideoError: a video is bad, or the encoder does not take its clip, and ``on_bad_video`` is ``error``.
        """
        start = time.perf_counter()
        results = self.decode(prompts)
        skipped = tuple(result for result in results if isinstance(result, VideoError))
        if skipped and self.on_bad_video == "error":
            raise skipped[0]
        kept = [
            (prompt, clip) for prompt, clip in zip(prompts, results, strict=True) if not isinstance(clip, VideoError)
        ]
        with self._alone:
            batch, refused = self._encode(kept)
        return Delivery(batch=batch, skipped=(*skipped, *refused), decode_s=time.perf_counter() - start)

    def _encode(self, kept: Sequence[tuple[Prompt, Seen]]) -> tuple[PromptBatch, tuple[VideoError, ...]]:
        """The batch of those that the encoder takes, and why it does not take the others, where these may be left out.

        Raises:
            VideoError: it does not take one, and ``on_bad_video`` is ``error``.
        """
        if not kept:
            empty = torch.zeros(0, 1, dtype=torch.int64)
            return PromptBatch(prompts=(), clips=(), input_ids=empty, attention_mask=empty, mm_inputs={}), ()
        try:
            return self.encoder([prompt for prompt, _ in kept], [clip for _, clip in kept]), ()
        except VideoError as error:
            if self.on_bad_video == "error":
                raise
            if len(kept) == 1:
                return self._encode([])[0], (error,)
        # An error names a video, not which of the prompts about it: each is asked alone.
        refusals = [self._encode([one])[1] for one in kept]
        batch, _ = self._encode([one for one, refusal in zip(kept, refusals, strict=True) if not refusal])
        return batch, tuple(error for refusal in refusals for error in refusal)


class BadVideos:
    """Counts the videos that were left out, and stops a run that has too many.

    Args:
        max_rate: share of all videos so far; before the 20th video, of 20.
    """

    def __init__(self, max_rate: float) -> None:
        self.max_rate = max_rate
        #: Videos and bad ones so far.
        self.counts = (0, 0)
        self._last: VideoError | None = None

    def count(self, delivery: Delivery) -> None:
        """Add those of a batch; raises VideoError past ``max_rate``."""
        videos = self.counts[0] + len(delivery.batch) + len(delivery.skipped)
        bad = self.counts[1] + len(delivery.skipped)
        self.counts = videos, bad
        for error in delivery.skipped:
            log.warning("skipped bad video %s", error)
            self._last = error
        if bad > self.max_rate * max(videos, _FEWEST):
            cause = f"{bad} of {videos} videos so far are bad, more than data.max_bad_rate allows ({self.max_rate:g})"
            if self._last is None:
                raise VideoError("(those of the run before)", cause)
            raise VideoError(self._last.path, f"{self._last.cause}; {cause}")
