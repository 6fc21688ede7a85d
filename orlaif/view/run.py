"""A run's folder as the page needs it: summaries of all groups, one group whole, curves, and its media."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orlaif.samples.reading import LeftOut, locate_groups, read_at, told
from orlaif.view.malformed import malformed
from orlaif.view.media import file_of, is_playable, kept_sheet, made_sheet, shown
from orlaif.view.signs import signs
from orlaif.view.summaries import FIELDS, summary


@dataclass
class Run:
    """What a run left, read when this is made, and again by :meth:`refresh`.

    Args:
        folder: of the run.

    Attributes:
        summaries: of all groups (:func:`~orlaif.view.summaries.summary`), by step.
        overview: what the page shows at first: ``name``, ``signs``, ``curves``, ``left_out`` (a sentence on lines of
            the samples that are no groups; None: there are none), and ``groups``: summaries as columns.

    Raises:
        ValueError: there is no such folder, or nothing in it to show.
    """

    folder: Path
    summaries: list[dict[str, Any]] = field(init=False)
    overview: dict[str, Any] = field(init=False)
    _places: list[tuple[Path, int]] = field(init=False)

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise ValueError(f"{self.folder} is no folder of a run")
        self.refresh()
        if not self.summaries and not self.overview["curves"]:
            left_out = self.overview["left_out"]
            why = "KeepSamples writes them" if left_out is None else left_out
            raise ValueError(f"{self.folder / 'samples'} holds no samples of a run ({why})")

    def refresh(self) -> None:
        """Read what is there now."""
        located: list[tuple[dict[str, Any], Path, int]] = []
        left_out: list[LeftOut] = []
        for one in locate_groups(self.folder / "samples", left_out):
            if (reason := malformed(one.group)) is not None:
                left_out.append(LeftOut(path=one.path, line=one.line, reason=reason))
            else:
                located.append((summary(one.group), one.path, one.offset))
        located.sort(key=lambda one: one[0]["step"])  # stable: processes one behind the other
        self.summaries = [one for one, _, _ in located]
        self._places = [(path, offset) for _, path, offset in located]
        self.overview = {
            "name": self.folder.name,
            "signs": signs(self.summaries),
            "curves": curves(self.folder),
            "left_out": told(left_out) if left_out else None,
            "groups": {name: [one[name] for one in self.summaries] for name in FIELDS},
        }

    def group(self, place: int) -> dict[str, Any] | None:
        """A group whole, by its place in ``summaries``; None where there is none or it has been removed.

        To each item of ``seen`` is added which of its frames are on its sheet, ``shown``, and whether its file is here
        and a browser plays it, ``plays``.
        """
        places = self._places
        group = read_at(*places[place]) if 0 <= place < len(places) else None
        if group is None or malformed(group) is not None:  # removed, or another line since the samples were read
            return None
        for item in group["seen"]:
            item["shown"], path = shown(item), file_of(item)
            item["plays"] = path is not None and is_playable(path)
        return group

    def media(self, place: int, item: int) -> Path | None:
        """The file of an item that the policy saw; only media that the samples name are ever given out."""
        path = None if (seen := self._item(place, item)) is None else file_of(seen)
        return path if path is not None and is_playable(path) else None

    def sheet(self, place: int, item: int) -> bytes | None:
        """The frames of an item that the policy saw, as WebP (``orlaif.samples.frames``): kept, or made of its file."""
        seen = self._item(place, item)
        if seen is None:
            return None
        return kept_sheet(self.folder, seen.get("sheet")) or made_sheet(seen)

    def _item(self, place: int, item: int) -> dict[str, Any] | None:
        seen = (self.group(place) or {}).get("seen", [])
        return seen[item] if 0 <= item < len(seen) else None


#: Curves that the page shows, where the run logged them; /low and /high are drawn as a band about theirs.
SHOWN = (
    "val/win_rate",
    "val/win_rate/low",
    "val/win_rate/high",
    "val/greedy_rank",
    "val/accuracy",
    "oracle/mean_score",
    "train/loss",
    "train/kl",
    "train/entropy",
    "train/completions/mean_length",
    "oracle/zero_signal_rate",
    "oracle/tie_rate",
    "oracle/length_tau",
    "oracle/position_tau",
    "train/sampling/sampling_logp_difference/mean",
    "train/grad_norm",
    "train/lr",
)
#: Points of a curve; longer ones are thinned.
_POINTS = 500


def curves(folder: Path) -> dict[str, list[list[float]]]:
    """Points (step, value) of the metrics in ``SHOWN``, from the run's TensorBoard events."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not any(folder.glob("events.out.tfevents.*")):
        return {}
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 1, "tensors": 1})
    events.Reload()
    found: dict[str, list[list[float]]] = {}
    for name in SHOWN:
        if name in events.Tags()["scalars"]:
            points = {event.step: event.value for event in events.Scalars(name)}  # of a resumed run the last holds
            rows = [[float(step), value] for step, value in sorted(points.items()) if value - value == 0]
            found[name] = rows[:: max(1, -(-len(rows) // _POINTS))]
    return found
