"""The tables of the mappings, each at its own best rate, greedy and sampled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.figures.results import load, markdown, source
from benchmarks.ordinal_vs_scalar import shown

Rows = list[list[str]]


def _table(rows: Callable[[dict[str, Any]], tuple[list[str], Rows]]) -> Callable[[], str]:
    return lambda: f"{markdown(*rows(load('ordinal_vs_scalar')))}\n\n{source('ordinal_vs_scalar')}"


TABLES: dict[str, Callable[[], str]] = {
    "mappings": _table(shown.accuracy),
    "mappings-less": _table(shown.differences),
    "mappings-sampled": _table(shown.sampled),
    "mappings-sampled-less": _table(partial(shown.differences, part="by_sampled")),
    "mappings-sampled-where-greedy-chose": _table(partial(shown.differences, part="sampled")),
    "mappings-kl": _table(shown.at_equal_kl),
    "mappings-kl-sampled": _table(partial(shown.at_equal_kl, part="equal_kl_sampled")),
    "mappings-one-rate": _table(shown.at_one_rate),
    "mappings-rates": _table(shown.rates),
    "mappings-longer": _table(shown.longer),
    "mappings-ends": _table(shown.ends),
}
