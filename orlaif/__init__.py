"""orlaif: reinforcement learning for video-language models from an oracle's ranking of candidate answers."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orlaif.data.datamodule import VideoDataModule
    from orlaif.evaluation.evaluation import Evaluation
    from orlaif.training.preference_sampling import PreferenceSampling
    from orlaif.training.rlaif import OracleRLAIF
    from orlaif.training.supervised import SupervisedFineTuning

__version__ = "0.1.0"
__all__ = ["Evaluation", "OracleRLAIF", "PreferenceSampling", "SupervisedFineTuning", "VideoDataModule", "__version__"]

_HOMES = {
    "Evaluation": "orlaif.evaluation.evaluation",
    "OracleRLAIF": "orlaif.training.rlaif",
    "PreferenceSampling": "orlaif.training.preference_sampling",
    "SupervisedFineTuning": "orlaif.training.supervised",
    "VideoDataModule": "orlaif.data.datamodule",
}


def __getattr__(name: str) -> Any:
    """Import the public classes on first use, so that ``import orlaif.types`` stays light."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
