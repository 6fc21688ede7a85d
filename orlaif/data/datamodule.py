"""The DataModule: prompts in, decoded and tokenised batches out, ahead of the step.

Decoding runs on threads (torchcodec releases the GIL), once per prompt. The order of the training data is a function
of (seed, epoch), and a checkpoint holds the place in it (``orlaif.data.place``), so that a resumed run sees the batches
that the interrupted one would have seen.
"""

from __future__ import annotations

import os
from typing import Any, TypeAlias

from lightning import Trainer
from torch.utils.data import DataLoader, Subset

from orlaif.data.collator import Collator, OnBadVideo
from orlaif.data.curriculum import AnswerLengthCurriculum
from orlaif.data.datasets import PromptDataset, StreamingDataset
from orlaif.data.epochs import EpochLoader
from orlaif.data.loader import NothingLeft, PrefetchLoader, Sealed, SealingCollator
from orlaif.data.longest import longest_prompt
from orlaif.data.resumable import ResumableDataModule, dealt_out
from orlaif.data.spelled import spelled_in
from orlaif.data.video import PixelBudget, Sampling, UniformSampling, require_ffmpeg
from orlaif.distributed.sync import check_same, num_processes, raise_together
from orlaif.stages import stage as under_way
from orlaif.types import BringsEncoder, Delivery, KnowsSpecialTexts, LooksAhead, Prompt, PromptEncoder, Prompts

TrainingData: TypeAlias = PromptDataset | StreamingDataset


