"""Results as files: graded records, JSON, a page of Markdown tables, a plot; and two runs side by side.

The comparison is paired: for each group of answers that both runs gave, the mean difference with the 95 % percentile
interval of a bootstrap over the questions (Efron & Tibshirani 1993). Its ten lines are written out here, for orlaif
needs scipy, which has them as well, for nothing else.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from orlaif.evaluation.suite import Record, Suite, Table, is_count, shown

log = logging.getLogger(__name__)
#: Scores that no judge gives.
JUDGE_FREE = ("exact_match", "token_f1", "official", "strict", "unreadable", "tiou", "r@0.3", "r@0.5", "r@0.7")
RESULTS, GRADED, PAGE, PLOT = "results.json", "graded.jsonl", "results.md", "results.png"


def write_results(folder: str, suite: Suite, graded: Sequence[Record], about: dict[str, Any]) -> dict[str, float]:
    """Write ``results.json``, ``graded.jsonl``, ``results.md`` and ``results.png``; returns the suite's metrics."""
    os.makedirs(folder, exist_ok=True)
    tables, metrics = suite.tables(graded), suite.metrics(graded)
    _write(os.path.join(folder, GRADED), "".join(json.dumps(record) + "\n" for record in graded))
    results = {"metrics": metrics, "about": about, "tables": [asdict(one) for one in tables]}
    _write(os.path.join(folder, RESULTS), json.dumps(results, indent=2))
    pinned = json.dumps(about, indent=2)
    plotted = plot_rows(os.path.join(folder, PLOT), tables[0].title, _bars(tables[0]))
    picture = [f"![{tables[0].title}]({PLOT})"] if plotted else []
    page = ["# Results", *picture, *(one.markdown() for one in tables), f"```json\n{pinned}\n```"]
    _write(os.path.join(folder, PAGE), "\n\n".join(page) + "\n")
    return metrics


