"""What every operation is told, checked once: the settings of the loss, ids, masks, and which implementation runs.

A check of values happens where the host can read them without waiting: on a CPU, outside torch.compile. On a GPU a
token id outside the vocabulary, or a normaliser that is not positive, makes NaN instead, which no one takes for a
result.

Shapes: N completions, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real
from typing import Any, Literal, get_args

import torch
from torch import Tensor

KLEstimator = Literal["k1", "k2", "k3"]
KLPlace = Literal["loss", "advantage"]
LossType = Literal["grpo", "dapo", "dr_grpo"]
RatioLevel = Literal["token", "sequence"]
Mapping = Literal["dcg", "borda", "ndcg_penalty", "zscore"]
Implementation = Literal["auto", "torch", "triton"]

_TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: What each number of the settings must be.
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    **dict.fromkeys(("temperature", "logit_scale"), (lambda x: 0 < x < math.inf, "positive and finite")),
    **dict.fromkeys(("clip_low", "clip_high"), (lambda x: x >= 0, "0 or more")),
    **dict.fromkeys(("kl_coef", "entropy_coef"), (math.isfinite, "finite")),
    **dict.fromkeys(("delta", "max_log_ratio"), (lambda x: x > 0, "positive, or None")),
    "softcap": (lambda x: 0 < x < math.inf, "positive and finite, or None"),
}


def one_of(name: str, value: str, choices: object) -> None:
    """Raise a ValueError unless ``value`` is one of a Literal's choices."""
    allowed = get_args(choices)
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, allowed))}")


def number(name: str, value: object) -> float:
    """``value`` as a float; a ValueError unless it is a number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name} is {value!r}; it must be a number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} is beyond what a float holds") from None


def whole_number(name: str, value: object) -> None:
    """Raise a ValueError unless ``value`` is a whole number, 1 or more."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}; it must be a whole number, 1 or more")


def check_tensors(**named: object) -> None:
    """Raise a ValueError that names what is given and is no tensor of real numbers."""
    for name, tensor in named.items():
        if tensor is not None and not isinstance(tensor, Tensor):
            raise ValueError(f"{name} is a {type(tensor).__name__}; it must be a Tensor")
        if isinstance(tensor, Tensor) and tensor.is_complex():
            raise ValueError(f"{name} is {tensor.dtype}; it must be real")


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
    kl_in: KLPlace = "loss"
    entropy_coef: float = 0.0
    loss_type: LossType = "dapo"
    ratio: RatioLevel = "token"
    max_log_ratio: float | None = 20.0
    softcap: float | None = None
    logit_scale: float = 1.0

    def __post_init__(self) -> None:
        for name, (good, what) in _RANGES.items():
            value = getattr(self, name)
            if not (value is None and what.endswith("None")) and not good(number(name, value)):
                raise ValueError(f"{name} is {value}; it must be {what}")
        one_of("kl_estimator", self.kl_estimator, KLEstimator)
        one_of("kl_in", self.kl_in, KLPlace)
        one_of("loss_type", self.loss_type, LossType)
        one_of("ratio", self.ratio, RatioLevel)
        if self.ratio == "sequence" and self.loss_type == "dapo":
            warnings.warn(
                "ratio 'sequence' with loss_type 'dapo' counts a completion's one ratio once per token, so that long "
                "completions weigh more; GSPO (arXiv 2507.18071) uses loss_type 'grpo'",
                stacklevel=3,
            )
        if self.kl_estimator == "k1" and self.kl_in == "loss" and self.kl_coef != 0:
            warnings.warn(
                "the gradient of kl_estimator 'k1' in the loss does not depend on the reference and has mean zero; use "
                "'k2' or 'k3', or kl_in 'advantage'",
                stacklevel=3,
            )

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

    @property
    def most(self) -> float:
        """``max_log_ratio``, infinite where there is none."""
        return math.inf if self.max_log_ratio is None else self.max_log_ratio

    @property
    def factor(self) -> float:
        """By what a logit, soft-capped at ``cap``, is multiplied."""
        return self.logit_scale / self.temperature

    @property
    def cap(self) -> float | None:
        """The soft cap of a logit that is not yet scaled: ``c tanh(s x / c) = s (c / s) tanh(x / (c / s))``."""
        return None if self.softcap is None else self.softcap / self.logit_scale

    def pack(self) -> str:
        """As an operator's schema can hold them."""
        return " ".join(f"{name}={getattr(self, name)}" for name in LossSettings.__dataclass_fields__)


