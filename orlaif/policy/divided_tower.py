"""A tower that is run by several processes: each encodes some of a batch's frames, and all are given all features.

Where processes share prompts (``orlaif.policy.sequence``), each would otherwise run all frames of them through the
tower. Models that are given grids (frames, height and width in patches, as the Qwen-VL families are) encode every frame
for itself; so a process is given a run of the frames, as videos of fewer frames. What comes back goes to all; in the
backward pass the gradients of a feature go to the process that made it, and add up there.

Whether a model takes this is asked of it (``check_divided``): one that does not, or that is given no grids, runs its
tower whole on each process.

Shapes: B videos or images, F frames of them all (an image is one), N patches, K features; n processes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from orlaif.distributed.sequence import SequenceGroup
from orlaif.policy.asking import base_of
from orlaif.types import PromptBatch

#: Methods of a model that make features of pixels.
_ENCODERS = ("get_video_features", "get_image_features")


@contextmanager
def divided_tower(model: Any, sequence: SequenceGroup | None) -> Iterator[None]:
    """Within, each process of the group encodes its share of the frames that ``model`` is given.

    Args:
        model: of transformers, or PEFT's around one; all processes of the group run it on the same videos.
        sequence: the group; the model is left as it is without one, or with one that does not share frames.
    """
    sequence = sequence if sequence is not None and sequence.shares_frames else None
    base = base_of(model)
    owner = getattr(base, "model", base)
    names = [name for name in _ENCODERS if sequence is not None and callable(getattr(owner, name, None))]
    busy: list[str] = []

    def dividing(encoder: Callable[..., Any]) -> Callable[..., Any]:
        def encode(*args: Any, **kwargs: Any) -> Any:
            given = inspect.signature(encoder).bind(*args, **kwargs)  # by place or by name
            if busy or sequence is None or not _has_frames(given.args[:2], sequence.size):
                return encoder(*args, **kwargs)
            busy.append("")  # one encoder may call the other
            try:
                return _encoded(encoder, sequence, *given.args, **given.kwargs)
            finally:
                busy.pop()

        return encode

    for name in names:
        setattr(owner, name, dividing(getattr(owner, name)))
    try:
        yield
    finally:
        for name in names:
            delattr(owner, name)


def _has_frames(given: tuple[Any, ...], size: int) -> bool:
    """Whether these are patches and their grids, with a frame for each process."""
    if len(given) != 2 or not all(isinstance(one, Tensor) for one in given):
        return False
    pixels, grids = given
    if grids.ndim != 2 or grids.shape[1] != 3 or grids.is_floating_point():
        return False
    return len(pixels) == int(grids.prod(-1).sum()) and int(grids[:, 0].sum()) >= size


def has_grids(batch: PromptBatch) -> bool:
    """Whether a model is given the frames of a batch in grids, by which they can be divided."""
    return any(name.endswith("grid_thw") for name in batch.mm_inputs)


def frames_of(grids: Tensor, first: int, last: int) -> Tensor:
    """Grids i64[b, 3] of frames [first, last) of those that ``grids`` i64[B, 3] hold together."""
    ends = grids[:, 0].cumsum(0)
    starts = ends - grids[:, 0]
    frames = (ends.clamp(max=last) - starts.clamp(min=first)).clamp(min=0)
    return torch.cat([frames[:, None], grids[:, 1:]], 1)[frames > 0]


def _encoded(
    encoder: Callable[..., Any], sequence: SequenceGroup, pixels: Tensor, grids: Tensor, *args: Any, **kwargs: Any
) -> Any:
    """What ``encoder`` gives for all frames, of which this process encodes its own."""
    frames = int(grids[:, 0].sum())
    shares = [frames_of(grids, *sequence.share(frames, index)) for index in range(sequence.size)]
    patches = [int(share.prod(-1).sum()) for share in shares]
    begin = sum(patches[: sequence.index])
    made = encoder(pixels[begin : begin + patches[sequence.index]], shares[sequence.index], *args, **kwargs)
    per_feature = patches[sequence.index] // len(_joined(made.pooler_output))
    sizes = [number // per_feature for number in patches]
    of_each = (grids.prod(-1) // per_feature).tolist()
    for name in ("pooler_output", "deepstack_features"):
        if (given := made.get(name)) is not None:
            made[name] = _of_all(given, sequence, sizes, of_each)
    made["last_hidden_state"] = None  # of this process's frames, and read by no model
    return made


def _joined(features: Any) -> Tensor:
    """Features [K, ...], which come as one tensor or as one for each video."""
    return features if isinstance(features, Tensor) else torch.cat(list(features))


def _of_all(features: Any, sequence: SequenceGroup, sizes: list[int], of_each: list[int]) -> Any:
    """Features of all processes' frames, in the form of this one's: a tensor, one for each video, or such by layer."""
    own = sizes[sequence.index]
    if isinstance(features, Tensor):
        return sequence.gather_rows(features, sizes)
    if sum(len(one) for one in features) == own and not isinstance(features[0], (list, tuple)):
        return torch.split(sequence.gather_rows(torch.cat(list(features)), sizes), of_each)
    return [_of_all(one, sequence, sizes, of_each) for one in features]
