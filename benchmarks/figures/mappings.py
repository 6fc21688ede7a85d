"""The tables of the mappings, each at its own best rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.figures.results import load, markdown, source
from benchmarks.ordinal_vs_scalar import shown

Rows = list[list[str]]


def _table(rows: Callable[[dict[str, Any]], tuple[list[str], Rows]]) -> Callable[[], str]:
    return lambda: f"{markdown(*rows(load('ordinal_vs_scalar')))}\n\n{source('ordinal_vs_scalar')}"


TABLES: dict[str, Callable[[], str]] = {
    "mappings": _table(shown.accuracy),
    "mappings-less": _table(shown.differences),
    "mappings-kl": _table(shown.at_equal_kl),
    "mappings-rates": _table(shown.rates),
    "mappings-longer": _table(shown.longer),
    "mappings-ends": _table(shown.ends),
}
