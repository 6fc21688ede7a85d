"""The DataModule: prompts in, decoded and tokenised batches out, ahead of the step.

Decoding runs on threads (torchcodec releases the GIL), once per prompt. The order of the training data is a function
of (seed, epoch), and the loader keeps its place in checkpoints, so that a resumed run sees the batches that the
interrupted one would have seen.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Subset

from orlaif.data.clip_cache import ClipCache
from orlaif.data.datasets import AnswerLengthCurriculum, PromptDataset, StreamingDataset
from orlaif.data.loader import (
    NothingLeft,
    PrefetchLoader,
    ResumableLoader,
    ResumableSampler,
    Sealed,
    SealingCollator,
    map_style,
)
from orlaif.data.video import PixelBudget, Sampling, UniformSampling, decode_clip, require_ffmpeg
from orlaif.distributed.sync import check_same, num_processes, raise_together
from orlaif.types import (
    BringsEncoder,
    Delivery,
    PromptBatch,
    PromptEncoder,
    Prompts,
    VideoClip,
    VideoError,
    VideoPrompt,
)

log = logging.getLogger(__name__)

OnBadVideo = Literal["error", "skip"]


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
        """With threads of its own."""
        self.__dict__.update(state)
        self._pool = self._threads()
        self._alone = threading.Lock()

    def _decode(self, prompt: VideoPrompt) -> VideoClip | VideoError:
        try:
            return (self.cache or decode_clip)(prompt, self.sampling, self.device, self.budget)
        except VideoError as error:
            return error

    def decode(self, prompts: Sequence[VideoPrompt]) -> list[VideoClip | VideoError]:
        """The clip of each prompt, or why there is none, on threads that batches in work share."""
        return list(self._pool.map(self._decode, prompts))

    def __call__(self, prompts: Sequence[VideoPrompt]) -> Delivery:
        """Decode, tokenise and pad P prompts.

        Returns:
            Their batch, without the prompts whose videos were skipped (P may then be 0), and those videos.

        Raises:
            VideoError: a video is bad and ``on_bad_video`` is ``error``.
        """
        start = time.perf_counter()
        results = self.decode(prompts)
        skipped = tuple(result for result in results if isinstance(result, VideoError))
        if skipped and self.on_bad_video == "error":
            raise skipped[0]
        kept = [(prompt, clip) for prompt, clip in zip(prompts, results, strict=True) if isinstance(clip, VideoClip)]
        if not kept:
            empty = torch.zeros(0, 1, dtype=torch.int64)
            nothing = PromptBatch(prompts=(), clips=(), input_ids=empty, attention_mask=empty, mm_inputs={})
            return Delivery(batch=nothing, skipped=skipped)
        with self._alone:
            batch = self.encoder([prompt for prompt, _ in kept], [clip for _, clip in kept])
        return Delivery(batch=batch, skipped=skipped, decode_s=time.perf_counter() - start)


class VideoDataModule(LightningDataModule):
    """Video prompts for training, validation, test and prediction.

    Args:
        train: dataset for ``fit``; a :class:`~orlaif.data.datasets.StreamingDataset` where it is too large for memory.
        val: dataset for validation.
        test: dataset for ``test``.
        predict: dataset for ``predict``; by default that of ``test``.
        sampling: which frames of a video to decode.
        batch_size: prompts per batch (P).
        eval_batch_size: the same outside training; by default ``batch_size``.
        processor: folder or hub id of the processor; by default the model's.
        system_prompt: goes before every question, if given.
        decode_device: where to decode, ``cpu`` or ``cuda``.
        decode_threads: decoding threads of each process.
        budget: how large frames may be; by default as they are in the file.
        clip_cache: folder that keeps decoded clips for further epochs and runs; by default they are not kept.
        ahead: batches that are decoded and tokenised on threads while the model works; memory grows with it. 0 waits.
        num_workers: processes that prepare batches in place of threads; for processors that hold Python's lock.
        curriculum: order of the training data; by default all of it is shuffled.
        on_bad_video: ``error`` stops at the first bad video; ``skip`` leaves it out and counts it.
        max_bad_rate: with ``skip``, the run stops when more than this share of all videos so far is bad.
        seed: of the order of the training data; by default that of ``seed_everything``.
        encoder: makes a model's inputs of prompts and clips, for use without a Trainer, such as
            ``ProcessorEncoder(load_processor(path), system_prompt)`` of ``orlaif.policy``; by default the
            LightningModule is asked for one.

    Raises:
        ValueError: a setting is out of its range, or two settings contradict each other; on set-up, a broken data file.
    """

    def __init__(
        self,
        train: PromptDataset | StreamingDataset | None = None,
        val: PromptDataset | None = None,
        test: PromptDataset | None = None,
        predict: PromptDataset | None = None,
        sampling: Sampling | None = None,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        processor: str | None = None,
        system_prompt: str | None = None,
        decode_device: str = "cpu",
        decode_threads: int = 2,
        budget: PixelBudget | None = None,
        clip_cache: str | None = None,
        ahead: int = 2,
        num_workers: int = 0,
        curriculum: AnswerLengthCurriculum | None = None,
        on_bad_video: OnBadVideo = "error",
        max_bad_rate: float = 0.05,
        seed: int | None = None,
        encoder: PromptEncoder | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"data.batch_size is {batch_size}; it must be 1 or more")
        if on_bad_video not in ("error", "skip"):
            raise ValueError(f"data.on_bad_video is {on_bad_video!r}; it must be 'error' or 'skip'")
        if num_workers and decode_device != "cpu":
            raise ValueError(
                "data.num_workers must be 0 with decode_device other than 'cpu': decode on threads instead"
            )
        for name, value in (("ahead", ahead), ("num_workers", num_workers)):
            if value < 0:
                raise ValueError(f"data.{name} is {value}; it must be 0 or more")
        if decode_threads < 1:
            raise ValueError(f"data.decode_threads is {decode_threads}; it must be 1 or more")
        if curriculum is not None and isinstance(train, StreamingDataset):
            raise ValueError("data.curriculum needs to know all answers; a stream does not")
        self.datasets: dict[str, PromptDataset | StreamingDataset | None]
        self.datasets = {"train": train, "val": val, "test": test, "predict": predict if predict is not None else test}
        self.sampling = sampling or UniformSampling()
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        for name, setting in (("processor", processor), ("system_prompt", system_prompt)):
            if encoder is not None and setting is not None:
                raise ValueError(f"data.{name} is {setting!r}, but data.encoder is given, which has its own; name one")
        self.processor = processor
        self.system_prompt = system_prompt
        self.encoder = encoder
        self.decode_device = decode_device
        self.decode_threads = decode_threads
        self.budget, self.clip_cache = budget, clip_cache
        self.ahead = ahead
        self.num_workers = num_workers
        self.curriculum = curriculum
        self.on_bad_video: OnBadVideo = on_bad_video
        self.max_bad_rate = max_bad_rate
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        #: Ids that a stage need not load again, such as questions that a test has answered before.
        self.leave_out: dict[str, set[str]] = {}
        self._videos = 0
        self._bad_videos: list[VideoError] = []

    def _wanted(self, stage: str | None) -> list[PromptDataset | StreamingDataset]:
        names = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}
        datasets = [self.datasets[name] for name in names.get(stage or "", tuple(self.datasets))]
        return list({id(d): d for d in datasets if d is not None}.values())

    def prepare_data(self) -> None:
        """Let the datasets write what they need; once, on one process."""
        require_ffmpeg()
        stage = self.trainer.state.fn.value if self.trainer is not None and self.trainer.state.fn is not None else None
        for dataset in self._wanted(stage):
            dataset.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Read and check the data of this stage, and build the collator.

        Raises:
            ValueError: on all processes, broken data on any of them, or data that is not the same on all.
        """
        error = None
        try:
            for dataset in self._wanted(stage):
                dataset.load()
            self.collator = self.make_collator(self._encoder())
        except Exception as problem:
            error = problem
        raise_together(error)
        check_same("data", self._fingerprints(self._wanted(stage)))

    def _fingerprints(self, used: list[PromptDataset | StreamingDataset]) -> dict[str, str]:
        """Of each data set, how many rows it has and a hash of them; of streams, which are not read, their source."""
        found: dict[str, str] = {}
        if num_processes() == 1:
            return found
        for name, dataset in self.datasets.items():
            if isinstance(dataset, StreamingDataset):
                found[name] = f"a stream of {dataset.source.path}"
            elif dataset is not None and any(dataset is one for one in used):
                rows = [dataset[i] for i in range(len(dataset))]
                about = json.dumps([(p.id, os.path.basename(p.video), p.question, p.answer) for p in rows])
                found[name] = f"{len(rows)} rows with hash {hashlib.sha256(about.encode()).hexdigest()[:12]}"
        return found

    def _encoder(self) -> PromptEncoder:
        if self.encoder is not None:
            return self.encoder
        module = None if self.trainer is None else self.trainer.lightning_module
        if not isinstance(module, BringsEncoder):
            whose = (
                "without a Trainer" if module is None else f"with {type(module).__name__}, which has no prompt_encoder"
            )
            raise ValueError(
                f"data.encoder is missing: {whose}, give one, such as orlaif.policy.encoding.ProcessorEncoder"
                "(orlaif.policy.hub.load_processor(path))"
            )
        return module.prompt_encoder(self.processor, self.system_prompt)

    def make_collator(self, encoder: PromptEncoder) -> Collator:
        """The collator of this module's settings around ``encoder``."""
        return Collator(
            encoder,
            self.sampling,
            self.decode_device,
            self.decode_threads,
            self.on_bad_video,
            self.budget,
            self.clip_cache,
        )

    def on_before_batch_transfer(self, batch: Sealed, dataloader_idx: int) -> Delivery:
        """Open the delivery and count its bad videos.

        Raises:
            VideoError: a bad video, or more than ``max_bad_rate`` of them (from the 20th video on); while training, on
                all processes what any of them met.
        """
        opened, error = None, None
        try:
            opened = self._count(batch.open())
        except Exception as problem:
            error = problem
        if self.trainer is not None and self.trainer.training:
            raise_together(error)
        elif error is not None:
            raise error
        assert opened is not None
        return opened

    def _count(self, delivery: Delivery) -> Delivery:
        self._videos += len(delivery.batch) + len(delivery.skipped)
        self._bad_videos += delivery.skipped
        for error in delivery.skipped:
            log.warning("skipped bad video %s", error)
        bad = len(self._bad_videos)
        if self._videos >= 20 and bad > self.max_bad_rate * self._videos:
            last = self._bad_videos[-1]
            cause = f"{bad} of {self._videos} videos so far are bad, more than data.max_bad_rate allows"
            raise VideoError(last.path, f"{last.cause}; {cause} ({self.max_bad_rate:g})")
        return delivery

    def questions(self, stage: str) -> Prompts:
        """The data set of a stage, which must know its length; raises ValueError where there is none."""
        return map_style(self._dataset(stage), stage)

    def answers_depend_on(self) -> dict[str, Any]:
        """Sampling, budget, processor and system prompt, which a model's answers depend on."""
        return {
            "sampling": repr(self.sampling),
            "budget": repr(self.budget),
            "processor": self.processor,
            "system_prompt": self.system_prompt,
        }

    def _dataset(self, name: str) -> PromptDataset | StreamingDataset:
        dataset = self.datasets[name]
        if dataset is None:
            raise ValueError(f"data.{name} is missing; the recipe must name a dataset for it")
        return dataset

    def _common(self) -> dict[str, Any]:
        # Forked children would inherit torch's and FFmpeg's threads in any state.
        context = "spawn" if self.num_workers else None
        collate = SealingCollator(self.collator)
        workers = {"num_workers": self.num_workers, "multiprocessing_context": context}
        return {"collate_fn": collate, "ahead": self.ahead, **workers}

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled anew each epoch from (seed, epoch), split over ranks; an incomplete last batch is dropped."""
        dataset = self._dataset("train")
        world, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer is not None else (1, 0)
        if isinstance(dataset, StreamingDataset):
            dataset.world, dataset.rank = world, rank
            return ResumableLoader(dataset, batch_size=self.batch_size, drop_last=True, **self._common())
        if len(dataset) < self.batch_size * world:
            raise ValueError(
                f"data.batch_size is {self.batch_size} on {world} processes, but train has {len(dataset)} rows"
            )
        sampler = ResumableSampler(dataset, num_replicas=world, rank=rank, shuffle=True, seed=self.seed, drop_last=True)
        sampler.curriculum = self.curriculum
        return ResumableLoader(dataset, batch_size=self.batch_size, sampler=sampler, drop_last=True, **self._common())

    def _eval_dataloader(self, name: str) -> DataLoader[VideoPrompt]:
        dataset: Any = map_style(self._dataset(name), name)
        if known := self.leave_out.get(name):
            left = [i for i in range(len(dataset)) if dataset[i].id not in known]
            dataset = Subset(dataset, left) if left else NothingLeft(num_processes())
        return PrefetchLoader(dataset, batch_size=self.eval_batch_size, **self._common())

    def val_dataloader(self) -> DataLoader[VideoPrompt] | list[Any]:
        """In order; nothing where the recipe names no validation data."""
        return self._eval_dataloader("val") if self.datasets["val"] is not None else []

    def test_dataloader(self) -> DataLoader[VideoPrompt]:
        """In order."""
        return self._eval_dataloader("test")

    def predict_dataloader(self) -> DataLoader[VideoPrompt]:
        """In order."""
        return self._eval_dataloader("predict")