@lru_cache(maxsize=64)
def unpack(packed: str) -> LossSettings:
    """The inverse of :meth:`LossSettings.pack`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whoever made them has been warned
        return LossSettings(**{name: _value(text) for name, text in (item.split("=") for item in packed.split())})


def _value(text: str) -> Any:
    try:
        return None if text == "None" else float(text)
    except ValueError:
        return text


def readable(tensor: Tensor) -> bool:
    """Whether the host can look at values without waiting for a device."""
    return type(tensor.detach()) is Tensor and tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def check_tokens(
    x: Tensor, token_ids: Tensor, mask: Tensor | None, name: str = "logits", **per_token: Tensor | None
) -> Tensor:
    """The mask as bool[N, T]; a ValueError names the tensor whose shape, dtype or values do not fit.

    ``x`` are logits [N, T, V], where T may be one more than there are tokens, or hidden states [N, T, H].
    """
    check_tensors(**{name: x}, token_ids=token_ids, mask=mask, **per_token)
    last, shape = "V" if name == "logits" else "H", x.shape
    longer = name == "logits" and len(shape) == 3 and token_ids.ndim == 2 and shape[1] == token_ids.shape[1] + 1
    if len(shape) != 3 or shape[2] == 0:
        raise ValueError(f"{name} has shape {tuple(shape)}; it must be [N, T, {last}], {last} 1 or more")
    if x.dtype not in (*_TRITON_DTYPES, torch.float64):
        raise ValueError(f"{name} are {x.dtype}; they must be float32, bfloat16, float16 or float64")
    if token_ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"token_ids are {token_ids.dtype}; they must be int64 or int32")
    for other, tensor in {"token_ids": token_ids, "mask": mask, **per_token}.items():
        if tensor is not None and tensor.shape != (expected := (shape[0], shape[1] - longer)):
            raise ValueError(f"{other} has shape {tuple(tensor.shape)}; {name} ask for {expected}")
    if mask is None:
        return torch.ones_like(token_ids, dtype=torch.bool)
    if mask.dtype != torch.bool and not torch.compiler.is_compiling() and mask.device.type != "meta":
        strange = mask[(mask != 0) & (mask != 1)]  # on a GPU the host waits; a bool mask costs nothing
        if len(strange):
            raise ValueError(f"mask holds {float(strange[0])}; it must be bool, or 0 and 1 (weights are token_weights)")
    return mask.bool()


def check_ids(token_ids: Tensor, mask: Tensor, vocabulary: int) -> None:
    """Raise a ValueError that names a counted id outside ``[0, vocabulary)``, where the host can see it."""
    if readable(token_ids) and readable(mask):
        outside = token_ids[mask & ((token_ids < 0) | (token_ids >= vocabulary))]
        if len(outside):
            raise ValueError(f"token_ids hold {int(outside[0])} where the mask counts; ids lie in [0, {vocabulary})")


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
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        raise RuntimeError("torch.func (grad, vmap, jvp) does not reach through these operations; use torch.autograd")
    if implementation == "torch":
        return "torch"
    if implementation == "auto":
        return "triton" if tensor.is_cuda and triton_obstacle(tensor) is None else "torch"
    if (obstacle := triton_obstacle(tensor)) is not None:
        raise RuntimeError(f"implementation 'triton' cannot run here: {obstacle}")
    return "triton"
