"""The tables of ``kernels/README.md``: predictions for a GPU that nothing ran on, and times on a CPU."""

from __future__ import annotations

from typing import Any

from benchmarks.figures.results import load, markdown, source

_SHAPES = ((152064, 3584), (262144, 3840))


def predicted() -> str:
    """Milliseconds of an H100 by a stated model, of 8192 tokens in bf16, beside their floors."""
    found = load("static")["predictions_h100"]
    both = [
        next(p for p in found if (p["tokens"], p["vocabulary"], p["hidden"]) == (8192, *shape)) for shape in _SHAPES
    ]
    lines = (
        ("from logits, in place", "predicted_ms", "from logits, in place"),
        ("from logits, out of place (two reads, one write at 3.0 TB/s)", "predicted_ms", "from logits, out of place"),
        ("*floor of both: one read, one write*", "floor_ms", "from logits: one read, one write"),
        ("fused head, if nothing overlaps", "predicted_ms", "fused head"),
        (
            "of this, the float32 sum of the head's gradient: first write, sums of further chunks, narrowing",
            "of_these_ms",
            "the head's gradient in float32",
        ),
        (
            "*floor of any head that is trained: three GEMMs at 798 TFLOP/s*",
            "floor_ms",
            "through a head: three GEMMs",
        ),
        ("fused head, frozen", "predicted_ms", "fused head, frozen"),
        ("*its floor: two GEMMs*", "floor_ms", "through a frozen head: two GEMMs"),
    )
    rows = [[words, *(_milliseconds(point[part][key], words) for point in both)] for words, part, key in lines]
    head = ["PREDICTED for an H100, bf16, N=8192", *(f"V={vocabulary}, H={hidden}" for vocabulary, hidden in _SHAPES)]
    return f"{markdown(head, rows)}\n\n{source('static')}"


def _milliseconds(value: float, words: str) -> str:
    said = f"{value:.2f} ms" if value < 5 else f"{value:.1f} ms"
    return f"*{said}*" if words.startswith("*") else said


def measured() -> str:
    """Forward and backward on a CPU where all, 60 % and 25 % of the tokens count."""
    fills = (1.0, 0.6, 0.25)
    entries: dict[float, dict[str, Any]] = {
        entry["fill"]: entry["results"] for entry in load("kernels_cpu")["entries"] if entry["tokens"] == 1024
    }
    rows = []
    for words, name in (
        ("eager, through the head", "eager fp32, through the head"),
        ("fused head", "orlaif fused head (torch)"),
    ):
        times = [entries[fill][name]["forward+backward"] for fill in fills]
        cells = [f"{t['median_ms']:.0f} ms [{t['p20_ms']:.0f}, {t['p80_ms']:.0f}]" for t in times]
        rows.append([words, *cells, f"{entries[1.0][name]['peak_bytes'] / 1e9:.2f} GB"])
    head = ["", "every token counts", "60 % count", "25 % count", "peak above the inputs"]
    return f"{markdown(head, rows)}\n\n{source('kernels_cpu')}"
