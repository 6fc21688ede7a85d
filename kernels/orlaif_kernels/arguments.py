"""What every operation is told, checked once: the settings of the loss, and which implementation runs.

Shapes: N completions, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

KLEstimator = Literal["k1", "k2", "k3"]
LossType = Literal["grpo", "dapo", "dr_grpo"]
RatioLevel = Literal["token", "sequence"]
Mapping = Literal["dcg", "borda", "ndcg_penalty", "zscore"]
Implementation = Literal["auto", "torch", "triton"]

_TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def one_of(name: str, value: str, choices: object) -> None:
    """Raise a ValueError unless ``value`` is one of a Literal's choices."""
    allowed = get_args(choices)
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, allowed))}")


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """The numbers and choices of a GRPO_rank loss; see :func:`orlaif_kernels.grpo_rank_loss` for their meaning.

    Raises:
        ValueError: a setting is out of its range.
    """

    temperature: float = 1.0
    clip_low: float = 0.2
    clip_high: float = 0.2
    delta: float | None = None
    kl_coef: float = 0.0
    kl_estimator: KLEstimator = "k3"
    entropy_coef: float = 0.0
    loss_type: LossType = "dapo"
    ratio: RatioLevel = "token"
    softcap: float | None = None

    def __post_init__(self) -> None:
        if not self.temperature > 0 or math.isinf(self.temperature):
            raise ValueError(f"temperature is {self.temperature}; it must be positive and finite")
        for name in ("clip_low", "clip_high"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        for name in ("delta", "softcap"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}; it must be positive, or None")
        one_of("kl_estimator", self.kl_estimator, KLEstimator)
        one_of("loss_type", self.loss_type, LossType)
        one_of("ratio", self.ratio, RatioLevel)

    @property
    def bounds(self) -> tuple[float, float, float]:
        """Where the ratio w stops to matter: below ``floor`` (A < 0), above ``cap_up`` (A > 0), above ``cap_down``
        (A < 0).

        From ``min(min(w, delta) A, clip(w, 1 - clip_low, 1 + clip_high) A)``: for A > 0 the smallest bound wins, for
        A < 0 the largest; without delta nothing bounds the ratio of a bad answer from above.
        """
        high = 1.0 + self.clip_high
        delta = math.inf if self.delta is None else self.delta
        return 1.0 - self.clip_low, min(delta, high), max(delta, high)


def check_tokens(
    logits_shape: torch.Size, token_ids: Tensor, mask: Tensor, name: str = "logits", **per_token: Tensor | None
) -> None:
    """Raise a ValueError that names the tensor whose shape or dtype does not fit ``[N, T]``."""
    if len(logits_shape) != 3:
        raise ValueError(
            f"{name} has shape {tuple(logits_shape)}; it must be [N, T, {'V' if name == 'logits' else 'H'}]"
        )
    if token_ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"token_ids are {token_ids.dtype}; they must be int64 or int32")
    for other, tensor in {"token_ids": token_ids, "mask": mask, **per_token}.items():
        if tensor is not None and tensor.shape != logits_shape[:2]:
            raise ValueError(f"{other} has shape {tuple(tensor.shape)}; {name} ask for {tuple(logits_shape[:2])}")


def triton_obstacle(tensor: Tensor) -> str | None:
    """Why the Triton kernels cannot run on ``tensor``; None if they can."""
    if tensor.dtype not in _TRITON_DTYPES:
        return f"it takes float32, bfloat16 and float16, not {tensor.dtype}"
    try:
        from orlaif_kernels.row_kernel import INTERPRETED
    except ImportError as error:
        return f"triton is not installed ({error})"
    if not tensor.is_cuda and not INTERPRETED:
        where = f"it needs a GPU, and the tensor is on {tensor.device}"
        return f"{where} (with TRITON_INTERPRET=1 set before the import it runs there, slowly)"
    return None


def choose(implementation: str, tensor: Tensor) -> Literal["torch", "triton"]:
    """The implementation that runs: ``auto`` is ``triton`` on a GPU and ``torch`` elsewhere.

    Raises:
        ValueError: an unknown name.
        RuntimeError: ``triton`` where it cannot run.
    """
    one_of("implementation", implementation, Implementation)
    if implementation == "torch":
        return "torch"
    if implementation == "auto":
        return "triton" if tensor.is_cuda and triton_obstacle(tensor) is None else "torch"
    if (obstacle := triton_obstacle(tensor)) is not None:
        raise RuntimeError(f"implementation 'triton' cannot run here: {obstacle}")
    return "triton"
