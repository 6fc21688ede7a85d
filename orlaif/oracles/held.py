"""Models that oracles hold beside the policy's: what ``orlaif plan`` counts of them, from a config alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import torch
from torch import nn

from orlaif.policy import Policy


@dataclass(frozen=True, kw_only=True)
class HeldModel:
    """A model that an oracle loads on first use.

    Args:
        oracle: name of the class that holds it.
        path: folder or hub id that it comes from.
        device: as the recipe names it; None: CUDA where there is one.
        build: makes the model in its dtype, without its weights; called with the meta device as default.
    """

    oracle: str
    path: str
    device: str | None
    build: Callable[[], nn.Module]

    @classmethod
    def of_policy(cls, oracle: str, policy: Policy, device: str | None) -> HeldModel:
        """A judge that is a :class:`~orlaif.policy.Policy`, frozen."""

        def build() -> nn.Module:
            made: nn.Module = policy.family.build(policy.config, dtype=getattr(torch, policy.dtype))
            return made

        return cls(oracle=oracle, path=policy.path, device=device, build=build)

    def weight_bytes(self) -> int:
        """Of its weights, tied ones once, and of its buffers.

        Raises:
            OSError, ValueError: there is no config at ``path``, or none that can be read.
        """
        with torch.device("meta"):
            model = self.build()
        return sum(t.numel() * t.element_size() for t in chain(model.parameters(), model.buffers()))
