"""The page as one file, to send around: without videos and frames, which stay where they are."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from orlaif.view.page import as_json, static
from orlaif.view.run import Run


def one_file(runs: Sequence[Run], most: int) -> str:
    """HTML with everything in it.

    Args:
        runs: one or more.
        most: groups of each run that can be opened, evenly spaced, with those that show a sign of trouble.

    Raises:
        ValueError: ``most`` is not positive.
    """
    if most < 1:
        raise ValueError(f"--most is {most}; it must be 1 or more groups")
    told = []
    for run in runs:
        overview = copy.deepcopy(run.overview)
        step = max(1, -(-len(run.summaries) // most))
        kept = sorted({*range(0, len(run.summaries), step), *(i for sign in overview["signs"] for i in sign["groups"])})
        new = {old: place for place, old in enumerate(kept)}
        for sign in overview["signs"]:
            sign["groups"] = [new[i] for i in sign["groups"]]
        groups = {name: [column[i] for i in kept] for name, column in overview["groups"].items()}
        told.append({**overview, "groups": groups, "whole": [run.group(i) for i in kept]})
    page = static("page.html")
    page = page.replace('<link rel="stylesheet" href="page.css">', f"<style>{static('page.css')}</style>")
    data = f'<script type="application/json" id="data">{as_json(told)}</script>'
    return page.replace('<script src="page.js" defer></script>', f"{data}\n<script>{static('page.js')}</script>")
