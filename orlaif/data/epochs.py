"""The training data as one epoch after the other, begun where a checkpoint says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from orlaif.data.loader import PrefetchLoader, followed, in_step
from orlaif.data.share import Share


class EpochLoader:
    """The batches of one epoch at each iteration; begun where a checkpoint says, in the epoch that it says.

    Lightning has no part in it: it is no ``DataLoader`` whose sampler would be replaced or told of epochs.

    Args:
        dataset: of the training data (:class:`~orlaif.data.datasets.PromptDataset` or a stream).
        batch_size: prompts per batch of this process; an incomplete last batch is left out.
        seed: of the order.
        epoch: asked at the start of each iteration; None counts the iterations that were finished.
        process_index: of this process.
        num_processes: that share the data.
        start: epoch, rows used of it by all processes, and where it ends (None: where the data does), to go on from.
        fixed: the same rows in the same order in every epoch, for ``overfit_batches``.
        curriculum: order of the data, if it is not shuffled as a whole.
        lookahead: how many of the batches behind it each batch comes with.
        settings: of :class:`~orlaif.data.loader.PrefetchLoader`.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        batch_size: int,
        seed: int = 0,
        epoch: Callable[[], int] | None = None,
        process_index: int = 0,
        num_processes: int = 1,
        start: tuple[int, int, int | None] = (0, 0, None),
        fixed: bool = False,
        curriculum: Any = None,
        lookahead: int = 0,
        **settings: Any,
    ) -> None:
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.process_index, self.num_processes = process_index, num_processes
        self.fixed, self.curriculum, self.settings = fixed, curriculum, settings
        self._asked, self.lookahead = epoch, lookahead
        self.go_on(*start)

    def go_on(self, epoch: int, samples: int = 0, stop: int | None = None) -> None:
        """Begin there: ``start`` as of the constructor."""
        self.start, self._counted = (epoch, samples, stop), epoch

    def __len__(self) -> int:
        """Batches of a whole epoch; TypeError where nobody knows."""
        if (rows := self.dataset.num_rows) is None:
            raise TypeError("a stream has no length")
        return int(rows) // (self.batch_size * self.num_processes)

    def __iter__(self) -> Iterator[Any]:
        epoch = self._counted if self._asked is None else self._asked()
        first, stop = self.start[1:] if epoch == self.start[0] else (0, None)
        share = Share(first=first, stop=stop, process_index=self.process_index, num_processes=self.num_processes)
        return self._batches(epoch, share)

    def _batches(self, epoch: int, share: Share) -> Iterator[Any]:
        rows = self.dataset.epoch(epoch, self.seed, share, self.fixed, self.curriculum)
        batches = iter(PrefetchLoader(rows, batch_size=self.batch_size, drop_last=True, **self.settings))
        yield from followed(in_step(batches) if self.dataset.num_rows is None else batches, self.lookahead)
        self._counted = epoch + 1

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the DataModule keeps the place. Lightning warns of loaders without this method."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing: the DataModule says by :meth:`go_on` where to begin."""
