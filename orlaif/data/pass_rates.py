"""Pass rates that were measured before training (``orlaif.training.pass_rates``), and the rows between two of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from glob import glob
from typing import Literal

from orlaif.data.prompts import HeldPrompts, PromptDataset
from orlaif.data.rows import read_rows
from orlaif.types import Prompt

log = logging.getLogger(__name__)

Missing = Literal["error", "keep", "leave_out"]


def read_pass_rates(file: str, what: str, field: str = "pass_rate") -> dict[str, float]:
    """What was last measured of each prompt, by its id.

    Args:
        file: path of rows with ``id`` and ``field``, or a pattern (``pass_rates-*.jsonl``) for those of several
            processes; of an id that comes in two files the later row counts.
        what: setting that names it, for errors.
        field: ``pass_rate`` or ``mean_score``.

    Raises:
        ValueError: no such file; a row without one of the two, or whose rate is none; an id twice in a file.
    """
    rates: dict[str, float] = {}
    paths = sorted(glob(file)) or [file]
    for path in paths:
        seen: set[str] = set()
        for where, row in read_rows(path):
            if isinstance(row, ValueError):
                raise row
            rate = row.get(field) if isinstance(row, dict) else None
            if not isinstance(rate, (int, float)) or not isinstance(row.get("id"), str):
                raise ValueError(f"{what}: {where}: a row needs an id and a number under {field!r}, found {row!r}")
            if not math.isfinite(rate) or (field == "pass_rate" and not 0 <= rate <= 1):
                right = "from 0 to 1" if field == "pass_rate" else "a finite number"
                raise ValueError(f"{what}: {where}: field {field!r} is {rate}; it must be {right}")
            if row["id"] in seen:
                raise ValueError(f"{what}: {where}: id {row['id']!r} stands in this file already; it must come once")
            seen.add(row["id"])
            rates[row["id"]] = float(rate)
    return rates


class MeasuredDataset(HeldPrompts):
    """A data set beside what was measured of its prompts; what is not said here is as of the data set inside.

    Args:
        dataset: of all rows.
        file: of :func:`read_pass_rates`.
        field: ``pass_rate`` or ``mean_score``.
        missing: what is done with rows that the file does not have.
    """

    def __init__(self, dataset: PromptDataset, file: str, field: str, missing: Missing) -> None:
        name = type(self).__name__
        if field not in ("pass_rate", "mean_score"):
            raise ValueError(f"{name}.field is {field!r}; it must be 'pass_rate' or 'mean_score'")
        if missing not in ("error", "keep", "leave_out"):
            raise ValueError(f"{name}.missing is {missing!r}; it must be 'error', 'keep' or 'leave_out'")
        self.dataset, self.file, self.field, self.missing = dataset, file, field, missing

    def prepare(self) -> None:
        """As the data set inside."""
        self.dataset.prepare()

    def load(self) -> None:
        """Load the data set inside, and look its prompts up.

        Raises:
            ValueError: as the data set and its file of rates; a row that is not there, where that is an error.
        """
        self.dataset.load()
        rates = read_pass_rates(self.file, f"{type(self).__name__}.file", self.field)
        prompts = [self.dataset[i] for i in range(len(self.dataset))]
        absent = [prompt.id for prompt in prompts if prompt.id not in rates]
        if absent and self.missing == "error":
            raise ValueError(
                f"{type(self).__name__}.file {self.file} has no entry for {len(absent)} of {len(prompts)} rows, such "
                f"as {absent[0]!r}; measure them, or set missing to keep or leave_out"
            )
        if self.missing == "leave_out":
            prompts = [prompt for prompt in prompts if prompt.id in rates]
        self._prompts = self.chosen(prompts, rates)

    def chosen(self, prompts: list[Prompt], rates: Mapping[str, float]) -> list[Prompt]:
        """The rows of this data set."""
        return prompts

    def forbid(self, texts: frozenset[str]) -> None:
        """As the data set inside, which checks its texts."""
        self.dataset.forbid(texts)

    def check_texts(self) -> None:
        """As the data set inside."""
        self.dataset.check_texts()

    def where(self, prompt: Prompt) -> str:
        """As the data set inside."""
        return self.dataset.where(prompt)


class PassRateFilter(MeasuredDataset):
    """The rows whose pass rate lies within bounds: prompts that are always or never right teach nothing.

    Args:
        dataset: of all rows.
        file: ``predictions/pass_rates.jsonl`` of ``orlaif predict``; a pattern for the files of several processes.
        min: least pass rate of a row that stays.
        max: largest.
        missing: rows without an entry: ``error``, ``keep`` or ``leave_out``.
        field: ``pass_rate``, or ``mean_score`` for oracles by whose score no answer is simply right.

    Raises:
        ValueError: bounds in the wrong order; on loading, as :meth:`MeasuredDataset.load`, or no row left.
    """

    def __init__(
        self,
        dataset: PromptDataset,
        file: str,
        min: float = 0.0,
        max: float = 1.0,
        missing: Missing = "error",
        field: str = "pass_rate",
    ) -> None:
        super().__init__(dataset, file, field, missing)
        if min > max:
            raise ValueError(f"PassRateFilter.min is {min}, above max = {max}")
        self.min, self.max = min, max

    def chosen(self, prompts: list[Prompt], rates: Mapping[str, float]) -> list[Prompt]:
        """Those within the bounds, and those without a rate; how many are not is said in the log."""
        kept = [p for p in prompts if p.id not in rates or self.min <= rates[p.id] <= self.max]
        below = sum(rates.get(p.id, self.min) < self.min for p in prompts)
        above = sum(rates.get(p.id, self.max) > self.max for p in prompts)
        if not kept:
            raise ValueError(
                f"PassRateFilter leaves none of {len(prompts)} rows: {below} are below min = {self.min}, "
                f"{above} above max = {self.max}"
            )
        unknown = sum(p.id not in rates for p in kept)
        log.info(
            "%s: %d of %d rows stay (%d without a rate), %d below %s and %d above %s are left out",
            self.file, len(kept), len(prompts), unknown, below, self.min, above, self.max,
        )  # fmt: skip
        return kept
