"""A loss of one's own: the plain ratio, held by a square of its logarithm instead of a clip."""

from dataclasses import dataclass

from torch import Tensor

from orlaif.losses import Loss


@dataclass(frozen=True, kw_only=True)
class SquaredTrust(Loss):
    """``-w A + strength / 2 (log w)^2``, with ``w = exp(logp - old)``.

    Args:
        strength: how hard the policy is held where it was when it sampled.
    """

    strength: float = 1.0

    def __call__(self, logp, old, reference, entropy, advantage, mask) -> tuple[Tensor, dict[str, Tensor]]:
        """Terms, and what is logged as ``train/log_ratio_squared``."""
        squared = (logp - old).square()
        terms = -(logp - old).exp() * advantage + self.strength / 2 * squared
        return terms, {"log_ratio_squared": squared}
