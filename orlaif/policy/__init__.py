"""The model that is trained: loading, forward pass, log-probs; the shared prefix; LoRA, reference, export."""

from orlaif.policy import omni  # noqa: F401 (its families)
from orlaif.policy.policy import Policy
from orlaif.policy.reference import evaluating

__all__ = ["Policy", "evaluating"]
