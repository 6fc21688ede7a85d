"""The seam of sampling: where the G completions of each prompt come from, and how their tokens are drawn.

A rollout gives the log-probs by which it sampled. Where the sampler is not the policy itself (another engine, other
kernels, older weights), its tokens are weighed for the difference (``orlaif.rollout.correction``).

Shapes: P prompts, G completions per prompt, T <= ``max_new_tokens`` tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from orlaif.policy import Policy
from orlaif.policy.twin import Twin
from orlaif.rollout.correction import ImportanceCorrection
from orlaif.types import Completions, PromptBatch


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How tokens are drawn.

    Args:
        max_new_tokens: longest completion, the end-of-sequence token included.
        temperature: divides the logits; 0 means greedy.
        top_p: keep the smallest set of tokens with at least this probability.
        top_k: keep this many tokens; 0 keeps all.

    Raises:
        ValueError: a setting is out of its range.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"sampling.max_new_tokens is {self.max_new_tokens}; it must be 1 or more")
        if self.temperature < 0:
            raise ValueError(f"sampling.temperature is {self.temperature}; it must be 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"sampling.top_p is {self.top_p}; it must lie in (0, 1]")
        if self.top_k < 0:
            raise ValueError(f"sampling.top_k is {self.top_k}; it must be 0 (off) or more")


class BaseRollout(ABC):
    """What a recipe names under ``rollout``.

    Args:
        group_size: G, 2 or more.
        sampling: how tokens are drawn; training needs a temperature above 0.
        importance_cap: compare the sampler's log-probs with the trainer's (``train/sampling/...``), and weigh each
            token by their quotient, at most this much; one more forward pass. None trusts the sampler.
        correction: in place of that cap, other weights for the difference.

    Raises:
        ValueError: a group of fewer than 2, greedy decoding, which would draw the same answer G times, or a cap
            below 1.

    Attributes:
        staleness: how many batches ahead of the step groups are sampled (``orlaif.rollout.pipeline``); 0 = in the step.
    """

    staleness = 0
    #: Whether it runs the policy that it is called with, not an engine that has its weights.
    samples_by_policy = True

    def __init__(
        self,
        group_size: int = 8,
        sampling: SamplingParams | None = None,
        importance_cap: float | None = None,
        correction: ImportanceCorrection | None = None,
    ) -> None:
        if importance_cap is not None and importance_cap < 1:
            raise ValueError(f"rollout.importance_cap is {importance_cap}; it must be 1 or more, or null")
        self.importance_cap = importance_cap
        if correction is None and importance_cap is not None:
            correction = ImportanceCorrection(high=importance_cap)
        self.correction = correction
        self.group_size = group_size
        self.sampling = sampling or SamplingParams()
        self._twin: Twin | None = None
        if group_size < 2:
            raise ValueError(f"rollout.group_size is {group_size}; ranking needs 2 or more answers to a question")
        if self.sampling.temperature == 0:
            raise ValueError("rollout.sampling.temperature is 0; sampling a group needs a temperature above 0")

    @abstractmethod
    def __call__(self, policy: Policy, batch: PromptBatch, generator: Sequence[torch.Generator]) -> Completions:
        """Sample G completions of each prompt.

        Args:
            policy: the model of this moment.
            batch: P prompts, P >= 1.
            generator: one for each prompt, on the policy's device; all randomness comes from them.

        Returns:
            Completions [P, G, T] with the log-probs f32 by which they were sampled.
        """

    def prepare(self, policy: Policy, longest: Callable[[], tuple[int, str] | None]) -> None:  # noqa: B027
        """Before a run's first step: refuse what cannot work, by ValueError.

        Args:
            policy: loaded.
            longest: tokens of the longest prompt that the data allows, and which it is, if that is known.
        """

    def check_room(self, batch: PromptBatch) -> None:  # noqa: B027
        """Raise ValueError for prompts that leave no room for an answer, beyond what the model itself refuses."""

    @property
    def engine_sleeps(self) -> bool:
        """Whether that engine gives its memory back while the step trains."""
        return False

    @property
    def can_be_divided(self) -> bool:
        """Whether processes that share prompts may deal them out: it samples by the policy, in the step, unweighted."""
        return self.samples_by_policy and not self.samples_apart and self.correction is None

    @property
    def samples_apart(self) -> bool:
        """Whether it is called on another thread than the step's, by the weights at the start of a step."""
        return self.staleness > 0

    def begin(self, policy: Policy, whole: bool) -> None:  # noqa: B027 (most rollouts have nothing to do here)
        """Called by all processes when a run begins, before the policy is sharded; may be called again.

        Args:
            policy: the model, loaded.
            whole: it will be sharded.
        """

    def close(self) -> None:  # noqa: B027
        """Called by all processes when the run is over."""

    def take_counts(self) -> dict[str, float]:
        """What has happened since this was last asked, for the log (``rollout/<name>``); by default nothing is said."""
        return {}

    def check_ahead(self) -> None:  # noqa: B027 (most rollouts have nothing to refuse)
        """Raise ValueError where this rollout cannot sample on another thread than the step's."""

    def begin_ahead(self, policy: Policy, whole: bool) -> None:
        """As :meth:`begin`, where another rollout calls this one ahead; by default makes a copy of the policy."""
        if self._twin is None:
            self._twin = Twin(policy, whole)

    def take_weights(self, policy: Policy, batch: PromptBatch) -> Policy:
        """Take the weights of this moment, for calls on another thread while the policy trains.

        Called between two calls of the rollout, by all processes, on the thread of the step.

        Args:
            policy: the model of this moment.
            batch: to be sampled next; may be empty.

        Returns:
            What the rollout is called with in place of the policy.
        """
        if self._twin is None:
            raise ValueError("rollout.take_weights() was called without begin_ahead()")
        return self._twin.follow(policy)

    def engine_memory(self, gpu_memory: float) -> int:
        """Bytes of each GPU that an engine beside the model takes, for ``orlaif plan``; none by default.

        Args:
            gpu_memory: bytes of a GPU.
        """
        return 0
