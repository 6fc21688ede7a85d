"""A policy that stays as it was while the policy trains, so that another thread, or process, can sample from it.

The twin shares what is not trained (under an adapter, all of the base) and has copies of the rest, which
:meth:`Twin.follow` brings up to date. What a forward pass keeps between calls (positions, features, caches) and the
tokenizer, which keeps the padding of its last call, are its own.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from orlaif.distributed import sharding
from orlaif.distributed.deferred import hold
from orlaif.policy.passes import LastBatch
from orlaif.policy.policy import Policy


def still(policy: Policy) -> Policy:
    """The same policy, whose ``version`` stays, for an engine that has weights of its own; with its own tokenizer."""
    copied: Policy = copy.copy(policy)
    copied._modules = dict(policy._modules)  # a copied module has its dictionary in common with the first
    copied._processor = copy.deepcopy(policy.processor)
    return copied


def settings_of(policy: Policy) -> dict[str, Any]:
    """Arguments of a policy that samples as this one does, from the same checkpoint, in another process."""
    dtype = policy.sharding.param_dtype if policy.is_sharded else None
    return {
        "path": policy.path,
        "lora": policy.lora,
        "dtype": dtype or policy.dtype,
        "prefix": policy.layout,
        "attn_implementation": policy.attn_implementation,
        "freeze_vision": policy.freeze_vision,
        "prefix_attention": policy.prefix_attention,
        "quantization": policy.quantization,
        "family": policy.family,
    }


class Twin:
    """A copy of ``policy``, made before it is sharded.

    Args:
        policy: loaded if need be.
        whole: copy the weights that are not trained as well, since the policy's will lie in shards.
    """

    def __init__(self, policy: Policy, whole: bool) -> None:
        network = policy.network
        shared = {} if whole else {id(p): p for p in network.parameters() if not p.requires_grad}
        self.policy = still(policy)
        self.policy.model = copy.deepcopy(network, shared).eval().requires_grad_(False)
        self.policy.last = LastBatch()
        self.policy.positions, self.policy.features = self.policy.last.positions, self.policy.last.features
        self.policy.decode_caches = {}
        self._of: int | None = None  # version of the policy that it is a copy of

    @torch.no_grad()
    def follow(self, policy: Policy) -> Policy:
        """Take the policy's weights of this moment; all processes that share them must call.

        Args:
            policy: that this is the twin of.

        Returns:
            The policy to sample from. Its weights change with the next call, before which sampling must have ended.
        """
        if self._of != policy.version:
            hold(self.policy.network, lambda weight: torch.empty_like(weight, device=policy.device))
            twin = self.policy.network.to(policy.device)
            if policy.is_sharded:
                twin.to(sharding.compute_dtype(policy.network))
            with policy.gathered():
                theirs = dict(policy.network.named_parameters())
                for name, own in twin.named_parameters():
                    if own is not theirs[name]:
                        own.copy_(theirs[name])
            self._of = self.policy.version = policy.version
        return self.policy
