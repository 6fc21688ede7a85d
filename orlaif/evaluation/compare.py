"""``orlaif compare A B``: two runs of ``orlaif test`` side by side."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from orlaif.arguments import HelperParser
from orlaif.evaluation.report import compare, comparison_markdown, plot_rows


def main(arguments: Sequence[str]) -> int:
    """The subcommand; returns the exit status."""
    parser = HelperParser(
        prog="orlaif compare",
        description="Two runs of `orlaif test` on the questions that both answered: means, and their paired difference "
        "with a 95 % bootstrap interval, as a table, JSON and a plot.",
    )
    parser.add_argument("a", help="run_dir of the first")
    parser.add_argument("b", help="run_dir of the second")
    parser.add_argument("--names", nargs=2, metavar=("A", "B"), help="of the runs; by default their folders'")
    parser.add_argument("--score", help="which score; by default the first that both have")
    parser.add_argument("--by", help="break down by category, or by a tag such as task_type or duration")
    parser.add_argument("--resamples", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="folder for comparison.{md,json,png}; by default <B>/comparison")
    given = parser.parse_args(arguments)
    if given.resamples < 100:
        raise ValueError(f"--resamples is {given.resamples}; it must be 100 or more")
    names = tuple(given.names or (os.path.basename(os.path.normpath(folder)) for folder in (given.a, given.b)))
    first, second = names
    rows = compare(given.a, given.b, (first, second), given.score, given.by, given.resamples, given.seed)
    page = comparison_markdown(rows, (first, second))
    folder = given.output or os.path.join(given.b, "comparison")
    os.makedirs(folder, exist_ok=True)
    about = {"a": given.a, "b": given.b, "resamples": given.resamples, "seed": given.seed, "rows": rows}
    with open(os.path.join(folder, "comparison.json"), "w", encoding="utf-8") as file:
        json.dump(about, file, indent=2)
    score = f"{rows[0]['score']} %" if all(0 <= row[side] <= 1 for row in rows for side in "ab") else rows[0]["score"]
    series = {
        f"{name}: {score}": [(r["label"], r[side], 0.0, 0.0) for r in rows]
        for name, side in zip(names, "ab", strict=True)
    }
    series[f"difference: {score}"] = [
        (r["label"], r["difference"], r["difference"] - r["low"], r["high"] - r["difference"]) for r in rows
    ]
    plotted = plot_rows(os.path.join(folder, "comparison.png"), f"{first} and {second}", series)
    with open(os.path.join(folder, "comparison.md"), "w", encoding="utf-8") as file:
        file.write(f"# {first} and {second}\n\n{page}\n" + ("\n![](comparison.png)\n" if plotted else ""))
    print(page)
    print(f"\n{os.path.join(folder, 'comparison.md')}")
    return 0
