"""What a token counts for where the sampler was not quite the policy: importance weights, and their bounds.

The quotient of the trainer's probability and the sampler's corrects the gradient for the difference, at the price of
its variance; so it is bounded. Taken per token, each quotient is near 1 however long the answer is. The product over
an answer is the exact weight of the answer, and drifts with its length: at an unbiased mismatch of 0.03 a token, the
product, truncated at 2, has a mean of 0.98 at 256 tokens, of 0.82 at 1,024 and of 0.46 at 4,096.

Sources: truncated importance sampling, TIS (Yao et al. 2025, "Your efficient RL framework secretly brings you
off-policy RL training"); masked, MIS (Liu et al. 2025, "When speed kills stability"); IcePop (Ling team 2025, "Every
step evolves", arXiv 2510.18855). The formulas are those of TRL's ``vllm_importance_sampling_mode``.

Shapes: P prompts, G completions per prompt, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ImportanceCorrection:
    """How a rollout by another engine, other kernels or older weights is weighed.

    Args:
        level: ``token``: each token has its own quotient; ``sequence``: all tokens of an answer have their product.
        kind: what becomes of a quotient outside the bounds: ``truncate`` sets it to the bound (TIS), ``mask`` to 0
            (MIS); ``icepop`` is ``mask`` of tokens with both bounds (its authors take 0.5 and 5).
        low: the lower bound, below 1; None: none.
        high: the upper bound, 1 or more; None: none.
        alarm: the mean difference of a token's log-prob, in nats, past which a run warns once: the sampler is then
            something else than the policy, and bounds hide it.

    Raises:
        ValueError: an unknown level or kind, bounds that are none, or ``icepop`` with one of them or of sequences.
    """

    level: Literal["token", "sequence"] = "token"
    kind: Literal["truncate", "mask", "icepop"] = "truncate"
    low: float | None = None
    high: float | None = 2.0
    alarm: float = 0.1

    def __post_init__(self) -> None:
        for name, known in (("level", ("token", "sequence")), ("kind", ("truncate", "mask", "icepop"))):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"rollout.correction.{name} is {value!r}; it must be one of {', '.join(known)}")
        if self.low is not None and not 0 <= self.low < 1:
            raise ValueError(f"rollout.correction.low is {self.low}; it must lie in [0, 1), or be null for no bound")
        if self.high is not None and self.high < 1:
            raise ValueError(f"rollout.correction.high is {self.high}; it must be 1 or more, or null for no bound")
        if self.alarm <= 0:
            raise ValueError(f"rollout.correction.alarm is {self.alarm}; it must be above 0 nats a token")
        if self.kind == "icepop" and (self.low is None or self.high is None):
            raise ValueError("rollout.correction.kind is 'icepop', which needs both bounds, such as low: 0.5, high: 5")
        if self.kind == "icepop" and self.level != "token":
            raise ValueError("rollout.correction.kind is 'icepop', which is of tokens: level must be 'token'")

    def ratios(self, trainers: Tensor, samplers: Tensor, mask: Tensor) -> Tensor:
        """Quotients of probabilities, trainer's over sampler's, before the bounds.

        Args:
            trainers: f32[P, G, T], log-probs under the policy.
            samplers: f32[P, G, T], log-probs by which the tokens were drawn.
            mask: bool[P, G, T], tokens of the completions; the others are not looked at.

        Returns:
            f32[P, G, T]: of tokens (1 where masked), or of answers, the same for all of their tokens.
        """
        difference = (trainers - samplers).masked_fill(~mask, 0.0)
        if self.level == "sequence":
            difference = difference.sum(-1, keepdim=True).expand_as(mask)
        return difference.exp()

    def bounded(self, ratios: Tensor) -> Tensor:
        """Weights f32[P, G, T]: ``ratios``, those outside the bounds truncated or masked."""
        if self.kind == "truncate":
            return ratios if self.low is None and self.high is None else ratios.clamp(self.low, self.high)
        return ratios.masked_fill(self.outside(ratios), 0.0)

    def outside(self, ratios: Tensor) -> Tensor:
        """bool[P, G, T]: which of ``ratios`` lie outside the bounds."""
        below = ratios < (0.0 if self.low is None else self.low)
        return below if self.high is None else below | (ratios > self.high)
