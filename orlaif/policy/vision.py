"""Features of a batch's videos, computed once for rollout, reference and policy where nothing trained makes them.

The model's own ``get_video_features`` (or ``get_image_features``, for families that see a video as images) is called as
ever, from within its forward pass; the first result is kept and handed out until the next batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from orlaif.policy.prefix.forward import base_of
from orlaif.types import PromptBatch

_ENCODERS = ("get_video_features", "get_image_features")


def _is_frozen(base: Any) -> bool:
    """Whether no parameter outside decoder and LM head is trained."""
    decoder = {id(p) for p in base.get_decoder().parameters()}
    head = base.get_output_embeddings()
    decoder |= {id(p) for p in head.parameters()} if head is not None else set()
    return not any(p.requires_grad for p in base.parameters() if id(p) not in decoder)


class VisionFeatures:
    """The features of one batch."""

    def __init__(self) -> None:
        self._batch: PromptBatch | None = None
        self._kept: dict[str, Any] = {}

    def forget(self) -> None:
        """Drop what is kept."""
        self._batch, self._kept = None, {}

    @contextmanager
    def reused(self, model: Any, batch: PromptBatch) -> Iterator[None]:
        """Within this context ``model`` computes the features of ``batch`` only if no earlier context did.

        Args:
            model: the policy or its reference, whose features are the same where both are frozen.
            batch: whose videos; compared by identity.
        """
        base = base_of(model)
        owner = getattr(base, "model", base)
        if not _is_frozen(base):
            yield
            return
        if self._batch is not batch:
            self._batch, self._kept = batch, {}
        names = [name for name in _ENCODERS if callable(getattr(owner, name, None))]
        depth = 0

        def keeping(name: str, encoder: Callable[..., Any]) -> Callable[..., Any]:
            def encode(*args: Any, **kwargs: Any) -> Any:
                nonlocal depth
                if depth:  # one encoder called by the other
                    return encoder(*args, **kwargs)
                if name not in self._kept:
                    depth += 1
                    try:
                        with torch.no_grad():
                            self._kept[name] = encoder(*args, **kwargs)
                    finally:
                        depth -= 1
                return self._kept[name]

            return encode

        for name in names:
            setattr(owner, name, keeping(name, getattr(owner, name)))
        try:
            yield
        finally:
            for name in names:
                delattr(owner, name)


def vision_tower(model: nn.Module) -> nn.Module:
    """The module that encodes pixels; raises ValueError for a model that has none under a known name."""
    for name in ("visual", "vision_tower", "vision_model"):
        for owner in (model, getattr(model, "model", None)):
            if isinstance(tower := getattr(owner, name, None), nn.Module):
                return tower
    raise ValueError(f"freeze_vision: {type(model).__name__} has no vision tower under a known name")
