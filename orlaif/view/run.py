"""A run's folder as the page needs it: summaries of all groups, one group whole, curves, and its media."""

from __future__ import annotations

import io
import mimetypes
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orlaif.samples.reading import locate_groups, read_at
from orlaif.view.signs import signs
from orlaif.view.summaries import summary


@dataclass
class Run:
    """What a run left, read when this is made, and again by :meth:`refresh`.

    Args:
        folder: of the run.

    Attributes:
        summaries: of all groups (:func:`~orlaif.view.summaries.summary`), by step.
        overview: what the page shows at first: ``name``, ``signs``, ``curves``, and ``groups``: summaries as columns.

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
        if not self.summaries:
            raise ValueError(f"{self.folder / 'samples'} holds no samples of a run (KeepSamples writes them)")

    def refresh(self) -> None:
        """Read what is there now."""
        located = [(summary(one.group), one.path, one.offset) for one in locate_groups(self.folder / "samples")]
        located.sort(key=lambda one: one[0]["step"])  # stable: processes one behind the other
        self.summaries = [one for one, _, _ in located]
        self._places = [(path, offset) for _, path, offset in located]
        names = list(self.summaries[0]) if self.summaries else []
        self.overview = {
            "name": self.folder.name,
            "signs": signs(self.summaries),
            "curves": curves(self.folder),
            "groups": {name: [one[name] for one in self.summaries] for name in names},
        }

    def group(self, place: int) -> dict[str, Any] | None:
        """A group whole, by its place in ``summaries``; None where there is none or it has been removed."""
        return read_at(*self._places[place]) if 0 <= place < len(self._places) else None

    def media(self, place: int, item: int) -> Path | None:
        """The file of an item that the policy saw; only media that the samples name are ever given out."""
        seen = (self.group(place) or {}).get("seen", [])
        if not 0 <= item < len(seen):
            return None
        path = Path(seen[item]["path"])
        kind = (mimetypes.guess_type(path.name)[0] or "").split("/")[0]
        return path if kind in ("image", "video") and ".." not in path.parts and path.is_file() else None

    def frame(self, place: int, item: int, number: int) -> bytes | None:
        """A frame that the policy saw, as JPEG of at most 240 pixels' height; None where it cannot be decoded."""
        group = self.group(place)
        path = self.media(place, item)
        if group is None or path is None:
            return None
        times = group["seen"][item].get("times_s")
        if times is not None and not 0 <= number < len(times):
            return None
        try:
            return _jpeg(path, None if times is None else times[number])
        except Exception:  # whatever a broken file makes of a decoder: the page shows that there is no frame
            return None


def _jpeg(path: Path, time_s: float | None) -> bytes:
    from PIL import Image
    from torchvision.transforms.v2.functional import to_pil_image

    if time_s is None:
        image: Any = Image.open(path).convert("RGB")
    else:
        from torchcodec.decoders import VideoDecoder

        image = to_pil_image(VideoDecoder(str(path)).get_frame_played_at(time_s).data)
    image.thumbnail((480, 240))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=85)
    return data.getvalue()


#: Curves that the page shows, where the run logged them.
SHOWN = (
    "val/win_rate",
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
