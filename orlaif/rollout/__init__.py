"""Where completions come from: the seam, sampling by the policy itself, and by vLLM."""

from orlaif.rollout.base import BaseRollout, SamplingParams
from orlaif.rollout.correction import ImportanceCorrection
from orlaif.rollout.local import Rollout, generate
from orlaif.rollout.pipeline import Pipelined
from orlaif.rollout.remote import Remote
from orlaif.rollout.vllm import VLLMRollout

__all__ = [
    "BaseRollout",
    "ImportanceCorrection",
    "Pipelined",
    "Remote",
    "Rollout",
    "SamplingParams",
    "VLLMRollout",
    "generate",
]
