"""The part of the DataModule that checkpoints are about: the place in the training data, and what that data is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lightning import LightningDataModule, Trainer

from orlaif.data.collator import BadVideos
from orlaif.data.place import Place, PlaceKeeper
from orlaif.data.running_rates import RunningRates
from orlaif.distributed.changes import is_allowed
from orlaif.types import DealsPrompts, Measured


def dealt_out(trainer: Any) -> tuple[int, int]:
    """Into how many shares training data is dealt out, and which of them is this process's.

    One for each process, or for those that share their prompts.
    """
    module = trainer.lightning_module
    number = module.processes_per_prompt if isinstance(module, DealsPrompts) else 1
    return trainer.world_size // number, trainer.global_rank // number


class ResumableDataModule(LightningDataModule):
    """A DataModule that keeps its place.

    Args:
        max_bad_rate: of :class:`~orlaif.data.collator.BadVideos`.

    Attributes:
        bad_videos: how many there were so far.
        resume_changed: what may differ from the run that a checkpoint is of (``--resume_changed``).
    """

    def __init__(self, max_bad_rate: float) -> None:
        super().__init__()
        self.max_bad_rate = max_bad_rate
        self.bad_videos = BadVideos(max_bad_rate)
        self.resume_changed: tuple[str, ...] = ()
        self._counts = (0, 0)  # of the bad videos where the place is
        self._keeper: PlaceKeeper | None = None
        self._place: Place | None = None
        self._fingerprint = ""
        self._rates: RunningRates | None = None

    def follow(self, trainer: Trainer, batch_size: int, train: Any) -> None:
        """Keep the place of a run that begins.

        Args:
            trainer: of the run.
            batch_size: rows of one process in a batch.
            train: data set, or None.
        """
        self._place, self.bad_videos, self._counts = None, BadVideos(self.max_bad_rate), (0, 0)
        self._fingerprint = "" if train is None else train.fingerprint()
        self._rates = getattr(train, "rates", None)
        module: Any = trainer.lightning_module
        if self._rates is not None and not hasattr(module, "oracle"):
            raise ValueError(
                f"data.train measures pass rates while training, and {type(module).__name__} has no oracle to measure "
                "by; set measure: false"
            )
        self._keeper = PlaceKeeper(batch_size * dealt_out(trainer)[0])
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        callbacks[:] = [self._keeper, *(one for one in callbacks if not isinstance(one, PlaceKeeper))]

    def note_opened(self) -> None:
        """A batch is about to be trained on."""
        if self._keeper is not None and self.trainer is not None and self._keeper.opened(self.trainer):
            self._counts = self.bad_videos.counts
            if self._rates is not None:
                self._rates.settle()

    @property
    def learns_rates(self) -> bool:
        """Whether the training data are drawn by pass rates that are measured meanwhile."""
        return self._rates is not None

    def note_rates(self, measured: Sequence[Measured]) -> None:
        """What was measured of a batch, as :class:`~orlaif.types.LearnsRates` says."""
        if self._rates is not None:
            self._rates.note(measured)

    def state_dict(self) -> dict[str, Any]:
        """The place in the training data, what it is, and how many videos were bad before it."""
        if self._keeper is None or self.trainer is None:
            return {}
        place = self._keeper.now(self.trainer)
        videos = self._counts if self._keeper.is_within_step else self.bad_videos.counts
        state = {"place": asdict(place), "data": self._fingerprint, "videos": list(videos)}
        if self._rates is not None:
            if not self._keeper.is_within_step:
                self._rates.settle()
            state["rates"] = self._rates.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there, on any number of processes.

        Raises:
            ValueError: the training data is not that of the checkpoint.
        """
        if self._keeper is None:  # no training
            return
        if state["data"] != self._fingerprint and not is_allowed("data.train", self.resume_changed):
            raise ValueError(
                f"data.train has {self._fingerprint}, but the checkpoint was trained on {state['data']}; resume with "
                "the same data, or allow it with --resume_changed data.train"
            )
        self._place = Place(**state["place"])
        if self._rates is not None and "rates" in state:
            self._rates.load_state_dict(state["rates"])
        videos, bad = state["videos"]
        self.bad_videos.counts = self._counts = videos, bad

    def go_on(self, trainer: Trainer) -> tuple[int, int, int | None] | None:
        """Put the loops of Lightning where the checkpoint was.

        Returns:
            Epoch, rows used of it, and where it ends (None: where the data does); None for a run that begins.

        Raises:
            ValueError: a checkpoint without a place, or one that batches of this size cannot go on from.
        """
        place, self._place = self._place, None
        if self._keeper is None:
            return None
        if place is not None:
            self._keeper.go_on(trainer, place)
            # Lightning asks for one more batch behind the last, whatever it was limited to; and batches of another size
            # share the rows that the epoch had.
            resized = place.batch_size != self._keeper.batch_size
            return (
                place.epoch,
                place.samples,
                place.samples if place.is_last else place.epoch_samples if resized else None,
            )
        if trainer.ckpt_path and trainer.global_step:
            raise ValueError(
                f"checkpoint {trainer.ckpt_path} does not hold the place in the data: it was written without an "
                "orlaif.VideoDataModule, or by an earlier version; start anew from its export"
            )
        return None
