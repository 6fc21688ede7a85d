"""Keys of recipes, as pages name them: below ``model.init_args`` without it."""

from __future__ import annotations

import inspect
from typing import Any

from lightning import Trainer

from orlaif import OracleRLAIF, VideoDataModule
from orlaif.losses import GRPORankLoss
from orlaif.policy import Policy
from orlaif.policy.chat import Chat
from orlaif.rollout import SamplingParams, VLLMRollout
from orlaif.training.dynamic_sampling import DynamicSampling
from orlaif.training.lengths import Overlong
from orlaif.training.rlaif import Reference

CLASSES: dict[str, Any] = {
    "": OracleRLAIF,
    "policy": Policy,
    "policy.chat": Chat,
    "rollout": VLLMRollout,
    "rollout.sampling": SamplingParams,
    "loss": GRPORankLoss,
    "reference": Reference,
    "dynamic_sampling": DynamicSampling,
    "overlong": Overlong,
    "data": VideoDataModule,
    "trainer": Trainer,
}


def takes(where: str, name: str) -> bool:
    """Whether the class at this place of a recipe takes the key."""
    return name in inspect.signature(CLASSES[where]).parameters
