"""Temporal grounding (Charades-STA and its like): mIoU, and the share of answers whose tIoU reaches 0.3, 0.5 and 0.7.

An answer that cannot be read has tIoU 0, and is counted. Spans are read by ``orlaif.evaluation.spans``, strictly: two
that differ, or one that ends before it begins, are unreadable, where lmms-eval's script takes the first, turned round.
"""

from __future__ import annotations

from collections.abc import Sequence

from orlaif.evaluation.spans import span_iou
from orlaif.evaluation.suite import Record, Suite, Table, mean_of, needed, table

THRESHOLDS = (0.3, 0.5, 0.7)


class GroundingSuite(Suite):
    """tIoU of the answers' time spans with the references', overall and by category."""

    COLUMNS = (*((f"R@{t} %", f"r@{t}") for t in THRESHOLDS), ("mIoU %", "tiou"), ("n unreadable", "unreadable"))

    def grade(self, records: Sequence[Record]) -> list[Record]:
        """Adds ``tiou``, ``r@0.3``, ``r@0.5``, ``r@0.7`` and ``unreadable``."""
        graded = []
        for record in records:
            iou = span_iou(record["prediction"], needed(record, "answer", type(self).__name__))
            reached = {f"r@{t}": float((iou or 0.0) >= t) for t in THRESHOLDS}
            scores = {"tiou": iou or 0.0, **reached, "unreadable": float(iou is None)}
            graded.append({**record, "scores": scores})
        return graded

    def tables(self, records: Sequence[Record]) -> list[Table]:
        """One table with a row for each category, and one for all."""
        return [table("Temporal grounding", records, self.COLUMNS, lambda record: record.get("category"))]

    def metrics(self, records: Sequence[Record]) -> dict[str, float]:
        """``miou``, ``r@0.3``, ``r@0.5``, ``r@0.7`` and ``unreadable_rate``, each 0 to 1."""
        names = {"miou": "tiou", **{f"r@{t}": f"r@{t}" for t in THRESHOLDS}, "unreadable_rate": "unreadable"}
        return {name: value for name, score in names.items() if (value := mean_of(records, score)) is not None}
