"""Callbacks that average weights, and a policy whose weights are loaded late."""

from __future__ import annotations

from collections.abc import Iterable

from lightning import Callback
from lightning.pytorch.callbacks import StochasticWeightAveraging


def check_averaging(callbacks: Iterable[Callback]) -> None:
    """Raise ValueError for a callback that copies the model before its weights are loaded, and so averages nothing.

    ``WeightAveraging`` and ``EMAWeightAveraging`` have the weights loaded first.
    """
    if any(isinstance(callback, StochasticWeightAveraging) for callback in callbacks):
        raise ValueError(
            "trainer.callbacks has StochasticWeightAveraging, which copies a model before its weights are loaded, and "
            "would average nothing; use lightning.pytorch.callbacks.WeightAveraging or EMAWeightAveraging"
        )
