"""The paper's oracle: a ranker trained on preferences between answers to questions about videos.

A video-language model with a scalar head (``orlaif.oracles.ranker_model``) scores answers; preferences train it by the
Bradley-Terry model (pairs; Bradley & Terry 1952) or the Plackett-Luce model (whole rankings; Plackett 1975, Luce 1959).

Shapes: P groups, G answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from orlaif.oracles.base import Oracle, dense_ranks, encoded, no_score_failures
from orlaif.oracles.held import HeldModel
from orlaif.oracles.prompting import check_orders
from orlaif.oracles.ranker_model import Ranker, load_ranker
from orlaif.policy import Policy
from orlaif.policy.encoding import ProcessorEncoder
from orlaif.stages import told
from orlaif.types import CandidateGroup, Ranking


def bradley_terry_loss(scores: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of all pairs that the ranks order.

    Args:
        scores: f[P, G].
        ranks: i64[P, G], 0 = best, equal answers share a rank and are no pair, -1 = not ranked.

    Returns:
        The sum over pairs, 0-dim with gradient, and their number.
    """
    valid = ranks >= 0
    better = (ranks.unsqueeze(-1) < ranks.unsqueeze(-2)) & valid.unsqueeze(-1) & valid.unsqueeze(-2)
    margins = scores.unsqueeze(-1) - scores.unsqueeze(-2)
    losses = -torch.nn.functional.logsigmoid(margins)
    return losses.where(better, losses.new_zeros(())).sum(), better.sum()


def plackett_luce_loss(scores: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of the order: again and again the best of those that are left is chosen.

    Ties are Breslow's (1974): each answer of a level is chosen among all of its level and below.

    Args:
        scores: f[P, G].
        ranks: i64[P, G], as in :func:`bradley_terry_loss`.

    Returns:
        The sum over choices among two or more levels, 0-dim with gradient, and their number.
    """
    valid = ranks >= 0
    left = (ranks.unsqueeze(-1) <= ranks.unsqueeze(-2)) & valid.unsqueeze(-1) & valid.unsqueeze(-2)
    rivals = scores.unsqueeze(-2).expand(*left.shape).masked_fill(~left, -torch.inf)
    chosen = valid & (left & (ranks.unsqueeze(-1) < ranks.unsqueeze(-2))).any(-1)
    losses = torch.logsumexp(rivals.where(chosen.unsqueeze(-1), rivals.new_zeros(())), -1) - scores
    return losses.where(chosen, losses.new_zeros(())).sum(), chosen.sum()


class PreferenceRanker(Oracle):
    """Ranks by the scores of a trained ranker.

    Args:
        path: folder that the ranker's training exported.
        dtype: of the backbone's weights.
        device: where it runs; by default CUDA where there is one.
        batch_size: groups in one forward pass.
        num_orders: of a listwise ranker (the folder says whether it is one), in how many orders a group is read and
            its scores averaged; 1 to 52, by default 2, a drawn order and its reverse.

    Raises:
        ValueError: a number out of its range; on first use, a folder that holds no ranker, or ``num_orders`` for a
            pairwise one.
    """

    gives_scores = True

    def __init__(
        self,
        path: str,
        dtype: str = "bfloat16",
        device: str | None = None,
        batch_size: int = 8,
        num_orders: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"oracle.batch_size is {batch_size}; it must be 1 or more")
        if num_orders is not None:
            check_orders("num_orders", num_orders)
        self.num_orders = num_orders
        self.path, self.dtype, self.batch_size = path, dtype, batch_size
        self._named_device = device
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._ranker: Ranker | None = None

    def held_models(self) -> tuple[HeldModel, ...]:
        """The trained ranker, its head of one row aside."""
        return (HeldModel.of_policy(type(self).__name__, Policy(self.path, dtype=self.dtype), self._named_device),)

    @property
    def ranker(self) -> Ranker:
        """The ranker, loaded and on its device."""
        if self._ranker is None:
            ranker = load_ranker(self.path, self.num_orders, dtype=self.dtype)
            self._ranker = ranker.to(self.device).eval()
        return self._ranker

    @torch.no_grad()
    def rank(self, groups: Sequence[CandidateGroup]) -> Ranking:
        """Order the answers of each group.

        Args:
            groups: P groups.

        Returns:
            Dense ranks i64[P, G] and the scores f32[P, G]; the same answer twice has the same score; groups
            whose scores are all NaN in ``failures``.
        """
        ranker, parts = self.ranker, []
        encoder = ProcessorEncoder(ranker.policy.processor, ranker.system_prompt, ranker.policy.family)
        for start in told(range(0, len(groups), self.batch_size), "judge", "batches"):
            part = groups[start : start + self.batch_size]
            prompts, clips = [group.prompt for group in part], [group.clip for group in part]
            batch = encoded(self, part, partial(encoder, prompts, clips)).to(self.device)
            different = [list(dict.fromkeys(group.answers)) for group in part]
            scores = ranker(batch, different).float().cpu()
            parts.append(
                torch.stack(
                    [
                        row[[members.index(answer) for answer in group.answers]]
                        for row, members, group in zip(scores, different, part, strict=True)
                    ]
                )
            )
        scores = torch.cat(parts)
        failures = no_score_failures(self, groups, scores)
        return Ranking(ranks=dense_ranks(scores), scores=scores, failures=failures)
