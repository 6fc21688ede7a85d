"""A head whose vocabulary is split over processes: what they hand each other, and never logits.

Every process of the group has the same hidden states and ids, and rows of the head of its own, in the order of ranks.
Of each token they exchange the statistics of their part of its row, five numbers; with those of the whole row each
makes the gradient of its own logits. The gradient of its rows of the head is then complete, that of the hidden states
a sum over the processes.

Shapes: W processes, M tokens of a chunk, V vocabulary, all of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.distributed_c10d import _resolve_process_group

from orlaif_kernels.arguments import LossSettings
from orlaif_kernels.rows import ENTROPY, LOG_SUM, LOGP, MEAN, TOP, distance


@dataclass(frozen=True)
class Shard:
    """Rows of the head from ``start`` on, of ``vocabulary``, on one process of the group ``name``."""

    name: str
    start: int
    vocabulary: int

    @staticmethod
    def of(weight: Tensor, group: distributed.ProcessGroup) -> Shard:
        """That of these rows; processes need not have equally many. (The host waits for how many they have.)

        Raises:
            ValueError: ``group`` is no process group of this process's.
        """
        if not isinstance(group, distributed.ProcessGroup):
            raise ValueError(
                f"vocabulary_group is {group!r}; it must be a torch.distributed.ProcessGroup that this process is in, "
                "such as device_mesh.get_group(), or None for a whole head"
            )
        mine = torch.tensor(weight.shape[:1], device=weight.device)
        sizes = mine.new_empty(group.size())
        distributed.all_gather_into_tensor(sizes, mine, group=group)
        rows = sizes.tolist()
        return Shard(group.group_name, sum(rows[: group.rank()]), sum(rows))

    @property
    def group(self) -> distributed.ProcessGroup:
        """The processes."""
        name: Any = self.name  # a type of its own in some versions of PyTorch
        return _resolve_process_group(name)

    def combine(self, state: Tensor, owned: Tensor, settings: LossSettings) -> Tensor:
        """Statistics [5, M] of whole rows from those of this part.

        Args:
            state: of this process's logits; log-prob of what is not ``owned`` may hold anything.
            owned: bool[M], whether the target is among them.
            settings: of what lies between two logits in the softmax.
        """
        mine = state.clone()
        mine[LOGP] = (state[LOGP] + state[LOG_SUM]).where(owned, torch.inf)  # the target's distance to the part's top
        parts = mine.new_empty(self.group.size(), *mine.shape)
        distributed.all_gather_into_tensor(parts.flatten(0, 1), mine, group=self.group)
        top = parts[:, TOP].amax(0)
        d = distance(parts[:, TOP], top, settings)
        excluded = parts[:, TOP] == -torch.inf  # a part without any logit knows nothing but that
        log_sum, mean, target = (parts[:, x].masked_fill(excluded, 0.0) for x in (LOG_SUM, MEAN, LOGP))
        others = parts[:, LOGP] == torch.inf
        target = (target + d).masked_fill(others, 0.0).sum(0).masked_fill(others.all(0), torch.nan)
        share, best = (log_sum + d).exp(), d.argmax(0, keepdim=True)
        # The largest logit counts as 1 and is left out, as in a row: 1 - p of a certain token is the sum of the others.
        rest = share.scatter(0, best, 0.0).sum(0) + log_sum.gather(0, best).squeeze(0).expm1()
        whole = torch.empty_like(state)
        whole[TOP], whole[LOG_SUM] = top, rest.log1p()
        whole[MEAN] = (share * (mean + d.masked_fill(excluded, 0.0))).sum(0) / (1 + rest)
        whole[LOGP], whole[ENTROPY] = target - whole[LOG_SUM], whole[LOG_SUM] - whole[MEAN]
        return whole

    def sum(self, x: Tensor) -> Tensor:
        """Over the processes, in place."""
        distributed.all_reduce(x, group=self.group)
        return x
