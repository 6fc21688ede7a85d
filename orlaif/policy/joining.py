"""How a processor lays the videos of several prompts one behind the other, asked of it with two that are the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.video_utils import VideoMetadata

from orlaif.policy.asking import process


@dataclass(frozen=True, kw_only=True)
class Joining:
    """What is known of a processor's inputs, by their names.

    Args:
        dimensions: along which prompts lie one behind the other; 0 for a name that is not there.
        counted: inputs that hold places in another, such as which patches make a token: that other input's name, and
            how many of its leading dimensions are counted through. Places go on from one prompt to the next.
    """

    dimensions: Mapping[str, int] = field(default_factory=dict)
    counted: Mapping[str, tuple[str, int]] = field(default_factory=dict)

    def beside(self, other: Joining) -> Joining:
        """This, and what ``other`` knows of further names."""
        return Joining(dimensions={**other.dimensions, **self.dimensions}, counted={**other.counted, **self.counted})

    def shape_beside(self, name: str, value: Tensor | None) -> tuple[int, ...]:
        """The shape of an input without the dimension along which prompts lie one behind the other; empty for none."""
        if value is None:
            return ()
        d = self.dimensions.get(name, 0)
        return (value.ndim, *value.shape[:d], *value.shape[d + 1 :])

    def joined(self, name: str, values: Sequence[Tensor]) -> Tensor:
        """The tensors of several prompts, whose :meth:`shape_beside` agree, as one."""
        return torch.cat(list(values), self.dimensions.get(name, 0))

    def joined_all(self, values: Mapping[str, list[Tensor]]) -> dict[str, Tensor]:
        """The inputs of several prompts, a tensor for each, as one tensor for all; places count on."""
        return {name: self.joined(name, given) for name, given in self.counted_on(values).items()}

    def counted_on(self, values: Mapping[str, list[Tensor]]) -> dict[str, list[Tensor]]:
        """The inputs of several prompts, to be joined: places in another input count what lies before it.

        Args:
            values: of each input, a tensor for each prompt; negative places mean none.
        """
        moved = dict(values)
        for name in self.counted.keys() & values.keys():
            other, dims = self.counted[name]
            before, moved[name] = 0, []
            for places, counted in zip(values[name], values[other], strict=True):
                moved[name].append(torch.where(places >= 0, places + before, places))
                before += math.prod(counted.shape[:dims])
        return moved


def collated(
    encoded: Sequence[Mapping[str, Tensor]],
    pad_id: int,
    shape_beside: Callable[[str, Tensor | None], Any],
    joined: Callable[[dict[str, list[Tensor]]], dict[str, Tensor]],
) -> dict[str, Any]:
    """Encoded prompts as a batch; see :meth:`orlaif.policy.families.Family.collate`.

    Args:
        encoded: the inputs of each of P prompts.
        pad_id: fills ``input_ids``.
        shape_beside: of an input's name and tensor, the shape beside the dimension in which prompts are joined.
        joined: from a tensor for each prompt to one for all (:meth:`orlaif.policy.families.Family.joined`).
    """
    lengths = [one["input_ids"].shape[1] for one in encoded]
    longest = max(lengths)
    batch: dict[str, Any] = {}
    rest: dict[str, list[Tensor | None]] = {}
    for name in dict.fromkeys(name for one in encoded for name in one):
        values = [(one.get(name), n) for one, n in zip(encoded, lengths, strict=True)]
        if all(v is None or (v.shape == (1, n) and not v.is_floating_point()) for v, n in values):
            fill = pad_id if name == "input_ids" else 0
            whole = [torch.zeros(1, n, dtype=torch.int64) if v is None else v for v, n in values]
            batch[name] = torch.cat([nn.functional.pad(v, (longest - v.shape[1], 0), value=fill) for v in whole])
        else:
            rest[name] = [v.reshape(1) if v is not None and v.ndim == 0 else v for v, _ in values]
    if any(len({shape_beside(name, v) for v in values}) > 1 for name, values in rest.items()):
        return batch | rest
    return batch | joined({name: [v for v in values if v is not None] for name, values in rest.items()})


def joining_of(processor: Any, prompt: str) -> Joining:
    """How a processor lays two videos.

    Args:
        processor: of transformers.
        prompt: as the chat template renders it; its video is replaced by a small synthetic one.

    Returns:
        Nothing known, where the processor takes no such clip.
    """
    for num_frames in (4, 8, 16):  # some know one number of frames only
        frames = torch.zeros(num_frames, 3, 56, 56, dtype=torch.uint8)
        seconds = VideoMetadata(
            total_num_frames=num_frames, fps=1.0, duration=num_frames, frames_indices=list(range(num_frames))
        )
        try:
            one, two = (process(processor, [prompt] * n, [[frames]] * n, [seconds] * n) for n in (1, 2))
        except Exception:  # such a clip does not suit it; the check at load compares batches, whatever is assumed
            continue
        return _compared(one, two)
    return Joining()


def joining_of_images(processor: Any, prompt: str) -> Joining:
    """How a processor lays two images, the prompts of which are rendered with one each; nothing where it takes none."""
    image = torch.zeros(3, 56, 56, dtype=torch.uint8)
    try:
        return _compared(*(process(processor, [prompt] * n, [], [], images=[[image]] * n) for n in (1, 2)))
    except Exception:  # as above
        return Joining()


def _compared(one: dict[str, Tensor], two: dict[str, Tensor]) -> Joining:
    """What the inputs of one prompt, and of the same prompt twice, say."""
    dimensions = {name: d for name, value in one.items() if (d := _grown(value, two.get(name))) is not None}
    counted = {name: found for name, d in dimensions.items() if (found := _counted(name, d, one, two)) is not None}
    return Joining(dimensions=dimensions, counted=counted)


def _grown(one: Tensor, two: Tensor | None) -> int | None:
    """The dimension along which ``two`` is twice ``one``, where all others are as they were."""
    if two is None or two.ndim != one.ndim:
        return None
    grown = [d for d in range(one.ndim) if two.shape[d] == 2 * one.shape[d] > 0]
    same = [d for d in range(one.ndim) if two.shape[d] == one.shape[d]]
    return grown[0] if len(grown) == 1 and len(same) == one.ndim - 1 else None


def _counted(name: str, d: int, one: dict[str, Tensor], two: dict[str, Tensor]) -> tuple[str, int] | None:
    """The input whose places ``name`` holds: the second prompt's differ from the first's by the size of the first's."""
    value = one[name]
    if value.dtype != torch.int64 or not bool((value >= 0).any()):
        return None
    further = (two[name].narrow(d, value.shape[d], value.shape[d]) - value)[value >= 0].unique()
    if len(further) != 1 or int(further) <= 0:
        return None
    for other, features in one.items():
        if features.numel() > value.numel():  # features themselves, not what is said about them
            for dims in range(1, features.ndim):
                if math.prod(features.shape[:dims]) == int(further):
                    return other, dims
    return None