class VideoDataModule(ResumableDataModule):
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
        max_bad_rate: with ``skip``, the run stops when more than this share of all videos so far is bad; before
            the 20th video, when more than this share of 20 is.
        seed: of the order of the training data; by default that of ``seed_everything``.
        encoder: makes a model's inputs of prompts and clips, for use without a Trainer, such as
            ``ProcessorEncoder(load_processor(path), system_prompt)`` of ``orlaif.policy``; by default the
            LightningModule is asked for one.

    Raises:
        ValueError: a setting is out of its range, or two settings contradict each other; on set-up, a broken data file.
    """

    def __init__(
        self,
        train: TrainingData | None = None,
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
        super().__init__(max_bad_rate)
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
        if curriculum is not None and train is not None and train.num_rows is None:
            raise ValueError("data.curriculum needs to know all answers; a stream does not")
        self.datasets: dict[str, TrainingData | None]
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
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0)) if seed is None else seed
        #: Ids that a stage need not load again, such as questions that a test has answered before.
        self.leave_out: dict[str, set[str]] = {}

    def _wanted(self, stage: str | None) -> list[TrainingData]:
        names = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}
        datasets = [self.datasets[name] for name in names.get(stage or "", tuple(self.datasets))]
        return list({id(d): d for d in datasets if d is not None}.values())

    @under_way("preparing data")
    def prepare_data(self) -> None:
        """Let the datasets write what they need; once, on one process."""
        require_ffmpeg()
        stage = self.trainer.state.fn.value if self.trainer is not None and self.trainer.state.fn is not None else None
        for dataset in self._wanted(stage):
            dataset.prepare()

    @under_way("reading data")
    def setup(self, stage: str | None = None) -> None:
        """Read and check the data of this stage, and build the collator.

        Raises:
            ValueError: on all processes, broken data on any of them, or data that is not the same on all.
        """
        error = None
        try:
            encoder = self._encoder()
            special = encoder.special_texts if isinstance(encoder, KnowsSpecialTexts) else frozenset()
            if token := spelled_in(self.system_prompt or "", special):
                raise ValueError(f"data.system_prompt spells {token!r}, which is no text to this model")
            for dataset in self._wanted(stage):
                dataset.forbid(special)
                dataset.load()
                dataset.check_texts()
            self.collator = self.make_collator(encoder)
        except Exception as problem:
            error = problem
        raise_together(error)
        used = {name: d for name, d in self.datasets.items() if d is not None and d in self._wanted(stage)}
        if num_processes() > 1:
            check_same("data", {name: dataset.fingerprint() for name, dataset in used.items()})
        if stage == "fit" and isinstance(self.trainer, Trainer):
            self.follow(self.trainer, self.batch_size, self.datasets["train"])

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

    def longest_prompt(self) -> tuple[int, str] | None:
        """Tokens of the longest training prompt that the settings allow, and which it is: for rollouts by an engine.

        None where nothing bounds it: no ``budget``, or questions that are not known beforehand.
        """
        train = self.datasets["train"]
        if self.budget is None or not isinstance(train, PromptDataset):
            return None
        return longest_prompt(train.readable(), self.collator.encoder, self.sampling, self.budget)

    def on_before_batch_transfer(self, batch: Sealed, dataloader_idx: int) -> Delivery:
        """Open the delivery and count its bad videos.

        Raises:
            VideoError: a bad video, or more than ``max_bad_rate`` of them; while training, on all processes what any of
                them met.
        """
        opened, error = None, None
        training = self.trainer is not None and self.trainer.training
        if training:
            self.note_opened()
        try:
            opened = batch.open()
            self.bad_videos.count(opened)
        except Exception as problem:
            error = problem
        if training:
            raise_together(error)
        elif error is not None:
            raise error
        assert opened is not None
        return opened

    def questions(self, stage: str) -> Prompts:
        """The data set of a stage, which must know its length; raises ValueError where there is none."""
        return self._dataset(stage).indexed(stage)

    def answers_depend_on(self) -> dict[str, Any]:
        """Sampling, budget, processor and system prompt, which a model's answers depend on."""
        return {
            "sampling": repr(self.sampling),
            "budget": repr(self.budget),
            "processor": self.processor,
            "system_prompt": self.system_prompt,
        }

    def _dataset(self, name: str) -> TrainingData:
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

    def train_dataloader(self) -> EpochLoader:
        """Shuffled anew each epoch from (seed, epoch), dealt out to processes; an incomplete last batch is dropped.

        Raises:
            ValueError: fewer rows than a batch; a checkpoint that cannot be gone on from, and why not.
        """
        dataset, trainer = self._dataset("train"), self.trainer
        world, process_index = dealt_out(trainer) if trainer is not None else (1, 0)
        if dataset.num_rows is not None and dataset.num_rows < self.batch_size * world:
            raise ValueError(
                f"data.batch_size is {self.batch_size} on {world} processes, but train has {dataset.num_rows} rows"
            )
        start: tuple[int, int, int | None] = (0, 0, None)
        settings: dict[str, Any] = {}
        if isinstance(trainer, Trainer):
            settings = {"epoch": lambda: trainer.current_epoch, "fixed": trainer.overfit_batches > 0}  # type: ignore[attr-defined]
            start = self.go_on(trainer) or start
            if isinstance(module := trainer.lightning_module, LooksAhead):
                settings["lookahead"] = module.batches_ahead
        return EpochLoader(
            dataset,
            batch_size=self.batch_size,
            seed=self.seed,
            process_index=process_index,
            num_processes=world,
            start=start,
            curriculum=self.curriculum,
            **settings,
            **self._common(),
        )

    def _eval_dataloader(self, name: str) -> DataLoader[Prompt]:
        dataset: Any = self._dataset(name).indexed(name)
        if known := self.leave_out.get(name):
            left = [i for i in range(len(dataset)) if dataset[i].id not in known]
            dataset = Subset(dataset, left) if left else NothingLeft(num_processes())
        return PrefetchLoader(dataset, batch_size=self.eval_batch_size, **self._common())

    def val_dataloader(self) -> DataLoader[Prompt] | list[Any]:
        """In order; nothing where the recipe names no validation data."""
        return self._eval_dataloader("val") if self.datasets["val"] is not None else []

    def test_dataloader(self) -> DataLoader[Prompt]:
        """Batches of the test data in the order of the file, each process its share."""
        return self._eval_dataloader("test")

    def predict_dataloader(self) -> DataLoader[Prompt]:
        """Batches of the prediction data in the order of the file, each process its share."""
        return self._eval_dataloader("predict")
