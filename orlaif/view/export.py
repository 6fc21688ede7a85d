"""The page as one file, to send around: without videos, which stay where they are, and with frames up to a bound."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Sequence
from typing import Any

from orlaif.view.page import as_json, static
from orlaif.view.run import Run


def one_file(runs: Sequence[Run], most: int, frames_mb: float = 20.0) -> str:
    """HTML with everything in it.

    Args:
        runs: one or more.
        most: groups of each run that can be opened, evenly spaced, with those that show a sign of trouble.
        frames_mb: of frames (WebP), of all runs together; those of signs of trouble come first. 0: none.

    Raises:
        ValueError: ``most`` is not positive, or ``frames_mb`` negative.
    """
    if most < 1:
        raise ValueError(f"--most is {most}; it must be 1 or more groups")
    if not frames_mb >= 0:
        raise ValueError(f"--frames_mb is {frames_mb}; it must be 0 or more")
    told, room = [], int(frames_mb * 1e6)
    for run in runs:
        overview = copy.deepcopy(run.overview)
        step = max(1, -(-len(run.summaries) // most))
        kept = sorted({*range(0, len(run.summaries), step), *(i for sign in overview["signs"] for i in sign["groups"])})
        new = {old: place for place, old in enumerate(kept)}
        for sign in overview["signs"]:
            sign["groups"] = [new[i] for i in sign["groups"]]
        groups = {name: [column[i] for i in kept] for name, column in overview["groups"].items()}
        whole = [run.group(i) for i in kept]
        first = [i for sign in overview["signs"] for i in sign["groups"]]
        sheets, sheet_of = sheets_within(run, kept, whole, first, room)
        room -= sum(map(len, sheets.values()))
        told.append({**overview, "groups": groups, "whole": whole, "sheets": sheets, "sheet_of": sheet_of})
    page = static("page.html")
    page = page.replace('<link rel="stylesheet" href="page.css">', f"<style>{static('page.css')}</style>")
    data = f'<script type="application/json" id="data">{as_json(told)}</script>'
    return page.replace('<script src="page.js" defer></script>', f"{data}\n<script>{static('page.js')}</script>")


def sheets_within(
    run: Run, kept: Sequence[int], whole: Sequence[dict[str, Any] | None], first: Sequence[int], room: int
) -> tuple[dict[str, str], dict[str, str]]:
    """Sheets of frames, each once, as long as they fit.

    Args:
        run: whose.
        kept: places of its groups in the run.
        whole: these groups.
        first: places in ``kept`` of those that come first.
        room: bytes, in base64.

    Returns:
        The sheets by a key, and the key of an item's by ``group/item``.
    """
    sheets: dict[str, str] = {}
    sheet_of: dict[str, str] = {}
    keys: dict[str, str | None] = {}
    for place in dict.fromkeys([*first, *range(len(kept))]):
        for n, item in enumerate((whole[place] or {}).get("seen", [])):
            what = json.dumps([item.get("sheet"), item.get("path"), item.get("times_s")])
            if what not in keys:
                keys[what] = None
                data = run.sheet(kept[place], n) if room > 0 else None
                text = base64.b64encode(data).decode() if data is not None else ""
                if data is not None and len(text) <= room:
                    keys[what] = f"s{len(sheets)}"
                    sheets[f"s{len(sheets)}"] = text
                    room -= len(text)
            if (key := keys[what]) is not None:
                sheet_of[f"{place}/{n}"] = key
    return sheets, sheet_of
