"""orlaif: reinforcement learning for video-language models from an oracle's ranking of candidate answers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orlaif.data.datamodule import VideoDataModule
    from orlaif.evaluated import Evaluation
    from orlaif.module import OracleRLAIF
    from orlaif.preferences import PreferenceSampling
    from orlaif.supervised import SupervisedFineTuning

__version__ = "0.1.0"
__all__ = ["Evaluation", "OracleRLAIF", "PreferenceSampling", "SupervisedFineTuning", "VideoDataModule", "__version__"]

_HOMES = {
    "Evaluation": "orlaif.evaluated",
    "OracleRLAIF": "orlaif.module",
    "PreferenceSampling": "orlaif.preferences",
    "SupervisedFineTuning": "orlaif.supervised",
    "VideoDataModule": "orlaif.data.datamodule",
}


def __getattr__(name: str) -> Any:
    """Import the public classes on first use, so that ``import orlaif.types`` stays light."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