def _write(path: str, text: str) -> None:
    """A file that is whole, or the one that was there before."""
    unfinished = f"{path}.unfinished"
    with open(unfinished, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(unfinished, path)


def _bars(one: Table) -> dict[str, list[tuple[str, float | None, float, float]]]:
    return {
        column: [(label, values[place], 0.0, 0.0) for label, _, values in one.rows]
        for place, column in enumerate(one.columns)
        if not is_count(column)
    }


def plot_rows(path: str, title: str, series: dict[str, list[tuple[str, float | None, float, float]]]) -> bool:
    """Bars: a group per label, a bar per series (label, value, and how far its interval reaches down and up).

    Returns:
        False, said in the log, where matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        log.warning("no plot %s: it needs matplotlib (pip install '.[eval]')", path)
        return False
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels = [label for label, *_ in next(iter(series.values()))]
    figure, axis = plt.subplots(figsize=(max(5.0, 1.0 + 0.35 * len(labels) * len(series)), 4.0))
    width = 0.8 / len(series)
    for number, (name, rows) in enumerate(series.items()):
        scale = 100 if name.endswith("%") else 1
        places = [i + width * (number - (len(series) - 1) / 2) for i in range(len(rows))]
        heights = [scale * (value if value is not None else np.nan) for _, value, _, _ in rows]
        reach = np.array([[scale * low for *_, low, _ in rows], [scale * high for *_, high in rows]])
        axis.bar(places, heights, width, yerr=reach if reach.any() else None, capsize=2, label=name)
    axis.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
    axis.set_title(title)
    axis.legend(fontsize="small", loc="lower left", bbox_to_anchor=(0.0, 1.08), ncols=len(series), frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)
    return True


def read_graded(folder: str) -> dict[str, Record]:
    """The graded records of a run's folder by id.

    Raises:
        ValueError: ``orlaif test`` has not written them, or a line is no graded record.
    """
    path = os.path.join(folder, GRADED)
    if not os.path.exists(path):
        raise ValueError(f"{path}: no such file; run `orlaif test` with --run_dir {folder} first")
    graded: dict[str, Record] = {}
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                record = _graded_record(line, f"{path}, line {number}")
                graded[record["id"]] = record
    return graded


def _graded_record(line: str, where: str) -> Record:
    """A line of ``graded.jsonl``; raises ValueError where it is none."""
    right = '; it must be a graded answer such as {"id": "q1", "scores": {"exact_match": 1.0}}, as `orlaif test` writes'
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: no valid JSON: {error}{right}") from None
    if not isinstance(record, dict):
        raise ValueError(f"{where} is a {type(record).__name__}{right}")
    missing = [name for name in ("id", "scores") if name not in record]
    if missing:
        raise ValueError(f"{where} has no {missing[0]!r}{right}")
    scores = record["scores"]
    if not isinstance(scores, dict) or not all(isinstance(s, int | float | None) for s in scores.values()):
        raise ValueError(f"{where}: scores is {json.dumps(scores)[:80]}{right}")
    if not isinstance(record["id"], str) or not isinstance(record.get("tags", {}), dict):
        raise ValueError(f"{where}: id must be text, and tags a mapping{right}")
    return record


def judge_of(folder: str) -> Any:
    """The judge that a run's results are pinned to, wherever it ran; None where there was none."""
    path = os.path.join(folder, RESULTS)
    if not os.path.exists(path):
        return None
    with open(path, encoding="utf-8") as file:
        try:
            judge = json.load(file)["about"].get("judge")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{path}: no results of `orlaif test`, which has an about.judge there") from None
    return {name: value for name, value in judge.items() if name != "base_url"} if isinstance(judge, dict) else judge


def paired_difference(a: np.ndarray, b: np.ndarray, resamples: int, seed: int) -> tuple[float, float, float]:
    """Mean of ``b - a`` over questions, and the 95 % percentile interval of its bootstrap.

    Args:
        a: f64[N], scores of one run.
        b: f64[N], of the other, on the same questions.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    difference = b - a
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    for start in range(0, resamples, 256):  # in parts, for memory
        part = rng.integers(0, len(difference), (min(256, resamples - start), len(difference)))
        means[start : start + len(part)] = difference[part].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(difference.mean()), float(low), float(high)


def compare(
    a: str,
    b: str,
    names: tuple[str, str],
    score: str | None = None,
    by: str | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Two runs on the questions that both have answered and that are scored in both.

    Args:
        a: folder of one run.
        b: folder of the other.
        names: of the two.
        score: which; by default the first that both have.
        by: a tag or ``category`` to break down by; by default the category, where there is one.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        Rows ``label, n, a, b, difference, low, high``, the last over all.

    Raises:
        ValueError: nothing in common, a score or tag that is not there, or a score that two judges gave.
    """
    left, right = read_graded(a), read_graded(b)
    common = [key for key in left if key in right]
    if not common:
        raise ValueError(f"{names[0]} and {names[1]} have no question in common")
    changed = [key for key in common if left[key].get("question") != right[key].get("question")]
    if changed:
        raise ValueError(f"{names[0]} and {names[1]} ask different questions under the same id, such as {changed[0]!r}")
    known = [name for name in left[common[0]]["scores"] if name in right[common[0]]["scores"]]
    if score is None and known:
        score = known[0]
    if score not in known:
        raise ValueError(f"score {score!r} is not in both runs; in both are {', '.join(known) or 'none'}")
    if score not in JUDGE_FREE and judge_of(a) != judge_of(b):
        free = [name for name in known if name in JUDGE_FREE]
        raise ValueError(
            f"{names[0]} and {names[1]} were graded by judges of different settings ({RESULTS}: about.judge), whose "
            f"{score!r} is not comparable; grade one of them anew" + (f", or --score {free[0]}" if free else "")
        )
    scored = [key for key in common if left[key]["scores"].get(score) is not None]
    scored = [key for key in scored if right[key]["scores"].get(score) is not None]
    if not scored:
        raise ValueError(f"no question has {score!r} in both runs")

    def label(key: str) -> str | None:
        record = left[key]
        return record.get("category") if by in (None, "category") else record.get("tags", {}).get(by)

    labels = sorted({name for key in scored if (name := label(key))})
    if by is not None and not labels:
        raise ValueError(f"no record has a {by!r} to break down by")
    rows = []
    for group in [*labels, None]:
        keys = [key for key in scored if group is None or label(key) == group]
        first, second = (np.array([run[key]["scores"][score] for key in keys]) for run in (left, right))
        difference, low, high = paired_difference(first, second, resamples, seed)
        values = {
            "a": float(first.mean()),
            "b": float(second.mean()),
            "difference": difference,
            "low": low,
            "high": high,
        }
        rows.append({"label": group or "all", "n": len(keys), "score": score, **values})
    return rows


def comparison_markdown(rows: Sequence[dict[str, Any]], names: tuple[str, str]) -> str:
    """Groups down, the two runs and their difference across, as the paper's tables are laid out; shares in percent."""
    share = all(0 <= row[side] <= 1 for row in rows for side in "ab")
    heading = "%" if share else ""
    title = f"{rows[0]['score']} {heading}".strip()
    lines = [
        f"| {title} | n | {names[0]} | {names[1]} | difference (95 % interval) |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        a, b = (shown(row[side], heading) for side in "ab")
        scale, digits = (100, 1) if share else (1, 2)
        gap, low, high = (f"{scale * row[name]:+.{digits}f}" for name in ("difference", "low", "high"))
        lines.append(f"| {row['label']} | {row['n']} | {a} | {b} | {gap} ({low} to {high}) |")
    return "\n".join(lines)
