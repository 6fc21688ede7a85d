"""Pass rates that are measured while a run trains: of each prompt the mean over the groups that were seen of it.

All processes are told of all groups, in the same order, so that all hold the same. Groups count once the optimizer has
stepped with them, and an epoch is drawn by the rates of its beginning; a checkpoint holds both, so that a run that goes
on, within an epoch or behind it, on as many processes or others, draws what the uninterrupted one does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

from orlaif.types import Measured


class RunningRates:
    """What was measured so far.

    Args:
        field: ``pass_rate`` or ``mean_score``.
        known: ids of all prompts; that of another appearance of one is ``<id>~<n>``.
    """

    def __init__(self, field: Literal["pass_rate", "mean_score"], known: Collection[str]) -> None:
        self.field, self.known = field, known
        self._sums: dict[str, list[float]] = {}  # of each prompt, over all answers, and how many these are
        self._pending: list[Measured] = []  # since the last step of the optimizer
        self._drawn: tuple[int, dict[str, float]] = (-1, {})  # an epoch, and the rates of its beginning

    def note(self, measured: Iterable[Measured]) -> None:
        """Groups of the step at hand, of all processes; they count from :meth:`settle` on."""
        self._pending += measured

    def settle(self) -> None:
        """The optimizer has stepped."""
        for one in self._pending:
            total = self._sums.setdefault(self._name(one.id), [0.0, 0.0])
            total[0] += getattr(one, self.field) * one.samples
            total[1] += one.samples
        self._pending = []

    def _name(self, prompt_id: str) -> str:
        return prompt_id if prompt_id in self.known else prompt_id.rpartition("~")[0]

    def means(self) -> dict[str, float]:
        """By id, of the prompts that were seen."""
        return {name: total / number for name, (total, number) in self._sums.items()}

    def of_epoch(self, number: int) -> Mapping[str, float]:
        """By id, as it was when the epoch began, which is now if it was not asked for before."""
        if self._drawn[0] != number:
            self.settle()
            self._drawn = number, self.means()
        return self._drawn[1]

    def state_dict(self) -> dict[str, Any]:
        """What counts, and what the epoch at hand was drawn by."""
        epoch, rates = self._drawn
        return {"sums": {name: list(sums) for name, sums in self._sums.items()}, "epoch": epoch, "drawn": dict(rates)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._sums = {name: list(sums) for name, sums in state["sums"].items()}
        self._drawn, self._pending = (state["epoch"], dict(state["drawn"])), []
