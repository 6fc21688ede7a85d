"""The kernels beside every baseline that is here, and beside a copy and the bare GEMMs (``benchmarks.kernels``)."""

from __future__ import annotations

from benchmarks import kernels
from benchmarks.gpu.notebook import Notebook

#: Tokens, hidden units, vocabulary and fill, the most telling first.
POINTS = [
    (8192, 3584, 152064, 0.6),
    (8192, 2048, 151936, 0.6),
    (32768, 2048, 151936, 0.6),
    (8192, 3584, 152064, 1.0),
    (2048, 2048, 151936, 0.6),
    (8192, 3584, 152064, 0.25),
    (8192, 2048, 248320, 0.6),
]


def run(notebook: Notebook) -> None:
    """One point after the other."""
    points = [(64, 16, 300, 0.6)] if notebook.rehearse else POINTS
    for n, h, v, fill in points:
        notebook.measure(
            f"{n} tokens, {h} x {v}, {fill:.0%} count",
            lambda n=n, h=h, v=v, fill=fill: kernels.measure(  # type: ignore[misc]
                (n, h, v), fill, notebook.device, 1 if notebook.rehearse else 15, everything=True
            ),
            40,
        )
    for name, entry in list(notebook.entries.items()):
        for who, row in entry["results"].items():
            if "orlaif" in who and "failed" in row:
                notebook.fail(f"{name}: {who}", row["failed"])
