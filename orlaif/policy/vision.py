"""Features of a batch's videos, computed once for rollout, reference and policy where nothing trained makes them.

The model's own ``get_video_features`` (or ``get_image_features``, for families that see a video as images;
``get_audio_features`` of its sound) is called as ever, from within its forward pass; the first result is kept and
handed out until the next batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from orlaif.policy.asking import base_of
from orlaif.policy.families import Family
from orlaif.types import PromptBatch

#: Methods of models that make features.
ENCODERS = ("get_video_features", "get_image_features", "get_audio_features")


class VisionFeatures:
    """The features of a batch and of its parts, until :meth:`forget`."""

    def __init__(self) -> None:
        self._batches: dict[int, tuple[PromptBatch, dict[str, Any]]] = {}

    def has(self, batch: PromptBatch) -> bool:
        """Whether features of ``batch`` are kept."""
        return bool(self._batches.get(id(batch), (batch, {}))[1])

    def forget(self, batch: PromptBatch | None = None) -> None:
        """Drop the features that are kept for the batches of a step, or for this one."""
        if batch is None:
            self._batches = {}
        else:
            self._batches.pop(id(batch), None)

    @contextmanager
    def reused(self, family: Family, model: Any, batch: PromptBatch) -> Iterator[None]:
        """Within this context ``model`` computes the features of ``batch`` only if no earlier context did.

        Args:
            family: of the model.
            model: the policy or its reference, whose features are the same where both are frozen.
            batch: whose videos; compared by identity.
        """
        base = base_of(model)
        owner = getattr(base, "model", base)
        if any(p.requires_grad for p in family.tower_parameters(model)):
            yield
            return
        _, kept = self._batches.setdefault(id(batch), (batch, {}))
        names = [name for name in ENCODERS if callable(getattr(owner, name, None))]
        before = {name: vars(owner)[name] for name in names if name in vars(owner)}  # a divided tower's
        depth = 0

        def keeping(name: str, encoder: Callable[..., Any]) -> Callable[..., Any]:
            def encode(*args: Any, **kwargs: Any) -> Any:
                nonlocal depth
                if depth:  # one encoder called by the other
                    return encoder(*args, **kwargs)
                if name not in kept:
                    depth += 1
                    try:
                        with torch.no_grad():
                            kept[name] = encoder(*args, **kwargs)
                    finally:
                        depth -= 1
                return kept[name]

            return encode

        for name in names:
            setattr(owner, name, keeping(name, getattr(owner, name)))
        try:
            yield
        finally:
            for name in names:
                delattr(owner, name)
            vars(owner).update(before)
